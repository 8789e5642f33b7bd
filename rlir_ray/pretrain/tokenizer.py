"""Trains the frame tokenizer of a new world from its recordings.

An autoencoder first, then a codebook started by k-means and kept by moving averages. Knows nothing of actions.
Legend: N frames, C H W, h w grid, D size of a code.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlir_ray.data.files import Json
from rlir_ray.models.tokenizer import FrameTokenizer, build_tokenizer
from rlir_ray.pretrain.arguments import Chosen
from rlir_ray.pretrain.codebook import CodeAverages
from rlir_ray.pretrain.encode import encode_splits, read_splits
from rlir_ray.pretrain.loop import train
from rlir_ray.pretrain.pictures import Clips, draw_pairs, long_enough, picture_figures, reconstruction_loss
from rlir_ray.pretrain.settings import TokenizerTraining
from rlir_ray.pretrain.state import finished_report
from rlir_ray.pretrain.task import Autocast, Every, Length, Progress, Task
from rlir_ray.run.progress import figure_words

logger = logging.getLogger(__name__)

CURVE_STEPS = 20


def train_tokenizer(
    clips: Clips, validation: npt.NDArray[np.uint8], out_dir: Path | str, settings: TokenizerTraining
) -> FrameTokenizer:
    """Train a tokenizer and write it with its held-out figures.

    Resume from the last saved state, and leave a finished training as it is.

    Args:
        clips: recordings, uint8 [F, H, W, 3] each, of one size, at least two frames long.
        validation: held-out frames, uint8 [N, H, W, 3].
        out_dir: receives the tokenizer (float16), `curve.jsonl`, `training.json` and, until it is done, `state-*`.
        settings: see `TokenizerTraining`.

    Returns:
        The tokenizer as read back from `out_dir`.

    Raises:
        ValueError: no recordings, or a saved state or a finished training of other settings.
    """
    out_dir = Path(out_dir)
    if not finished_report(out_dir, settings):
        train(TokenizerTask(clips, validation, settings), out_dir)
    return FrameTokenizer.from_pretrained(out_dir)


class TokenizerTask(Task):
    """A tokenizer on pairs of neighbouring frames, without its codebook for a first share of the training."""

    name = "tokenizer"
    model: FrameTokenizer

    def __init__(self, clips: Clips, validation: npt.NDArray[np.uint8], settings: TokenizerTraining) -> None:
        self.clips, self.validation = long_enough(clips, "a tokenizer"), validation
        torch.manual_seed(settings.seed)
        height, width = self.clips[0].shape[1:3]
        model = build_tokenizer(
            height=height,
            width=width,
            num_codes=settings.num_codes,
            code_size=settings.code_size,
            block_channels=settings.block_channels,
            pixel_unshuffle=settings.pixel_unshuffle,
            norm_groups=settings.norm_groups,
        ).train()
        # The moving averages own the codebook; the optimiser must not touch it.
        model.codebook.requires_grad_(False)
        self.averages = CodeAverages(settings.num_codes, settings.code_size)
        super().__init__(
            settings,
            model,
            length=Length.of(settings),
            curve_every=Every(steps=CURVE_STEPS),
            save_every=Every(steps=settings.checkpoint_every),
            device=settings.device,
        )

    def parts(self) -> dict[str, nn.Module]:
        return {"model": self.model, "averages": self.averages}

    def build_optimizer(self) -> torch.optim.Optimizer:
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        return torch.optim.AdamW(weights, lr=self.settings.lr, betas=(0.9, 0.99), weight_decay=1e-4)

    def learning_rate(self, share: float) -> float:
        return float(self.settings.lr * min(1.0, share / 0.02 + 0.01) * 0.5 * (1 + math.cos(math.pi * share)))

    def loss(self, progress: Progress, autocast: Autocast) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        settings = self.settings
        pixels = self.model.scale(draw_pairs(self.clips, settings.batch_pairs, settings.seed, progress.step))
        with autocast():
            latents = self.model.latents(pixels).float()
        quantized, commitment = self._quantize(latents, progress)
        with autocast():
            decoded = self.model.pixels(quantized)
        reconstruction = reconstruction_loss(
            decoded.float(),
            pixels,
            squared_weight=settings.squared_weight,
            gradient_weight=settings.gradient_weight,
            change_weight=settings.change_weight,
        )
        # Pixels span 2, hence the peak 4 of the squared error.
        error = (decoded.detach().float().clamp(-1, 1) - pixels).square().mean((1, 2, 3))
        metrics: dict[str, Tensor | float] = {
            "commitment": commitment.detach(),
            "psnr": 10 * torch.log10(4 / error).mean(),
        }
        if self.averages.started:
            metrics["perplexity"] = perplexity(self.averages.counts)
        return reconstruction + settings.commitment_weight * commitment, metrics

    def _quantize(self, latents: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        """Return the latents' codes, with the latents' gradients, and the commitment loss; move the codebook."""
        settings, model, averages = self.settings, self.model, self.averages
        if not averages.started:
            if progress.share < settings.unquantized_share:
                return latents, latents.new_zeros(())
            averages.start(model.codebook, _vectors(latents.detach()), settings.seed)
        tokens = model.nearest_codes(latents.detach())
        codes = model.lookup(tokens).detach()
        restart = progress.share < settings.restart_until and progress.step % 10 == 0
        averages.follow(
            model.codebook,
            _vectors(latents.detach()),
            tokens.flatten(),
            settings.codebook_decay,
            restart_seed=settings.seed + progress.step if restart else None,
        )
        return latents + (codes - latents).detach(), F.mse_loss(latents, codes)

    def save(self, folder: Path, final: Json, steps: int, elapsed_s: float) -> Json:
        # Held-out figures are those of the stored float16 weights, which is what users get.
        self.model.save_pretrained(folder, torch.float16)
        figures = evaluate_tokenizer(FrameTokenizer.from_pretrained(folder), self.validation)
        logger.info("%s: %s", folder, figure_words(figures))
        frames = {"train_frames": sum(map(len, self.clips)), "validation_frames": len(self.validation)}
        return {**frames, "validation": figures}


def _vectors(latents: Tensor) -> Tensor:
    """[N, D, h, w] to [N * h * w, D]."""
    return latents.flatten(2).transpose(1, 2).flatten(0, 1)


def evaluate_tokenizer(tokenizer: FrameTokenizer, frames: npt.NDArray[np.uint8]) -> dict[str, float]:
    """What encoding and decoding does to pictures.

    Args:
        tokenizer: anything with `encode`, `decode` and `num_codes`.
        frames: uint8 [N, H, W, 3].

    Returns:
        `psnr` (dB, mean over frames), `codes_used` (share of the codebook chosen at least once), `perplexity` (of the
        choice of codes), `brightness` and `brightness_real` (mean of the pixels, 0..255), `sharpness_ratio` (mean
        absolute image gradient over the real one; below 1 is blurred).
    """
    real = torch.from_numpy(np.ascontiguousarray(frames))
    tokens = tokenizer.encode(real)
    decoded = tokenizer.decode(tokens)
    counts = torch.bincount(tokens.flatten(), minlength=tokenizer.num_codes)
    return {
        **picture_figures(decoded, real),
        "codes_used": float((counts > 0).double().mean()),
        "perplexity": perplexity(counts),
    }


def perplexity(counts: Tensor) -> float:
    """How many codes the choice spreads over, as if evenly; counts [K]."""
    share = counts.double() / counts.sum()
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))


def run_command(chosen: Chosen, settings: TokenizerTraining) -> None:
    """Train on the recordings that `pretrain tokenizer` was given, and encode them."""
    recordings = read_splits(chosen["data"], chosen["action_shift"])
    clips = {split: [one.frames for one in recorded] for split, recorded in recordings.items()}
    tokenizer = train_tokenizer(clips["train"], np.concatenate(clips["validation"]), chosen["out"], settings)
    if chosen["tokens"]:
        encode_splits(tokenizer, recordings, chosen["tokens"])
