"""Figures of single frames that need no weights: brightness, sharpness and motion."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def brightness(frames: Tensor, num_frames: int) -> Tensor:
    """Return the mean pixel of each of the last F frames, uint8 [B, K, H, W, 3] to float32 [B, F] in 0..255."""
    return frames[:, -num_frames:].float().mean((2, 3, 4))


def sharpness(frames: Tensor, num_frames: int) -> Tensor:
    """Return the mean absolute difference of a pixel's gray value to its right and its lower neighbour, [B, F]."""
    gray = frames[:, -num_frames:].float().mean(-1)  # [B, F, H, W]
    return (gray.diff(dim=-1).abs().mean((2, 3)) + gray.diff(dim=-2).abs().mean((2, 3))) / 2


def motion(frames: Tensor, num_frames: int) -> Tensor:
    """Return the mean absolute difference to the frame before, [B, F]; the frames need K > F."""
    after, before = frames[:, -num_frames:].float(), frames[:, -num_frames - 1 : -1].float()
    return (after - before).abs().mean((2, 3, 4))


FRAME_FIGURES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "brightness": brightness,
    "sharpness": sharpness,
    "motion": motion,
}
