"""Clips cut from recordings: where one may begin, and its frames at the world's size. Knows nothing of prompts.

Legend: C context frames, F generated frames, K = C + F, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rlir_ray.actions import Actions
from rlir_ray.config import WorldConfig
from rlir_ray.data.recordings import Recording, read_recordings

# Fewest clips that are taken from a recording before the next is opened: long recordings are slow to decode.
MIN_CLIPS_OF_RECORDING = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """K frames of a recording, uint8 [K, H, W, 3], and the K - 1 actions between them."""

    name: str
    frames: npt.NDArray[np.uint8]
    actions: Actions


def cut_clips(
    paths: Sequence[Path], num_clips: int, world: WorldConfig, min_wall_distance: float, seed: int
) -> list[Clip]:
    """Clips that do not overlap, spread evenly over recordings.

    Args:
        paths: of the recordings.
        num_clips: the most to return.
        world: frames of a clip and their size; frames of another size are averaged to it.
        min_wall_distance: clips whose first frame faces a wall nearer than this are left out, where the recording
            says so (`wallDistance`).
        seed: of the order of recordings and of clips.

    Returns:
        At most `num_clips`, fewer where the recordings do not hold as many.
    """
    rng = np.random.default_rng([seed, 0])
    quota = max(MIN_CLIPS_OF_RECORDING, math.ceil(num_clips / max(1, len(paths))))
    chosen: list[Clip] = []
    spare: list[Clip] = []
    # Read one at a time, and no more than are needed; broken ones are left out and logged.
    for recording in read_recordings(paths[index] for index in rng.permutation(len(paths))):
        starts = rng.permutation(clip_starts(recording.events, world, min_wall_distance))
        clips = [_cut(recording, int(start), world) for start in starts[: quota + max(0, num_clips - len(spare))]]
        chosen += clips[:quota]
        spare += clips[quota:]
        if len(chosen) >= num_clips:
            break
    return (chosen + spare)[:num_clips]


def clip_starts(events: Sequence[dict[str, Any]], world: WorldConfig, min_wall_distance: float) -> list[int]:
    """First frames of the clips of a recording that may serve as prompts, a clip's length apart."""
    length = world.num_context + world.num_frames
    return [
        start
        for start in range(0, len(events) - length + 1, length)
        # A bare wall carries no cue of motion; a cursor and an inventory are no actions of the player.
        if events[start].get("wallDistance", math.inf) >= min_wall_distance
        and not any(event.get("isGuiOpen", False) for event in events[start : start + length])
    ]


def _cut(recording: Recording, start: int, world: WorldConfig) -> Clip:
    stop = start + world.num_context + world.num_frames
    frames = _resize(recording.frames[start:stop], world.height, world.width)
    # Event k leads into frame k: the first frame's own action belongs to the past.
    return Clip(name=f"{recording.name}:{start}", frames=frames, actions=recording.actions[start + 1 : stop])


def _resize(frames: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Area average to the world's size; a copy, so that the recording can be let go."""
    if frames.shape[1:3] == (height, width):
        return frames.copy()
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    averaged = torch.nn.functional.interpolate(pixels, (height, width), mode="area")
    return averaged.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
