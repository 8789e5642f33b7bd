"""Clips for an evaluation, taken in turn from all recordings, in the order of the recordings' names.

If every file holds one clip, as in MineWorld's validation set, these are the first frames of every file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlir_ray.config import DataConfig, WorldConfig
from rlir_ray.data.clips import Clip, ClipAddress, clip_starts, open_in, read_clip
from rlir_ray.data.sources import RecordingSource


def round_robin_clips(
    source: RecordingSource, num_clips: int, world: WorldConfig, data: DataConfig, left_out: list[str] | None = None
) -> Iterator[Clip]:
    """Yield one clip of each recording before a second clip of any; open only the needed recordings.

    Args:
        source: the recordings.
        num_clips: the most to yield.
        world: frames of a clip and their size.
        data: how recordings are read.
        left_out: receives a line for each broken or incomplete recording.

    Raises:
        ValueError: with `data.strict`, for the first of these recordings.
    """
    broken = left_out if left_out is not None else []
    if data.strict and source.left_out:
        raise ValueError(source.left_out[0])
    broken += source.left_out
    names = sorted(source.videos, key=_natural)
    starts: dict[str, list[int]] = {}
    while names and num_clips:
        for name in list(names):
            try:
                if name not in starts:
                    starts[name] = clip_starts(open_in(source, name, data.action_shift).events, world, 0.0)
                if not starts[name]:
                    names.remove(name)
                    continue
                clip = read_clip(source, ClipAddress(name, starts[name].pop(0)), world, data)
            except ValueError as error:
                if data.strict:
                    raise
                broken.append(str(error))
                names.remove(name)
                continue
            yield clip
            num_clips -= 1
            if not num_clips:
                return


def _natural(name: str) -> list[tuple[str, int]]:
    """Split a name into texts and numbers, so that clip_9 sorts before clip_10."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]
