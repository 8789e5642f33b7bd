"""Trains the frame tokenizer of a new world from its recordings.

An autoencoder first, then a codebook started by k-means and kept by moving averages. Knows nothing of actions.
Legend: N frames, C H W, h w grid, D size of a code.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rlir_ray.data.files import strict_json, write_json
from rlir_ray.models.tokenizer import FrameTokenizer, build_tokenizer
from rlir_ray.pretrain.codebook import CodeAverages
from rlir_ray.pretrain.device import open_device
from rlir_ray.pretrain.finished import FREE_SETTINGS, finished_report
from rlir_ray.pretrain.loop import clip_gradients
from rlir_ray.pretrain.pictures import Clips, draw_pairs, reconstruction_loss
from rlir_ray.pretrain.tokenizer import TokenizerTraining
from rlir_ray.pretrain.tokenizer_figures import evaluate_tokenizer, perplexity
from rlir_ray.run.progress import figure_words, progress_bar

logger = logging.getLogger(__name__)


# Another length would be another schedule.
FREE_TO_RESUME = tuple(name for name in FREE_SETTINGS if name not in ("minutes", "num_steps"))


@dataclass
class _State:
    """All that a checkpoint holds."""

    tokenizer: FrameTokenizer
    optimizer: torch.optim.AdamW
    averages: CodeAverages
    step: int = 0
    elapsed_s: float = 0.0
    quantized: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def train_tokenizer(
    clips: Clips, validation: npt.NDArray[np.uint8], out_dir: Path | str, settings: TokenizerTraining
) -> FrameTokenizer:
    """Trains a tokenizer and writes it with its held-out figures.

    Called again it goes on from its checkpoint; a finished one is left as it is.

    Args:
        clips: recordings, uint8 [F, H, W, 3] each, of one size, at least two frames long.
        validation: held-out frames, uint8 [N, H, W, 3].
        out_dir: receives the tokenizer (float16), `curve.jsonl`, `training.json` and, until it is done,
            `checkpoint.pt`.
        settings: see `TokenizerTraining`.

    Returns:
        The tokenizer as read back from `out_dir`.

    Raises:
        ValueError: no recordings, or a checkpoint or a finished training of other settings.
    """
    out_dir = Path(out_dir)
    if finished_report(out_dir, settings):
        return FrameTokenizer.from_pretrained(out_dir)
    clips = [clip for clip in clips if len(clip) >= 2]
    if not clips:
        raise ValueError(
            "a tokenizer trains on recordings of at least 2 frames, got none; make some with: "
            "python -m rlir_ray collect"
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    state = _start(clips[0].shape[1:3], settings)
    checkpoint = out_dir / "checkpoint.pt"
    if checkpoint.is_file():
        _resume(state, checkpoint)

    started = time.monotonic() - state.elapsed_s
    with (out_dir / "curve.jsonl").open("a", encoding="utf-8") as curve, progress_bar("tokenizer") as show:
        while (progress := _progress(state, settings)) < 1:
            frames = draw_pairs(clips, settings.batch_pairs, settings.seed, state.step)
            metrics = _train_step(state, frames, progress, settings)
            state.step += 1
            state.elapsed_s = time.monotonic() - started
            show(_progress(state, settings), f"loss {metrics['loss']}")
            if state.step % 20 == 0:
                line = {"step": state.step, "elapsed_s": round(state.elapsed_s, 1), **metrics}
                curve.write(strict_json(line) + "\n")
                curve.flush()
            if state.step % settings.checkpoint_every == 0:
                _save_checkpoint(state, checkpoint)
                logger.info("%3.0f %%, step %d: %s", 100 * progress, state.step, figure_words(metrics))

    logger.info("scoring on %d held-out frames", len(validation))
    # Held-out figures are those of the stored float16 weights, which is what users get.
    state.tokenizer.save_pretrained(out_dir, torch.float16)
    tokenizer = FrameTokenizer.from_pretrained(out_dir)
    figures = evaluate_tokenizer(tokenizer, validation)
    report = {
        "settings": state.settings, "steps": state.step, "elapsed_s": round(state.elapsed_s, 1),
        "train_frames": sum(map(len, clips)), "validation_frames": len(validation), "validation": figures,
    }  # fmt: skip
    write_json(out_dir / "training.json", report)
    checkpoint.unlink(missing_ok=True)
    logger.info("%s: %s", out_dir, figure_words(figures))
    return tokenizer


# ---------------------------------------------------------------------------------------------------------------------
# One step


def _train_step(state: _State, frames: Tensor, progress: float, settings: TokenizerTraining) -> dict[str, float | None]:
    tokenizer = state.tokenizer
    for group in state.optimizer.param_groups:
        group["lr"] = settings.lr * min(1.0, progress / 0.02 + 0.01) * 0.5 * (1 + math.cos(math.pi * progress))
    pixels = tokenizer.scale(frames)
    with torch.autocast(tokenizer.device.type, torch.bfloat16):
        latents = tokenizer.latents(pixels).float()
    if progress >= settings.unquantized_share and not state.quantized:
        state.averages.start(tokenizer.codebook, _vectors(latents.detach()), settings.seed)
        state.quantized = True
    commitment = latents.new_zeros(())
    inner = latents
    if state.quantized:
        tokens = tokenizer.nearest_codes(latents.detach())
        codes = tokenizer.lookup(tokens).detach()
        commitment = F.mse_loss(latents, codes)
        inner = latents + (codes - latents).detach()
        restart = progress < settings.restart_until and state.step % 10 == 0
        state.averages.follow(
            tokenizer.codebook, _vectors(latents.detach()), tokens.flatten(), settings.codebook_decay,
            restart_seed=settings.seed + state.step if restart else None,
        )  # fmt: skip
    with torch.autocast(tokenizer.device.type, torch.bfloat16):
        decoded = tokenizer.pixels(inner)
    reconstruction = reconstruction_loss(
        decoded.float(), pixels, squared_weight=settings.squared_weight, gradient_weight=settings.gradient_weight,
        change_weight=settings.change_weight,
    )  # fmt: skip
    loss = reconstruction + settings.commitment_weight * commitment
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    clip_gradients(tokenizer, 1.0)
    state.optimizer.step()
    # Pixels span 2, hence the peak 4 of the squared error.
    psnr = 10 * torch.log10(4 / (decoded.detach().float().clamp(-1, 1) - pixels).square().mean((1, 2, 3))).mean()
    return {
        "loss": round(loss.item(), 4), "commitment": round(commitment.item(), 5), "psnr": round(psnr.item(), 3),
        "perplexity": round(perplexity(state.averages.counts), 1) if state.quantized else None,
    }  # fmt: skip


def _vectors(latents: Tensor) -> Tensor:
    """[N, D, h, w] to [N * h * w, D]."""
    return latents.flatten(2).transpose(1, 2).flatten(0, 1)


# ---------------------------------------------------------------------------------------------------------------------
# State


def _start(size: tuple[int, ...], settings: TokenizerTraining) -> _State:
    device = open_device(settings.device)
    torch.manual_seed(settings.seed)
    tokenizer = build_tokenizer(
        height=size[0], width=size[1], num_codes=settings.num_codes, code_size=settings.code_size,
        block_channels=settings.block_channels, pixel_unshuffle=settings.pixel_unshuffle,
        norm_groups=settings.norm_groups,
    ).to(device).train()  # fmt: skip
    # The moving averages own the codebook; the optimiser must not touch it.
    tokenizer.codebook.requires_grad_(False)
    weights = [weight for weight in tokenizer.parameters() if weight.requires_grad]
    return _State(
        tokenizer=tokenizer,
        optimizer=torch.optim.AdamW(weights, lr=settings.lr, betas=(0.9, 0.99), weight_decay=1e-4),
        averages=CodeAverages(
            counts=torch.zeros(settings.num_codes, device=device),
            sums=torch.zeros(settings.num_codes, settings.code_size, device=device),
        ),
        settings=json.loads(json.dumps(asdict(settings))),
    )


def _progress(state: _State, settings: TokenizerTraining) -> float:
    if settings.minutes:
        return state.elapsed_s / (60 * settings.minutes)
    return state.step / settings.num_steps


def _save_checkpoint(state: _State, path: Path) -> None:
    kept = {name: getattr(state, name) for name in ("step", "elapsed_s", "quantized", "settings")}
    kept["averages"] = asdict(state.averages)
    kept["tokenizer"], kept["optimizer"] = state.tokenizer.state_dict(), state.optimizer.state_dict()
    torch.save(kept, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def _resume(state: _State, path: Path) -> None:
    kept = torch.load(path, weights_only=True, map_location=state.tokenizer.device)
    held, asked = kept.pop("settings"), state.settings
    changed = sorted(name for name in asked if name not in FREE_TO_RESUME and held.get(name) != asked[name])
    if changed:
        raise ValueError(f"{path} was made with another {', '.join(changed)}; repeat them or choose another folder")
    state.tokenizer.load_state_dict(kept.pop("tokenizer"))
    state.optimizer.load_state_dict(kept.pop("optimizer"))
    state.averages = CodeAverages(**kept.pop("averages"))
    for name, value in kept.items():
        setattr(state, name, value)
    logger.info("going on from step %d of %s", state.step, path)
