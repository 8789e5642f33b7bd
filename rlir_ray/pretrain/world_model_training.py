"""Trains an autoregressive world model on tokenised recordings, from scratch or onwards from a checkpoint.

Knows nothing of tokenizers, rewards or Ray. Legend: W frames of a window, N tokens a frame, L sequence length.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.models.autoregressive import WorldModel, assemble, image_positions
from rlir_ray.models.block_attention import set_block_attention
from rlir_ray.pretrain.device import open_device
from rlir_ray.pretrain.encode import window_starts
from rlir_ray.pretrain.finished import finished_report
from rlir_ray.pretrain.loop import Loop, clip_gradients, cosine_rate
from rlir_ray.pretrain.warnings import loss_figures, world_model_warning
from rlir_ray.pretrain.world_model import WorldModelTraining
from rlir_ray.spaces.actions import Actions, action_tokens
from rlir_ray.trajectory import stored_codes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenRecordings:
    """Recordings as tokens: image tokens [n, N], action tokens int64 [n, 11] leading into each frame."""

    images: npt.NDArray[np.generic]
    actions: npt.NDArray[np.int64]
    episode_starts: npt.NDArray[np.int64]

    def window_starts(self, num_frames: int) -> npt.NDArray[np.int64]:
        """First frames of all windows that stay inside one episode."""
        return window_starts(self.episode_starts, len(self.images), num_frames)

    def windows(self, starts: npt.NDArray[np.int64], num_frames: int) -> Tensor:
        """int64 [B, L] sequences of the windows that begin at `starts`."""
        rows = starts[:, None] + np.arange(num_frames)
        images = torch.from_numpy(self.images[rows].astype(np.int64))
        # The action at a window's first frame leads into it, and is left out.
        return assemble(images, torch.from_numpy(self.actions[rows[:, 1:]]))


def load_tokens(path: Path | str, num_codes: int) -> TokenRecordings:
    """Reads a token file.

    Args:
        path: npz with integer tokens [n, N], episode_starts int64 [E], buttons bool [n, 23] and camera float32 [n, 2];
            the action at index k leads into frame k.
        num_codes: image ids; action ids come after them.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"a token file must exist, got {path}; encode the recordings first")
    with np.load(path, allow_pickle=False) as file:
        images, episode_starts = file["tokens"], file["episode_starts"].astype(np.int64)
        actions = Actions(file["buttons"].astype(np.bool_), file["camera"].astype(np.float32))
    if images.dtype.kind not in "iu":
        raise ValueError(f"{path} must hold integer tokens, got {images.dtype}; encode with the world's own tokenizer")
    least, most = int(images.min(initial=0)), int(images.max(initial=0))
    if least < 0 or most >= num_codes or len(images) != len(actions):
        raise ValueError(
            f"{path} must hold tokens below {num_codes} and one action a frame, got tokens {least}..{most}, "
            f"{len(images)} frames and {len(actions)} actions; encode with the world's own tokenizer"
        )
    return TokenRecordings(stored_codes(images), action_tokens(actions, num_codes), episode_starts)


def train_world_model(
    train: TokenRecordings, validation: TokenRecordings, out_dir: Path | str, settings: WorldModelTraining
) -> WorldModel:
    """Trains a world model; called again it goes on from its last checkpoint, and a finished one is left as it is.

    Args:
        train, validation: token recordings of one tokenizer.
        out_dir: receives the model, `curve.jsonl` and `training.json`, and `checkpoint.pt` until it is done.
        settings: see `WorldModelTraining`.

    Returns:
        The trained model on the CPU, in evaluation mode.

    Raises:
        ValueError: no episode of a window's length, or a checkpoint or a finished training of other settings.
    """
    out_dir = Path(out_dir)
    if finished := finished_report(out_dir, settings):
        _warn(finished["final"])
        return WorldModel.from_pretrained(out_dir)
    starts = train.window_starts(settings.num_frames)
    device = open_device(settings.device)
    model = _start(settings, train.images.shape[1]).to(device)
    optimizer = _optimizer(model, settings)
    loop = Loop("world model", out_dir, settings, {"model": model, "optimizer": optimizer})

    def update(step: int, progress: float) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * cosine_rate(progress)
        rows = np.random.default_rng([settings.seed, step]).choice(starts, settings.batch_size)
        tokens = train.windows(rows, settings.num_frames).to(device)
        return {"loss": _train_step(model, optimizer, tokens, settings)}

    final = loop.run(update, lambda: validate(model, validation, settings.num_validation, settings.num_frames))
    model = model.to("cpu").eval()
    set_block_attention(model, enabled=False)
    model.save_pretrained(out_dir)
    tokens_seen = loop.step * settings.batch_size * train.windows(np.zeros(1, np.int64), settings.num_frames).shape[1]
    loop.finish(
        {
            "parameters": sum(weight.numel() for weight in model.parameters()), "train_frames": len(train.images),
            "train_windows": len(starts), "tokens_seen": tokens_seen,
            "tokens_per_s": round(tokens_seen / max(loop.elapsed_s, 1e-9), 1), "final": final,
        }
    )  # fmt: skip
    _warn(final)
    return model


def _warn(final: dict[str, float]) -> None:
    if warning := world_model_warning(final):
        logger.warning(warning)


def _start(settings: WorldModelTraining, tokens_per_frame: int) -> WorldModel:
    torch.manual_seed(settings.seed)
    if settings.init:
        model = WorldModel.from_pretrained(settings.init)
        if model.tokens_per_frame != tokens_per_frame or model.num_codes != settings.num_codes:
            raise ValueError(
                f"the recordings must have the {model.tokens_per_frame} tokens a frame and {model.num_codes} codes of "
                f"{settings.init}, got {tokens_per_frame} and {settings.num_codes}; encode them with its tokenizer"
            )
        return model.train()
    model = WorldModel.create(
        num_codes=settings.num_codes,
        tokens_per_frame=tokens_per_frame,
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        num_key_value_heads=settings.num_key_value_heads,
    )
    # Residual branches start smaller the more of them there are (GPT-2).
    with torch.no_grad():
        for layer in model.llama.model.layers:
            for branch in (layer.self_attn.o_proj, layer.mlp.down_proj):
                branch.weight.mul_((2 * settings.num_layers) ** -0.5)
    return model


def _optimizer(model: WorldModel, settings: WorldModelTraining) -> torch.optim.AdamW:
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, settings.learning_rate, (0.9, 0.95), weight_decay=settings.weight_decay, fused=True
    )


def _train_step(model: WorldModel, optimizer: torch.optim.AdamW, tokens: Tensor, settings: WorldModelTraining) -> float:
    """One update; returns the mean negative log-probability of the generated frames' tokens, nats."""
    per_frame = model.tokens_per_frame
    num_first = per_frame - 1  # nothing stands before the very first token
    positions = image_positions(settings.num_frames, per_frame).to(tokens.device)[1:]
    half = settings.precision == "bf16"
    # torch's kernel is the better one in float32 and on GPUs.
    set_block_attention(model, enabled=half and tokens.device.type == "cpu")
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=half):
        logprobs = model.logprobs(tokens, positions)  # [B, W * N - 1]
    generated = -logprobs[:, num_first:].mean()
    loss = generated - settings.context_weight * logprobs[:, :num_first].sum() / logprobs[:, num_first:].numel()
    optimizer.zero_grad()
    loss.backward()
    clip_gradients(model, settings.max_grad_norm)
    optimizer.step()
    return float(generated.detach())


@torch.no_grad()
def validate(
    model: WorldModel, recordings: TokenRecordings, num_windows: int, num_frames: int, batch_size: int = 16
) -> dict[str, float]:
    """Mean negative log-probability of the tokens of all frames but the first, nats, in float32.

    Returns:
        As `loss_figures`: `validation_loss`, and `validation_loss_wrong_actions` where each window has the actions of
        another one: what the actions tell is the difference.
    """
    starts = recordings.window_starts(num_frames)
    chosen = starts[np.linspace(0, len(starts) - 1, min(num_windows, len(starts))).astype(np.int64)]
    tokens = recordings.windows(chosen, num_frames)
    wrong = tokens.clone()
    is_image = torch.zeros(tokens.shape[1], dtype=torch.bool)
    is_image[image_positions(num_frames, model.tokens_per_frame)] = True
    wrong[:, ~is_image] = tokens[:, ~is_image].roll(len(tokens) // 2, 0)
    set_block_attention(model, enabled=False)
    losses = []
    for sequences in (tokens, wrong):
        batches = sequences.to(model.llama.device).split(batch_size)
        scored = torch.cat([model(batch, (num_frames - 1) * model.tokens_per_frame) for batch in batches])
        losses.append(-scored.mean(1).cpu().numpy())
    return loss_figures(*losses)
