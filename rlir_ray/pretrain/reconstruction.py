"""Reconstruction of frames by tokenizers and autoencoders: training pairs, loss and metrics. Independent of models.

Legend: N frames, C H W.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Clips = Sequence[npt.NDArray[np.uint8]]
"""Recordings, uint8 [F, H, W, 3] each."""


def drop_short_clips(clips: Clips, trained: str) -> Clips:
    """Return the clips of two frames or more.

    Args:
        trained: name of the trained model, for the error.

    Raises:
        ValueError: no clip has two frames.
    """
    if found := [clip for clip in clips if len(clip) >= 2]:
        return found
    raise ValueError(
        f"{trained} trains on recordings of at least 2 frames, got none; make some with: python -m rlir_ray collect"
    )


def draw_pairs(clips: Clips, num_pairs: int, seed: int, step: int) -> Tensor:
    """Draw pairs of neighbouring frames: first frames, then following frames, uint8 [2 * num_pairs, H, W, 3].

    The pairs depend on seed and step only, so that a resumed training draws the same pairs.
    """
    ends = np.cumsum([len(clip) - 1 for clip in clips])
    picks = np.random.default_rng([seed, step]).integers(ends[-1], size=num_pairs)
    which = np.searchsorted(ends, picks, side="right")
    places = [(int(w), int(p - (ends[w - 1] if w else 0))) for w, p in zip(which, picks, strict=True)]
    frames = [clips[w][f] for w, f in places] + [clips[w][f + 1] for w, f in places]
    return torch.from_numpy(np.stack(frames))


def reconstruction_loss(
    decoded: Tensor, pixels: Tensor, *, squared_weight: float, gradient_weight: float, change_weight: float
) -> Tensor:
    """Compute the error of pixels (absolute and squared), of image gradients, and of the change between frames.

    Args:
        decoded, pixels: float [N, C, H, W] in [-1, 1]; the second half of N holds the frames that follow the first
            half.
        squared_weight, gradient_weight, change_weight: weights of the terms beside the absolute error.

    Returns:
        A scalar.
    """
    error = decoded - pixels
    # Charbonnier's smooth absolute value: sharper than the squared error alone, differentiable at zero.
    loss = (error.square() + 1e-6).sqrt().mean() + squared_weight * error.square().mean()
    before, after = error.chunk(2)
    loss = loss + change_weight * (after - before).abs().mean()
    for _ in range(2):
        gradients = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        loss = loss + gradient_weight * gradients / 2
        error = F.avg_pool2d(error, 2)
    return loss


def reconstruction_metrics(decoded: Tensor, real: Tensor) -> dict[str, float]:
    """Compute how decoded frames differ from the real ones.

    Args:
        decoded, real: uint8 [N, H, W, 3].

    Returns:
        `psnr` (dB, mean over frames), `brightness` and `brightness_real` (mean of the pixels, 0..255),
        `sharpness_ratio` (mean absolute image gradient over the real one; below 1 is blurred).
    """
    error = torch.cat([((a.float() - b.float()) ** 2).mean((1, 2, 3)) for a, b in _parts(decoded, real)])
    return {
        "psnr": float((10 * torch.log10(255**2 / error.clamp(min=1e-4))).mean()),
        "brightness": float(decoded.double().mean()),
        "brightness_real": float(real.double().mean()),
        "sharpness_ratio": _sharpness(decoded) / max(_sharpness(real), 1e-9),
    }


def _parts(*tensors: Tensor, size: int = 1024) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.split(size) for tensor in tensors), strict=True))


def _sharpness(frames: Tensor) -> float:
    """Compute the mean absolute difference of neighbouring pixels in both directions; uint8 [N, H, W, 3]."""
    sums = [
        p.float().diff(dim=1).abs().mean((1, 2, 3)) + p.float().diff(dim=2).abs().mean((1, 2, 3))
        for (p,) in _parts(frames)
    ]
    return float(torch.cat(sums).mean())
