"""Trains the frame autoencoder of a new world from its recordings. Knows nothing of actions.

Legend: N frames, D channels of a latent, H W pixels, h w grid.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.models.autoencoder import FrameAutoencoder, build_autoencoder
from rlir_ray.pretrain.autoencoder import AutoencoderTraining
from rlir_ray.pretrain.device import open_device
from rlir_ray.pretrain.finished import finished_report
from rlir_ray.pretrain.loop import Loop, clip_gradients, cosine_rate
from rlir_ray.pretrain.pictures import Clips, draw_pairs, picture_figures, reconstruction_loss
from rlir_ray.run.progress import figure_words

logger = logging.getLogger(__name__)

# Held-out frames for the curve, and frames of the training recordings for the scale of the latents.
NUM_CURVE, NUM_SCALED = 512, 4096


def train_autoencoder(
    clips: Clips, validation: npt.NDArray[np.uint8], out_dir: Path | str, settings: AutoencoderTraining
) -> FrameAutoencoder:
    """Trains an autoencoder and writes it with its held-out figures.

    Called again it goes on from its checkpoint; a finished one is left as it is.

    Args:
        clips: recordings, uint8 [F, H, W, 3] each, of one size, at least two frames long.
        validation: held-out frames, uint8 [N, H, W, 3].
        out_dir: receives the autoencoder (float16), `curve.jsonl`, `training.json` and, until it is done,
            `checkpoint.pt`.
        settings: see `AutoencoderTraining`.

    Returns:
        The autoencoder as read back from `out_dir`.

    Raises:
        ValueError: no recordings, or a checkpoint or a finished training of other settings.
    """
    out_dir = Path(out_dir)
    if finished_report(out_dir, settings):
        return FrameAutoencoder.from_pretrained(out_dir)
    clips = [clip for clip in clips if len(clip) >= 2]
    if not clips:
        raise ValueError(
            "an autoencoder trains on recordings of at least 2 frames, got none; make some with: "
            "python -m rlir_ray collect"
        )
    torch.manual_seed(settings.seed)
    height, width = clips[0].shape[1:3]
    model = build_autoencoder(
        height=height, width=width, latent_channels=settings.latent_channels, block_channels=settings.block_channels,
        norm_groups=settings.norm_groups, pixel_unshuffle=settings.pixel_unshuffle,
    ).train()  # fmt: skip
    model.to(open_device(settings.device))
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, (0.9, 0.99), weight_decay=1e-4)
    loop = Loop("autoencoder", out_dir, settings, {"model": model, "optimizer": optimizer})

    def update(step: int, progress: float) -> dict[str, float]:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * cosine_rate(progress, least=0.01)
        torch.manual_seed(settings.seed + step)  # the posterior is drawn from
        return _update(model, optimizer, draw_pairs(clips, settings.batch_pairs, settings.seed, step), settings)

    loop.run(update, lambda: {"validation_psnr": evaluate_autoencoder(model, _spread(validation, NUM_CURVE))["psnr"]})
    _set_scale(model, clips)
    # Held-out figures are those of the stored float16 weights, which is what users get.
    model.save_pretrained(out_dir, torch.float16)
    stored = FrameAutoencoder.from_pretrained(out_dir)
    figures = evaluate_autoencoder(stored, validation)
    logger.info("%s: %s", out_dir, figure_words(figures))
    loop.finish(
        {
            "train_frames": sum(map(len, clips)), "validation_frames": len(validation), "validation": figures,
        }
    )  # fmt: skip
    return stored


def _update(
    model: FrameAutoencoder, optimizer: torch.optim.Optimizer, frames: Tensor, settings: AutoencoderTraining
) -> dict[str, float]:
    pixels = model.scale(frames)
    with torch.autocast(pixels.device.type, torch.bfloat16):
        posterior = model.posterior(pixels)
        decoded = model.pixels(posterior.sample()).float()
    reconstruction = reconstruction_loss(
        decoded, pixels, squared_weight=settings.squared_weight, gradient_weight=settings.gradient_weight,
        change_weight=settings.change_weight,
    )  # fmt: skip
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    loss = reconstruction + settings.kl_weight * divergence
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    clip_gradients(model, 1.0)
    optimizer.step()
    return {"loss": float(loss.detach()), "kl": float(divergence.detach())}


def _set_scale(model: FrameAutoencoder, clips: Clips) -> None:
    """The mean and standard deviation of each latent channel over the training recordings."""
    model.set_scale(torch.zeros(1), torch.ones(1))
    share = min(1.0, NUM_SCALED / sum(map(len, clips)))
    frames = np.concatenate([_spread(clip, max(1, round(share * len(clip)))) for clip in clips])
    latents = model.eval().encode(torch.from_numpy(frames))  # [N, D, h, w]
    model.set_scale(latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    model.to("cpu")


def _spread(frames: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.uint8]:
    return frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).astype(np.int64)]


def evaluate_autoencoder(model: FrameAutoencoder, frames: npt.NDArray[np.uint8]) -> dict[str, float]:
    """What encoding and decoding does to pictures uint8 [N, H, W, 3]; see `picture_figures`."""
    real = torch.from_numpy(np.ascontiguousarray(frames))
    return picture_figures(model.decode(model.encode(real)).cpu(), real)
