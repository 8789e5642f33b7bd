"""Training of an autoregressive world model on tokenized recordings, from scratch or from a checkpoint.

Independent of tokenizers, rewards and Ray. Legend: B windows, W frames of a window, N tokens a
frame, A tokens an action, L sequence length.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rlir_ray.data.files import Json
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.block_attention import set_block_attention
from rlir_ray.models.token_sequence import TokenSequence, TokenShape
from rlir_ray.pretrain.action_dropout import hidden_actions
from rlir_ray.pretrain.arguments import Chosen
from rlir_ray.pretrain.encode import Form, read_encoded, window_starts
from rlir_ray.pretrain.loop import train as train_task
from rlir_ray.pretrain.settings import SPLITS, WorldModelTraining
from rlir_ray.pretrain.state import finished_report
from rlir_ray.pretrain.task import Autocast, Every, Length, Progress, Task, cosine_rate
from rlir_ray.pretrain.training_warnings import loss_metrics, world_model_warning
from rlir_ray.spaces.layouts import DROPOUT_KEY, layout_for
from rlir_ray.trajectory import stored_codes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenRecordings:
    """Recordings of n frames in all, end to end, as tokens."""

    images: npt.NDArray[np.generic]
    """[n, N], image tokens."""
    actions: npt.NDArray[np.int64]
    """[n, A], tokens of the action that leads into each frame."""
    episode_starts: npt.NDArray[np.int64]
    """[E], first frame of each recording, or of each clip with a keyframe."""
    sequence: TokenSequence
    """The form of their sequences."""
    keyframes: npt.NDArray[np.generic] | None = None
    """[E, M]; None: the tokenizer encodes each frame alone."""

    @property
    def form(self) -> Form:
        return _form(self.sequence)

    def window_starts(self, num_frames: int) -> npt.NDArray[np.int64]:
        """Return the first frames of all windows that lie within one episode.

        With keyframes only windows at the start of a clip, because the keyframe of a rollout is its first frame.
        """
        starts = window_starts(self.episode_starts, len(self.images), num_frames)
        return starts if self.keyframes is None else np.intersect1d(starts, self.episode_starts)

    def windows(self, starts: npt.NDArray[np.int64], num_frames: int, hidden: Tensor | None = None) -> Tensor:
        """Return the sequences int64 [B, L] of the windows that begin at `starts`.

        `hidden`, bool [B, W - 1], says which actions are hidden; None: none.
        """
        rows = starts[:, None] + np.arange(num_frames)
        images = torch.from_numpy(self.images[rows].astype(np.int64))
        keyframes = None
        if self.keyframes is not None:
            clips = np.searchsorted(self.episode_starts, starts)
            keyframes = torch.from_numpy(self.keyframes[clips].astype(np.int64))
        # A sequence starts with a frame, so that the action into the first frame is excluded.
        actions = torch.from_numpy(self.actions[rows[:, 1:]])
        if hidden is not None:
            tokens = self.sequence.layout.hidden_tokens(self.sequence.first_action_id)
            actions[hidden] = torch.from_numpy(tokens)
        return self.sequence.assemble(images, actions, keyframes)


def load_tokens(path: Path | str) -> TokenRecordings:
    """Read a file of tokens, as `encode_recordings` writes it; the actions become tokens in their space's layout.

    Raises:
        ValueError: the file cannot be used (see `read_encoded`), or its tokens are no image ids.
    """
    found = read_encoded(path, "tokens")
    if found.codes.dtype.kind not in "iu":
        raise ValueError(f"{path} must hold integer tokens, got {found.codes.dtype}; encode the recordings again")
    least, most = int(found.codes.min(initial=0)), int(found.codes.max(initial=0))
    keys = found.keyframes
    if keys is not None and not 0 <= int(keys.min(initial=0)) <= int(keys.max(initial=0)) < found.num_keyframe_codes:
        raise ValueError(
            f"{path} must hold keyframes below their {found.num_keyframe_codes} codes, got {int(keys.min(initial=0))}.."
            f"{int(keys.max(initial=0))}; encode the recordings again"
        )
    if least < 0 or most >= found.num_codes:
        raise ValueError(
            f"{path} must hold tokens below its {found.num_codes} codes, got tokens {least}..{most}; encode the "
            "recordings again"
        )
    tokens_per_keyframe = 0 if found.keyframes is None else found.keyframes.shape[1]
    shape = TokenShape(found.num_codes, found.codes.shape[1], found.num_keyframe_codes, tokens_per_keyframe)
    sequence = TokenSequence(layout=layout_for(found.actions.space), shape=shape)
    actions = sequence.layout.tokens(found.actions, sequence.first_action_id)
    return TokenRecordings(stored_codes(found.codes), actions, found.episode_starts, sequence, found.keyframes)


def train_world_model(
    train: TokenRecordings, validation: TokenRecordings, out_dir: Path | str, settings: WorldModelTraining
) -> WorldModel:
    """Train a world model; resume from the last saved state, and do not repeat a finished training.

    Args:
        train, validation: recordings of one action space, encoded by the same tokenizer.
        out_dir: receives the model, `curve.jsonl` and `training.json`, and `state-*` until the training ends.
        settings: see `WorldModelTraining`.

    Returns:
        The trained model on the CPU, in evaluation mode.

    Raises:
        ValueError: the recordings differ in action space or tokenizer, from each other or from `settings.init`; no
            episode holds a window; or the folder holds a state or a training of other settings.
    """
    out_dir = Path(out_dir)
    report = finished_report(out_dir, settings)
    if report:
        model = WorldModel.from_pretrained(out_dir)
    else:
        task = WorldModelTask(train, validation, settings)
        report, model = train_task(task, out_dir), task.model
    if warning := world_model_warning(report["final"]):
        logger.warning(warning)
    return model


class WorldModelTask(Task):
    """Training task: a world model on windows of tokenized recordings."""

    name = "world model"
    model: WorldModel

    def __init__(self, train: TokenRecordings, validation: TokenRecordings, settings: WorldModelTraining) -> None:
        self.train, self.validation = train, validation
        train.form.check(validation.form, "the training recordings", "the held-out recordings")
        self.starts = train.window_starts(settings.num_frames)
        every = Every(seconds=settings.evaluate_every_s)
        super().__init__(
            settings,
            _initial_model(settings, train),
            length=Length.of(settings),
            curve_every=every,
            save_every=every,
            device=settings.device,
            precision=settings.precision,
            max_grad_norm=settings.max_grad_norm,
        )

    def build_optimizer(self) -> torch.optim.Optimizer:
        matrices = [weight for weight in self.model.parameters() if weight.ndim > 1]
        vectors = [weight for weight in self.model.parameters() if weight.ndim <= 1]
        groups: list[dict[str, list[nn.Parameter] | float]] = [
            {"params": matrices},
            {"params": vectors, "weight_decay": 0.0},
        ]
        rate, decay = self.settings.learning_rate, self.settings.weight_decay
        return torch.optim.AdamW(groups, rate, (0.9, 0.95), weight_decay=decay, fused=True)

    def learning_rate(self, share: float) -> float:
        return float(self.settings.learning_rate * cosine_rate(share))

    def loss(self, progress: Progress, autocast: Autocast) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """Return the loss; the metric `loss` is the mean negative log-probability of a generated token, in nats."""
        settings, per_frame = self.settings, self.model.tokens_per_frame
        rows = np.random.default_rng([settings.seed, progress.step]).choice(self.starts, settings.batch_size)
        hidden = None
        if settings.action_dropout:
            shape = (len(rows), settings.num_frames - 1)
            hidden = hidden_actions(settings.action_dropout, settings.seed, progress.step, shape)
        tokens = self.train.windows(rows, settings.num_frames, hidden).to(self.device)
        num_first = per_frame - 1  # without a keyframe no token precedes the first one; leave it out of every loss
        positions = self.model.sequence.image_positions(settings.num_frames).to(tokens.device)[1:]
        # In float32 and on GPUs torch's own kernel is faster.
        set_block_attention(self.model, enabled=settings.precision == "bf16" and tokens.device.type == "cpu")
        with autocast():
            logprobs = self.model.logprobs(tokens, positions)  # [B, W * N - 1]
        generated = -logprobs[:, num_first:].mean()
        first = settings.context_weight * logprobs[:, :num_first].sum() / logprobs[:, num_first:].numel()
        return generated - first, {"loss": generated.detach()}

    def evaluate(self) -> Json:
        settings = self.settings
        figures: Json = validate(self.model, self.validation, settings.num_validation, settings.num_frames)
        return figures

    def save(self, folder: Path, final: Json, steps: int, elapsed_s: float) -> Json:
        model = self.model.to("cpu").eval()
        set_block_attention(model, enabled=False)
        model.save_pretrained(folder)
        window_tokens = self.train.windows(np.zeros(1, np.int64), self.settings.num_frames).shape[1]
        tokens_seen = steps * self.settings.batch_size * window_tokens
        return {
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "train_frames": len(self.train.images),
            "train_windows": len(self.starts),
            "tokens_seen": tokens_seen,
            "tokens_per_s": round(tokens_seen / max(elapsed_s, 1e-9), 1),
            "final": final,
        }


def run_command(chosen: Chosen, settings: WorldModelTraining) -> None:
    """Run `pretrain world-model`: train on the tokenized recordings of a folder."""
    train, validation = (load_tokens(chosen["data"] / f"{split}.npz") for split in SPLITS)
    train_world_model(train, validation, chosen["out"], settings)


def _form(sequence: TokenSequence) -> Form:
    bos = "" if sequence.bos_id is None else " and BOS before the last frame"
    return Form(sequence.layout, f"{sequence.shape}{bos}")


def _initial_model(settings: WorldModelTraining, train: TokenRecordings) -> WorldModel:
    model = _untrained_model(settings, train)
    # What a checkpoint states is its last training.
    if settings.action_dropout or hasattr(model.config, DROPOUT_KEY):
        setattr(model.config, DROPOUT_KEY, settings.action_dropout)
    return model


def _untrained_model(settings: WorldModelTraining, train: TokenRecordings) -> WorldModel:
    torch.manual_seed(settings.seed)
    if settings.init:
        model = WorldModel.from_pretrained(settings.init)
        _form(model.sequence).check(train.form, f"--init {settings.init}", "the recordings")
        return model.train()
    model = WorldModel.create(
        **train.sequence.shape._asdict(),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        num_key_value_heads=settings.num_key_value_heads,
        layout=train.sequence.layout,
    )
    # GPT-2's initialization: the more residual branches, the smaller each one, so that their sum keeps its scale.
    with torch.no_grad():
        for layer in model.llama.model.layers:
            for branch in (layer.self_attn.o_proj, layer.mlp.down_proj):
                branch.weight.mul_((2 * settings.num_layers) ** -0.5)
    return model


@torch.no_grad()
def validate(
    model: WorldModel, recordings: TokenRecordings, num_windows: int, num_frames: int, batch_size: int = 16
) -> dict[str, float]:
    """Compute the mean negative log-probability of the tokens of all frames except the first, in nats and float32.

    Returns:
        See `loss_metrics`. For `validation_loss_wrong_actions`, each window has the actions of another window: the
        difference to `validation_loss` shows how much the model uses the actions.
    """
    starts = recordings.window_starts(num_frames)
    chosen = starts[np.linspace(0, len(starts) - 1, min(num_windows, len(starts))).astype(np.int64)]
    tokens = recordings.windows(chosen, num_frames)
    wrong = tokens.clone()
    is_image = torch.zeros(tokens.shape[1], dtype=torch.bool)
    is_image[: model.sequence.shape.tokens_per_keyframe] = True
    is_image[model.sequence.image_positions(num_frames)] = True
    wrong[:, ~is_image] = tokens[:, ~is_image].roll(len(tokens) // 2, 0)
    set_block_attention(model, enabled=False)
    losses = []
    for sequences in (tokens, wrong):
        batches = sequences.to(model.llama.device).split(batch_size)
        scored = torch.cat([model(batch, (num_frames - 1) * model.tokens_per_frame) for batch in batches])
        losses.append(-scored.mean(1).cpu().numpy())
    return loss_metrics(*losses)
