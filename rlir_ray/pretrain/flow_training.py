"""Trains a flow world model on recordings as latents, from scratch or onwards from a checkpoint.

Diffusion forcing (https://arxiv.org/abs/2407.01392): every frame has a noise level of its own. A frame is seen twice:
denoised from a level that is logit-normal, and as history of the later frames at a low one, as it will be in a rollout.
Knows nothing of autoencoders, rewards or Ray. Legend: B windows, W frames of a window, D h w a latent.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rlir_ray.data.files import give_usual_mode
from rlir_ray.models.flow_streams import interpolate, two_streams
from rlir_ray.pretrain.device import open_device
from rlir_ray.pretrain.encode import window_starts
from rlir_ray.pretrain.finished import finished_report
from rlir_ray.pretrain.flow import FlowTraining
from rlir_ray.pretrain.loop import Loop, clip_gradients, cosine_rate
from rlir_ray.pretrain.warnings import loss_figures, world_model_warning
from rlir_ray.spaces.actions import Actions, exclusive_classes, no_action_classes

if TYPE_CHECKING:
    from rlir_ray.models.flow import FlowWorldModel


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LatentRecordings:
    """Recordings as latents [n, D, h, w], the classes of the actions int64 [n, 9] leading into each frame."""

    latents: npt.NDArray[np.floating[Any]]
    actions: npt.NDArray[np.int64]
    episode_starts: npt.NDArray[np.int64]

    def windows(self, starts: npt.NDArray[np.int64], num_frames: int) -> tuple[Tensor, Tensor]:
        """Latents float32 [B, W, D, h, w] and actions int64 [B, W, 9] of the windows that begin at `starts`."""
        rows = starts[:, None] + np.arange(num_frames)
        actions = self.actions[rows]
        # What led into a window's first frame is not known in a rollout either.
        actions[:, 0] = no_action_classes()
        return torch.from_numpy(self.latents[rows].astype(np.float32)), torch.from_numpy(actions)


def load_latents(path: Path | str) -> LatentRecordings:
    """Reads a file of `encode_recordings`; the action at index k leads into frame k."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"a file of latents must exist, got {path}; encode the recordings with an autoencoder first")
    with np.load(path, allow_pickle=False) as file:
        if "latents" not in file:
            raise ValueError(f"{path} must hold latents, got {sorted(file)}; encode with an autoencoder")
        latents, episode_starts = file["latents"], file["episode_starts"].astype(np.int64)
        actions = Actions(file["buttons"].astype(np.bool_), file["camera"].astype(np.float32))
    return LatentRecordings(latents, exclusive_classes(actions), episode_starts)


def train_flow(
    train: LatentRecordings, validation: LatentRecordings, out_dir: Path | str, settings: FlowTraining
) -> FlowWorldModel:
    """Trains a flow model; called again it goes on from its last checkpoint, and a finished one is left as it is.

    Args:
        train, validation: recordings as latents of one autoencoder.
        out_dir: receives the model, `curve.jsonl` and `training.json`, and `checkpoint.pt` until it is done.
        settings: see `FlowTraining`.

    Returns:
        The moving average of the weights, on the CPU, in evaluation mode.

    Raises:
        ValueError: no episode of a window's length, or a checkpoint or a finished training of other settings.
    """
    from rlir_ray.models.flow import open_flow_model

    out_dir = Path(out_dir)
    if finished := finished_report(out_dir, settings):
        _warn(finished["final"])
        return open_flow_model(out_dir)
    starts = window_starts(train.episode_starts, len(train.latents), settings.num_frames)
    device = open_device(settings.device)
    model = _start(settings, train.latents.shape[1:]).to(device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.average_decay))
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, (0.9, 0.95), weight_decay=settings.weight_decay, fused=True
    )
    loop = Loop("flow", out_dir, settings, {"model": model, "average": average, "optimizer": optimizer})

    def update(step: int, progress: float) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * cosine_rate(progress)
        rows = np.random.default_rng([settings.seed, step]).choice(starts, settings.batch_size)
        generator = torch.Generator().manual_seed(settings.seed + step)
        latents, actions = train.windows(rows, settings.num_frames)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = flow_loss(model, latents.to(device), actions.to(device), generator, settings)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(model, settings.max_grad_norm)
        optimizer.step()
        average.update_parameters(model)
        return {"loss": float(loss.detach())}

    final = loop.run(update, lambda: validate(average.module, validation, settings))
    kept: FlowWorldModel = average.module.to("cpu").eval()
    kept.save_pretrained(out_dir)
    give_usual_mode(out_dir)
    loop.finish(
        {
            "parameters": sum(weight.numel() for weight in kept.parameters()), "train_frames": len(train.latents),
            "windows_seen": loop.step * settings.batch_size, "final": final,
        }
    )  # fmt: skip
    _warn(final)
    return kept


def _warn(final: dict[str, float]) -> None:
    if warning := world_model_warning(final):
        logger.warning(warning)


def _start(settings: FlowTraining, latent_shape: tuple[int, ...]) -> FlowWorldModel:
    from rlir_ray.models.flow import FlowWorldModel, open_flow_model

    torch.manual_seed(settings.seed)
    if settings.init:
        model = open_flow_model(settings.init)
        if model.latent_shape != tuple(latent_shape):
            raise ValueError(
                f"the recordings must have latents of {model.latent_shape} as {settings.init}, got {latent_shape}; "
                "encode them with its autoencoder"
            )
        return model.train()
    channels, height, width = latent_shape
    return FlowWorldModel(
        latent_channels=channels, latent_height=height, latent_width=width, patch_size=settings.patch_size,
        hidden_size=settings.hidden_size, num_layers=settings.num_layers, num_heads=settings.num_heads,
    )  # fmt: skip


def flow_loss(
    model: FlowWorldModel, latents: Tensor, actions: Tensor, generator: torch.Generator, settings: FlowTraining
) -> Tensor:
    """Mean squared error of the velocities of all frames but the first; see `flow_losses`."""
    return flow_losses(model, latents, actions, generator, settings).mean()


def flow_losses(
    model: FlowWorldModel, latents: Tensor, actions: Tensor, generator: torch.Generator, settings: FlowTraining
) -> Tensor:
    """Mean squared error of the velocities of all frames but the first, of each window: float32 [B].

    Flow matching (https://arxiv.org/abs/2210.02747) with logit-normal levels (https://arxiv.org/abs/2403.03206).

    Args:
        model: the flow model.
        latents: float32 [B, W, D, h, w].
        actions: int64 [B, W, 9].
        generator: draws levels and noise, on the CPU.
        settings: gives their distributions.
    """

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like.device)

    past, frames = latents[:, :-1], latents[:, 1:]
    past_levels = torch.rand(past.shape[:2], generator=generator).to(past.device) * settings.history_noise
    levels = torch.sigmoid(draw(frames[:, :, 0, 0, 0]) * settings.level_std + settings.level_mean)
    noise = draw(frames)
    history = interpolate(past, draw(past), past_levels)
    velocities = two_streams(
        model, history, past_levels, actions[:, :-1], interpolate(frames, noise, levels)[:, :, None],
        levels[:, :, None], actions[:, 1:], first_place=1,
    )[:, :, 0]  # fmt: skip
    return (velocities - (noise - frames)).square().flatten(1).mean(1)


@torch.no_grad()
def validate(model: FlowWorldModel, recordings: LatentRecordings, settings: FlowTraining) -> dict[str, float]:
    """Held-out loss in float32, with the same levels and noise at each call.

    Returns:
        As `loss_figures`: `validation_loss`, and `validation_loss_wrong_actions` where each window has the actions of
        another one: what the actions tell is the difference.
    """
    starts = window_starts(recordings.episode_starts, len(recordings.latents), settings.num_frames)
    chosen = starts[np.linspace(0, len(starts) - 1, min(settings.num_validation, len(starts))).astype(np.int64)]
    latents, actions = recordings.windows(chosen, settings.num_frames)
    found = []
    for told in (actions, actions.roll(len(chosen) // 2, 0)):
        generator = torch.Generator().manual_seed(settings.seed)
        batches = zip(latents.split(32), told.split(32), strict=True)
        device = next(model.parameters()).device
        losses = [flow_losses(model, x.to(device), a.to(device), generator, settings) for x, a in batches]
        found.append(torch.cat(losses).cpu().numpy())
    return loss_figures(*found)
