"""Picture quality of videos, alone and against the real ones. Needs no weights.

Legend: B clips, C context frames, F generated frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

# Two equal frames would have no finite PSNR.
MAX_PSNR = 100.0


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Means over the generated frames of a set of clips, pixels in 0..255."""

    brightness: float
    """Mean pixel."""
    sharpness: float
    """Mean absolute difference of neighbouring pixels, right and below, of the three-channel mean: falls with blur."""
    motion: float
    """Mean absolute difference to the frame before; a still clip has 0."""
    psnr: float | None = None
    """Decibels against the real clip's frames; None where the clip did not follow the real one's actions."""
    ssim: float | None = None
    """Structural similarity against the real clip's frames, -1..1; None as for `psnr`."""


def clip_quality(frames: Tensor, num_frames: int, real: Tensor | None = None) -> Quality:
    """Quality of some clips.

    Args:
        frames: uint8 [B, C + F, H, W, 3].
        num_frames: F; the context counts only as the frame before the first generated one.
        real: the recorded clips, of the same shape; None leaves PSNR and SSIM out.
    """
    generated = frames[:, -num_frames:].float()
    before = frames[:, -num_frames - 1 : -1].float()
    gray = generated.mean(-1)  # [B, F, H, W]
    steps = (gray.diff(dim=-1).abs().mean() + gray.diff(dim=-2).abs().mean()) / 2
    psnr, ssim = (None, None) if real is None else _against(generated, real[:, -num_frames:].float())
    return Quality(
        brightness=float(generated.mean()),
        sharpness=float(steps),
        motion=float((generated - before).abs().mean()),
        psnr=psnr,
        ssim=ssim,
    )


def _against(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """PSNR and SSIM of each frame, averaged over frames; float [B, F, H, W, 3]."""
    # torchmetrics takes seconds to import.
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    ours, theirs = (clips.flatten(0, 1).movedim(-1, 1) for clips in (generated, real))
    psnr = peak_signal_noise_ratio(ours, theirs, data_range=255.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(ours, theirs, data_range=255.0)
    return float(psnr.clamp(max=MAX_PSNR).mean()), float(torch.as_tensor(ssim))


def mean_quality(parts: Sequence[Quality], sizes: Sequence[int]) -> Quality:
    """Means over parts of a set, weighted by their number of clips."""
    rows = [asdict(part) for part in parts]
    means: dict[str, Any] = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        weighted = [value * size for value, size in zip(values, sizes, strict=True) if value is not None]
        means[key] = sum(weighted) / sum(sizes) if len(weighted) == len(values) else None
    return Quality(**means)
