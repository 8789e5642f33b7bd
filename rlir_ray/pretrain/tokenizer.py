"""Training of a world's frame tokenizer on recordings; actions are not used.

The tokenizer starts as a plain autoencoder. Later k-means initializes a codebook, which moving averages update.
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
from rlir_ray.pretrain.arguments import Chosen, read_chosen
from rlir_ray.pretrain.codebook import CodebookAverages
from rlir_ray.pretrain.encode import encode_splits
from rlir_ray.pretrain.loop import train
from rlir_ray.pretrain.reconstruction import (
    Clips,
    draw_pairs,
    drop_short_clips,
    reconstruction_loss,
    reconstruction_metrics,
)
from rlir_ray.pretrain.settings import TokenizerTraining
from rlir_ray.pretrain.state import finished_report
from rlir_ray.pretrain.task import Autocast, Every, Length, Progress, Task
from rlir_ray.run.progress import figure_words

logger = logging.getLogger(__name__)

CURVE_STEPS = 20


def train_tokenizer(
    clips: Clips, validation: npt.NDArray[np.uint8], out_dir: Path | str, settings: TokenizerTraining
) -> FrameTokenizer:
    """Train a tokenizer, and write the model and its held-out metrics.

    Resume from the last saved state, and leave a finished training as it is.

    Args:
        clips: recordings, uint8 [F, H, W, 3] each, of one size, at least two frames long.
        validation: held-out frames, uint8 [N, H, W, 3].
        out_dir: receives the tokenizer (float16), `curve.jsonl`, `training.json` and, until it is done, `state-*`.
        settings: see `TokenizerTraining`.

    Returns:
        The tokenizer as read back from `out_dir`.

    Raises:
        ValueError: there are no recordings, or the folder holds a state or a training of other settings.
    """
    out_dir = Path(out_dir)
    if not finished_report(out_dir, settings):
        train(TokenizerTask(clips, validation, settings), out_dir)
    return FrameTokenizer.from_pretrained(out_dir)


class TokenizerTask(Task):
    """Training task: a tokenizer on pairs of neighbouring frames; the first part of the training has no codebook."""

    name = "tokenizer"
    model: FrameTokenizer

    def __init__(self, clips: Clips, validation: npt.NDArray[np.uint8], settings: TokenizerTraining) -> None:
        self.clips, self.validation = drop_short_clips(clips, "a tokenizer"), validation
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
        # The moving averages define the codebook, so that the optimizer must not change it.
        model.codebook.requires_grad_(False)
        self.averages = CodebookAverages(settings.num_codes, settings.code_size)
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
        return torch.optim.AdamW(weights, lr=self.settings.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)

    def learning_rate(self, share: float) -> float:
        rate = self.settings.learning_rate
        return float(rate * min(1.0, share / 0.02 + 0.01) * 0.5 * (1 + math.cos(math.pi * share)))

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
        # Pixels lie in [-1, 1]: the largest squared error is 4.
        error = (decoded.detach().float().clamp(-1, 1) - pixels).square().mean((1, 2, 3))
        metrics: dict[str, Tensor | float] = {
            "commitment": commitment.detach(),
            "psnr": 10 * torch.log10(4 / error).mean(),
        }
        if self.averages.started:
            metrics["perplexity"] = perplexity(self.averages.counts)
        return reconstruction + settings.commitment_weight * commitment, metrics

    def _quantize(self, latents: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        """Quantize latents and update the codebook; return codes with the latents' gradient and the commitment loss."""
        settings, model, averages = self.settings, self.model, self.averages
        if not averages.started:
            if progress.share < settings.unquantized_share:
                return latents, latents.new_zeros(())
            averages.start(model.codebook, _vectors(latents.detach()), settings.seed)
        tokens = model.nearest_codes(latents.detach())
        codes = model.lookup(tokens).detach()
        restart = progress.share < settings.restart_until and progress.step % 10 == 0
        averages.update(
            model.codebook,
            _vectors(latents.detach()),
            tokens.flatten(),
            settings.codebook_decay,
            restart_seed=settings.seed + progress.step if restart else None,
        )
        return latents + (codes - latents).detach(), F.mse_loss(latents, codes)

    def save(self, folder: Path, final: Json, steps: int, elapsed_s: float) -> Json:
        # Evaluate the stored float16 weights, because users load those.
        self.model.save_pretrained(folder, torch.float16)
        figures = evaluate_tokenizer(FrameTokenizer.from_pretrained(folder), self.validation)
        logger.info("%s: %s", folder, figure_words(figures))
        frames = {"train_frames": sum(map(len, self.clips)), "validation_frames": len(self.validation)}
        return {**frames, "validation": figures}


def _vectors(latents: Tensor) -> Tensor:
    """Reshape [N, D, h, w] to [N * h * w, D]."""
    return latents.flatten(2).transpose(1, 2).flatten(0, 1)


def evaluate_tokenizer(tokenizer: FrameTokenizer, frames: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Compute metrics of frames that are encoded and decoded.

    Args:
        tokenizer: an object with `encode`, `decode` and `num_codes`.
        frames: uint8 [N, H, W, 3].

    Returns:
        `psnr` (dB, mean over frames), `codes_used` (share of the codes that are chosen at least once), `perplexity` (of
        the chosen codes), `brightness` and `brightness_real` (mean of the pixels, 0..255), `sharpness_ratio` (mean
        absolute image gradient over the real one; below 1 is blurred).
    """
    real = torch.from_numpy(np.ascontiguousarray(frames))
    tokens = tokenizer.encode(real)
    decoded = tokenizer.decode(tokens)
    counts = torch.bincount(tokens.flatten(), minlength=tokenizer.num_codes)
    return {
        **reconstruction_metrics(decoded, real),
        "codes_used": float((counts > 0).double().mean()),
        "perplexity": perplexity(counts),
    }


def perplexity(counts: Tensor) -> float:
    """Compute the perplexity of the chosen codes: the number of codes if all were chosen equally often; counts [K]."""
    share = counts.double() / counts.sum()
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))


def run_command(chosen: Chosen, settings: TokenizerTraining) -> None:
    """Run `pretrain tokenizer`: train on recordings, then encode them if asked to."""
    recordings = read_chosen(chosen)
    clips = {split: [one.frames for one in recorded] for split, recorded in recordings.items()}
    tokenizer = train_tokenizer(clips["train"], np.concatenate(clips["validation"]), chosen["out"], settings)
    if chosen["tokens"]:
        encode_splits(tokenizer, recordings, chosen["tokens"])
