"""Training of a world's frame autoencoder on recordings; actions are not used.

Legend: N frames, D channels of a latent, H W pixels, h w grid.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.data.files import Json
from rlir_ray.models.autoencoder import FrameAutoencoder, build_autoencoder
from rlir_ray.pretrain.arguments import Chosen, read_chosen
from rlir_ray.pretrain.encode import encode_splits
from rlir_ray.pretrain.loop import train
from rlir_ray.pretrain.reconstruction import (
    Clips,
    draw_pairs,
    drop_short_clips,
    reconstruction_loss,
    reconstruction_metrics,
)
from rlir_ray.pretrain.settings import AutoencoderTraining
from rlir_ray.pretrain.state import finished_report
from rlir_ray.pretrain.task import Autocast, Every, Length, Progress, Task, cosine_rate
from rlir_ray.run.progress import figure_words

logger = logging.getLogger(__name__)

# Number of held-out frames for the curve, and of training frames for the scale of the latents: enough for stable means.
NUM_CURVE, NUM_SCALED = 512, 4096


def train_autoencoder(
    clips: Clips, validation: npt.NDArray[np.uint8], out_dir: Path | str, settings: AutoencoderTraining
) -> FrameAutoencoder:
    """Train an autoencoder, and write the model and its held-out metrics.

    Resume from the last saved state, and leave a finished training as it is.

    Args:
        clips: recordings, uint8 [F, H, W, 3] each, of one size, at least two frames long.
        validation: held-out frames, uint8 [N, H, W, 3].
        out_dir: receives the autoencoder (float16), `curve.jsonl`, `training.json` and, until it is done, `state-*`.
        settings: see `AutoencoderTraining`.

    Returns:
        The autoencoder as read back from `out_dir`.

    Raises:
        ValueError: there are no recordings, or the folder holds a state or a training of other settings.
    """
    out_dir = Path(out_dir)
    if not finished_report(out_dir, settings):
        train(AutoencoderTask(clips, validation, settings), out_dir)
    return FrameAutoencoder.from_pretrained(out_dir)


class AutoencoderTask(Task):
    """Training task: an autoencoder on pairs of neighbouring frames."""

    name = "autoencoder"
    model: FrameAutoencoder

    def __init__(self, clips: Clips, validation: npt.NDArray[np.uint8], settings: AutoencoderTraining) -> None:
        self.clips, self.validation = drop_short_clips(clips, "an autoencoder"), validation
        torch.manual_seed(settings.seed)
        height, width = self.clips[0].shape[1:3]
        model = build_autoencoder(
            height=height,
            width=width,
            latent_channels=settings.latent_channels,
            norm_groups=settings.norm_groups,
            block_channels=settings.block_channels,
            pixel_unshuffle=settings.pixel_unshuffle,
        ).train()
        every = Every(seconds=settings.evaluate_every_s)
        super().__init__(
            settings, model, length=Length.of(settings), curve_every=every, save_every=every, device=settings.device
        )

    def build_optimizer(self) -> torch.optim.Optimizer:
        rate = self.settings.learning_rate
        return torch.optim.AdamW(self.model.parameters(), rate, (0.9, 0.99), weight_decay=1e-4)

    def learning_rate(self, share: float) -> float:
        return float(self.settings.learning_rate * cosine_rate(share, least=0.01))

    def loss(self, progress: Progress, autocast: Autocast) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        settings = self.settings
        torch.manual_seed(settings.seed + progress.step)  # the sample of the posterior depends on the step only
        pixels = self.model.scale(draw_pairs(self.clips, settings.batch_pairs, settings.seed, progress.step))
        with autocast():
            posterior = self.model.posterior(pixels)
            decoded = self.model.pixels(posterior.sample()).float()
        reconstruction = reconstruction_loss(
            decoded,
            pixels,
            squared_weight=settings.squared_weight,
            gradient_weight=settings.gradient_weight,
            change_weight=settings.change_weight,
        )
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        return reconstruction + settings.kl_weight * divergence, {"kl": divergence.detach()}

    def evaluate(self) -> Json:
        return {"validation_psnr": evaluate_autoencoder(self.model, _spread(self.validation, NUM_CURVE))["psnr"]}

    def save(self, folder: Path, final: Json, steps: int, elapsed_s: float) -> Json:
        _set_scale(self.model, self.clips)
        # Evaluate the stored float16 weights, because users load those.
        self.model.save_pretrained(folder, torch.float16)
        figures = evaluate_autoencoder(FrameAutoencoder.from_pretrained(folder), self.validation)
        logger.info("%s: %s", folder, figure_words(figures))
        frames = {"train_frames": sum(map(len, self.clips)), "validation_frames": len(self.validation)}
        return {**frames, "validation": figures}


def run_command(chosen: Chosen, settings: AutoencoderTraining) -> None:
    """Run `pretrain autoencoder`: train on recordings, then encode them if asked to."""
    recordings = read_chosen(chosen)
    clips = {split: [one.frames for one in recorded] for split, recorded in recordings.items()}
    held_out = np.concatenate(clips["validation"])
    autoencoder = train_autoencoder(clips["train"], held_out, chosen["out"], settings)
    if chosen["latents"]:
        encode_splits(autoencoder, recordings, chosen["latents"])


def _set_scale(model: FrameAutoencoder, clips: Clips) -> None:
    """Set the mean and standard deviation of each latent channel, over the training recordings."""
    model.set_scale(torch.zeros(1), torch.ones(1))
    share = min(1.0, NUM_SCALED / sum(map(len, clips)))
    frames = np.concatenate([_spread(clip, max(1, round(share * len(clip)))) for clip in clips])
    latents = model.eval().encode(torch.from_numpy(frames))  # [N, D, h, w]
    model.set_scale(latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    model.to("cpu")


def _spread(frames: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.uint8]:
    return frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).astype(np.int64)]


def evaluate_autoencoder(model: FrameAutoencoder, frames: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Compute `reconstruction_metrics` of frames uint8 [N, H, W, 3] that are encoded and decoded."""
    real = torch.from_numpy(np.ascontiguousarray(frames))
    return reconstruction_metrics(model.decode(model.encode(real)).cpu(), real)
