"""The order in which the clips of a source are read: it follows from a seed, and can be entered at any position.

So a reader that has taken n clips is resumed by its seed and n alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from rlir_ray.config import WorldConfig
from rlir_ray.data.clips import ClipAddress, clip_starts, open_in
from rlir_ray.data.sources import RecordingSource

# Keeps these random numbers apart from those of prompts (0 and 1 behind the seed) and of groups.
STREAM = 2


def clip_addresses(
    source: RecordingSource, world: WorldConfig, min_wall_distance: float = 0.0, *, strict: bool = False
) -> tuple[list[ClipAddress], tuple[str, ...]]:
    """Return all clips of a source that do not overlap, without decoding a frame.

    Args:
        source: of the recordings.
        world: frames of a clip.
        min_wall_distance: as in `cut_clips`.
        strict: raise at the first recording that is broken or not whole.

    Returns:
        The addresses, and a line for each recording that was left out.
    """
    left_out = list(source.left_out)
    if strict and left_out:
        raise ValueError(left_out[0])
    addresses: list[ClipAddress] = []
    for name in source.videos:
        try:
            events = open_in(source, name).events
        except ValueError as error:
            if strict:
                raise
            left_out.append(str(error))
            continue
        addresses += [ClipAddress(name, start) for start in clip_starts(events, world, min_wall_distance)]
    return addresses, tuple(left_out)


def clip_order(addresses: Sequence[ClipAddress], seed: int, position: int = 0) -> Iterator[ClipAddress]:
    """Return the endless order of clips: each once an epoch, and another permutation in each epoch.

    Args:
        addresses: as `clip_addresses` gives them; their own order does not matter.
        seed: of the order.
        position: clips that were read before.

    Raises:
        ValueError: there are no clips, or the position lies before the first.
    """
    if not addresses or position < 0:
        raise ValueError(
            f"an order needs clips and a position >= 0, got {len(addresses)} clips and position {position}; give "
            "recordings that are longer than a clip"
        )
    return _from_position(sorted(addresses), seed, position)


def _from_position(addresses: Sequence[ClipAddress], seed: int, position: int) -> Iterator[ClipAddress]:
    first_epoch, place = divmod(position, len(addresses))
    for epoch in itertools.count(first_epoch):
        order = np.random.default_rng([seed, STREAM, epoch]).permutation(len(addresses))
        yield from (addresses[index] for index in order[place:])
        place = 0
