"""Picture quality of videos: figures of a video itself, and figures against the real video. Needs no weights.

Legend: P clips (one for each prompt), B clips of one call, C context frames, F generated frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.data.files import Json
from rlir_ray.rewards.frame_figures import FRAME_FIGURES

# The PSNR of two equal frames is infinite.
MAX_PSNR = 100.0
# Mean change of a pixel, out of 255, below which a frame repeats the frame before.
REPEATED = 0.5
# Half of SSIM's window of 11 pixels.
BORDER = 5


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Figures of each clip, float64 [P], over its generated frames; pixels in 0..255."""

    brightness: npt.NDArray[np.float64]
    """Mean pixel."""
    sharpness: npt.NDArray[np.float64]
    """Mean absolute difference of a pixel's gray value to its right and its lower neighbour; blur lowers it."""
    motion: npt.NDArray[np.float64]
    """Mean absolute difference to the previous frame; 0 for a still clip."""
    psnr: npt.NDArray[np.float64] | None = None
    """Decibels against the real clip's frames; None: the clips have other commands than the real clips."""
    ssim: npt.NDArray[np.float64] | None = None
    """Structural similarity against the real clip's frames, -1..1; None as for `psnr`."""
    repeated: npt.NDArray[np.float64] | None = None
    """Share of the frames that repeat the frame before; None: an evaluation of an earlier version."""

    def mean(self, figure: str) -> float | None:
        values = getattr(self, figure)
        return None if values is None else float(values.mean())

    def to_json(self) -> dict[str, object]:
        """Return ``{figure: {"mean", "clips": [P]}}``, with null for a missing figure."""
        found: dict[str, object] = {}
        for figure in FIGURES:
            values = getattr(self, figure)
            found[figure] = None if values is None else {"mean": self.mean(figure), "clips": values.tolist()}
        return found

    @classmethod
    def from_json(cls, content: Json) -> Quality:
        # JSON holds null for a number that is not finite; numpy reads null as NaN.
        clips = {figure: part and np.array(part["clips"], np.float64) for figure, part in content.items()}
        return cls(**clips)


FIGURES = tuple(entry.name for entry in fields(Quality))


def clip_quality(frames: Tensor, num_frames: int, real: Tensor | None = None) -> Quality:
    """Compute the quality of clips.

    Args:
        frames: uint8 [B, C + F, H, W, 3].
        num_frames: F; of the context only the last frame counts, for the motion of the first generated frame.
        real: the recorded clips, of the same shape; None: leave PSNR and SSIM out.
    """
    figures = {name: figure(frames, num_frames).mean(1) for name, figure in FRAME_FIGURES.items()}
    figures["repeated"] = (FRAME_FIGURES["motion"](frames, num_frames) < REPEATED).float().mean(1)
    if real is not None:
        figures |= _against(frames[:, -num_frames:].float(), real[:, -num_frames:].float())
    return Quality(**{figure: values.double().numpy() for figure, values in figures.items()})


def _mean(values: Tensor) -> Tensor:
    """Average [B, ...] over all but the first dimension, to [B]."""
    return values.flatten(1).mean(1)


def _against(generated: Tensor, real: Tensor) -> dict[str, Tensor]:
    """Compute the mean PSNR and SSIM over the frames of each clip: float [B, F, H, W, 3] to [B]."""
    # torchmetrics takes seconds to import.
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    ours, theirs = (clips.flatten(0, 1).movedim(-1, 1) for clips in (generated, real))
    psnr = peak_signal_noise_ratio(ours, theirs, data_range=255.0, reduction="none", dim=(1, 2, 3))
    ssim = torch.as_tensor(structural_similarity_index_measure(ours, theirs, data_range=255.0, reduction="none"))
    num_clips = len(generated)
    return {"psnr": _mean(psnr.clamp(max=MAX_PSNR).view(num_clips, -1)), "ssim": _mean(ssim.view(num_clips, -1))}


def inner_ssim(generated: Tensor, real: Tensor) -> Tensor:
    """Compute the SSIM of clips as the published evaluators do, without the windows that cross the border.

    Args:
        generated, real: uint8 [B, F, H, W, 3]. If a side has 10 pixels or less, all windows count.

    Returns:
        float64 [B], means over the frames.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    ours, theirs = (clips.flatten(0, 1).movedim(-1, 1).double() for clips in (generated, real))
    _, whole = structural_similarity_index_measure(ours, theirs, data_range=255.0, return_full_image=True)
    inner = torch.as_tensor(whole)[..., BORDER:-BORDER, BORDER:-BORDER]
    kept = inner if inner.numel() else torch.as_tensor(whole)
    return _mean(kept.flatten(1).mean(1).view(len(generated), -1))


def join_quality(parts: Sequence[Quality]) -> Quality:
    """Join the clips of several parts; a figure that one part lacks is missing from the result."""
    joined: dict[str, Any] = {}  # only some of the figures may be None
    for figure in FIGURES:
        values = [getattr(part, figure) for part in parts]
        joined[figure] = None if any(value is None for value in values) else np.concatenate(values)
    return Quality(**joined)
