"""Corrupted clips: what a policy could generate to fool a reward. Numpy and torch; no models.

Legend: P clips, K frames of a clip, C context frames, H W pixels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Frames = npt.NDArray[np.uint8]
DARKENED = 0.6
BLUR = 5


def corrupted_clips(frames: Frames, num_context: int, seed: int = 0) -> dict[str, Frames]:
    """Corrupt the frames after the context, uint8 [P, K, H, W, 3].

    Args:
        frames: real clips.
        num_context: frames that all kinds keep.
        seed: seed of the order and of the noise.

    Returns:
        Kind -> clips of the same shape. ``static``: the last context frame repeated; ``blurred``: by a box of 5 pixels;
        ``darkened``: to 60 %; ``shuffled``: in random order; ``reversed``; ``ping_pong``: to the middle and back;
        ``other_clip``: the frames of the next clip; ``random``: noise.
    """
    first, length = num_context, frames.shape[1]
    generated, random = frames[:, first:], np.random.default_rng(seed)
    order = np.argsort(random.random(generated.shape[:2]), axis=1)
    # 0, 1, 2, ..., middle, ..., 2, 1 over the last context frame and the frames after it.
    there_and_back = np.minimum(np.arange(length - first + 1), np.arange(length - first + 1)[::-1])
    kinds = {
        "static": np.repeat(frames[:, first - 1 : first], length - first, axis=1),
        "blurred": box_blur(generated, BLUR),
        "darkened": (generated * DARKENED).astype(np.uint8),
        "shuffled": generated[np.arange(len(frames))[:, None], order],
        "reversed": generated[:, ::-1],
        "ping_pong": frames[:, first - 1 :][:, there_and_back[1:]],
        "other_clip": np.roll(generated, -1, axis=0),
        "random": random.integers(0, 256, generated.shape, dtype=np.uint8),
    }
    return {kind: np.concatenate([frames[:, :first], clips], 1) for kind, clips in kinds.items()}


def box_blur(frames: Frames, size: int) -> Frames:
    """Replace each pixel by the average of `size` x `size` pixels (odd), uint8 [P, K, H, W, 3] to the same shape."""
    images = torch.from_numpy(np.ascontiguousarray(frames)).flatten(0, 1).permute(0, 3, 1, 2).float()
    blurred = torch.nn.functional.avg_pool2d(images, size, stride=1, padding=size // 2, count_include_pad=False)
    return blurred.round().to(torch.uint8).permute(0, 2, 3, 1).reshape(frames.shape).numpy()
