"""Statistics of features, as LeRobot keeps them for each episode and for the dataset: min, max, mean, std, count.

Source: huggingface/lerobot@7427f31, `datasets/compute_stats.py`; quantiles are optional there and left out here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Stats = dict[str, list[object]]
"""Of one feature: nested lists of the feature's shape, and the count, [1]."""

# LeRobot samples 100 frames of a short episode and makes them about 150 pixels wide.
MAX_FRAMES, MAX_PIXELS = 100, 150


def number_stats(values: npt.NDArray[np.generic]) -> Stats:
    """Return the statistics of a column over its rows.

    Args:
        values: [F] or [F, n]; the statistics have a shape of [1] or [n].
    """
    rows = values.reshape(len(values), -1).astype(np.float64)
    return _stats(rows.min(0), rows.max(0), rows.mean(0), rows.std(0), len(rows))


def frame_stats(frames: npt.NDArray[np.uint8]) -> Stats:
    """Return the statistics of each colour channel from 0 to 1, of shape [3, 1, 1], over a sample of the pixels.

    Args:
        frames: uint8 [F, H, W, 3], RGB. The count is the number of sampled frames.
    """
    places = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), MAX_FRAMES)).round().astype(int))
    step = -(-max(frames.shape[1:3]) // MAX_PIXELS)
    pixels = frames[places, ::step, ::step].reshape(-1, 3)
    mean, std = pixels.mean(0, dtype=np.float64), pixels.std(0, dtype=np.float64)
    low, high, mean, std = ((each / 255.0).reshape(3, 1, 1) for each in (pixels.min(0), pixels.max(0), mean, std))
    return _stats(low, high, mean, std, len(places))


def merge_stats(parts: Sequence[Mapping[str, Stats]]) -> dict[str, Stats]:
    """Merge statistics of several episodes into those of all their rows, a feature at a time."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: _merge([part[name] for part in parts if name in part]) for name in names}


def _merge(parts: Sequence[Stats]) -> Stats:
    low, high, mean, std, count = (
        np.array([part[key] for part in parts], np.float64) for key in ("min", "max", "mean", "std", "count")
    )
    total = count.sum()
    weights = (count / total).reshape(-1, *(1 for _ in mean.shape[1:]))
    merged = (weights * mean).sum(0)
    # The variance within the episodes, and that of their means.
    variance = (weights * (std**2 + (mean - merged) ** 2)).sum(0)
    return _stats(low.min(0), high.max(0), merged, np.sqrt(variance), int(total))


def _stats(
    low: npt.NDArray[np.float64],
    high: npt.NDArray[np.float64],
    mean: npt.NDArray[np.float64],
    std: npt.NDArray[np.float64],
    count: int,
) -> Stats:
    return {"min": low.tolist(), "max": high.tolist(), "mean": mean.tolist(), "std": std.tolist(), "count": [count]}
