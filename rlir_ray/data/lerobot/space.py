"""The action space of a LeRobot dataset: our action_space.json in its root, else derived from its statistics.

Legend: D numbers of an action.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rlir_ray.data.lerobot.layout import ACTION, INFO_PATH, STATS_PATH, V3, DatasetInfo, read_lines, read_object
from rlir_ray.spaces.fields import Axis, Uniform
from rlir_ray.spaces.space import SPACE_FILE, ActionSpace

# As fine as the axes of a Gymnasium Box.
NUM_BINS = 21


def read_space(info: DatasetInfo) -> ActionSpace:
    """Return the action space of a dataset: its action_space.json, else one clipped axis a number of the action.

    A derived axis ranges from the minimum to the maximum of the dataset's statistics. An integer action is an axis
    too, because nothing in a LeRobot dataset tells a class from a count: write action_space.json to say otherwise.

    Raises:
        ValueError: the action is missing or no vector, the file is no action space of its length, or the dataset has
            no statistics.
    """
    path = info.folder / SPACE_FILE
    length = action_length(info)
    if path.is_file():
        try:
            space = ActionSpace.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: no readable file ({error}); write it with ActionSpace.to_json") from error
        if len(space.fields) != length:
            raise ValueError(
                f"{path}: needs a field for each of the {length} numbers of {ACTION!r}, got {len(space.fields)}; "
                "correct the file"
            )
        return space
    ranges = zip(_names(info.features[ACTION].get("names"), length), *_ranges(info, length), strict=True)
    return ActionSpace(tuple(_axis(name, low, high) for name, low, high in ranges))


def action_length(info: DatasetInfo) -> int:
    """Return D, the length of the feature `action`.

    Raises:
        ValueError: there is no such feature, or it is no vector.
    """
    shape = info.features.get(ACTION, {}).get("shape")
    if not isinstance(shape, list) or len(shape) != 1 or not isinstance(shape[0], int) or shape[0] < 1:
        raise ValueError(
            f"{info.folder / INFO_PATH}: the feature {ACTION!r} must be a vector with a shape [D], got {shape}; write "
            "the actions of the dataset into such a feature"
        )
    return shape[0]


def _axis(name: str, low: float, high: float) -> Axis:
    if low >= high:  # a number that never changes
        low, high = low - 1, high + 1
    return Axis(name=name, low=low, high=high, quantizer=Uniform(num_bins=NUM_BINS), is_clipped=True)


def _names(names: object, length: int) -> list[str]:
    """Return the D names of an action: a list, lists in a dictionary, or name -> index; else numbered names."""
    if isinstance(names, dict) and all(isinstance(place, int) for place in names.values()):
        names = sorted(names, key=names.__getitem__)
    elif isinstance(names, dict):
        names = [name for part in names.values() for name in (part if isinstance(part, list) else [part])]
    found = [str(name) for name in names] if isinstance(names, list) else []
    # Names that fit no number of the action would be guesses.
    return found if len(found) == len(set(found)) == length else [f"{ACTION}_{place}" for place in range(length)]


def _ranges(info: DatasetInfo, length: int) -> tuple[list[float], list[float]]:
    """Return the minima and maxima of the action over all episodes, [D] each."""
    if info.version == V3:
        path = info.folder / STATS_PATH
        stats = [read_object(path)] if path.is_file() else []
    else:
        path = info.folder / "meta/episodes_stats.jsonl"
        stats = [row.get("stats", {}) for row in read_lines(path)] if path.is_file() else []
    found = [each[ACTION] for each in stats if isinstance(each, dict) and isinstance(each.get(ACTION), dict)]
    lows, highs = ([np.ravel(each.get(key, [])) for each in found] for key in ("min", "max"))
    if not found or any(not _is_vector(values, length) for values in (*lows, *highs)):
        raise ValueError(
            f"{path}: must hold min and max of the {length} numbers of {ACTION!r}, got none that fit; write "
            f"{SPACE_FILE} beside meta with ActionSpace.to_json"
        )
    return np.min(lows, axis=0).tolist(), np.max(highs, axis=0).tolist()


def _is_vector(values: npt.NDArray[Any], length: int) -> bool:
    return values.shape == (length,) and values.dtype.kind in "biuf" and bool(np.isfinite(values).all())
