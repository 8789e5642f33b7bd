"""The actions of RLVR-World's robot models (thuml/RLVR-World, data set RT-1): 13 numbers a frame, each in 256 bins.

Legend: F frames.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rlir_ray.spaces.fields import Axis, Uniform
from rlir_ray.spaces.space import ActionSpace

NUM_BINS = 256
NUM_UNUSED_IDS = 2
"""RLVR-World's vocabularies end with BOS and EOS, which are no part of an action."""
# Least and greatest number of the data set, as float32. Rare outliers set the width: usual motions use few bins.
_RANGES = {
    "base_displacement_vector.0": (-0.39600884914398193, 0.39600181579589844),
    "base_displacement_vector.1": (-0.009631033055484295, 0.003676734399050474),
    "base_displacement_vertical_rotation": (-0.4000452756881714, 0.39991137385368347),
    "gripper_closedness_action": (-1.0, 1.0),
    "rotation_delta.0": (-1.569917917251587, 1.570636510848999),
    "rotation_delta.1": (-1.569892168045044, 1.5321086645126343),
    "rotation_delta.2": (-1.570419430732727, 1.5691522359848022),
    "terminate_episode.0": (0.0, 1.0),
    "terminate_episode.1": (0.0, 1.0),
    "terminate_episode.2": (0.0, 1.0),
    "world_vector.0": (-2.0204520225524902, 2.9984593391418457),
    "world_vector.1": (-5.497899532318115, 22.09052848815918),
    "world_vector.2": (-2.031663417816162, 2.7507524490356445),
}
RANGES = np.array(list(_RANGES.values()), np.float32)
"""[13, 2], low and high."""
RT1_SPACE = ActionSpace(
    tuple(
        Axis(name=name, low=low, high=high, quantizer=Uniform(num_bins=NUM_BINS), is_clipped=True)
        for name, (low, high) in _RANGES.items()
    )
)
"""The entries of the data set's action dictionary in alphabetical order."""


def action_bins(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Quantize actions as RLVR-World does, which computes in float32.

    Args:
        values: float32 [..., 13], in the order of `RT1_SPACE`; numbers outside the ranges get the nearest bin.

    Returns:
        int64 [..., 13], 0 to 255.

    Raises:
        ValueError: another number of columns, NaN or infinity.
    """
    if values.shape[-1] != len(RANGES) or not np.isfinite(values).all():
        found = f"{list(values.shape)}" if values.shape[-1] != len(RANGES) else "NaN or infinity"
        raise ValueError(
            f"actions of RT-1 must be {len(RANGES)} finite numbers a frame, got {found}; give one column a field"
        )
    return _bins(values, RANGES)


def action_cells(axis: Axis, values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return the bins of an axis, bool [F, 256], that hold a number with the token of the commanded number, [F].

    Raises:
        ValueError: the axis is of another space.
    """
    (column,) = RT1_SPACE.columns([axis.name])
    classes = np.arange(NUM_BINS)
    # Beside an edge, a token's float32 arithmetic and the axis' exact arithmetic can find neighbouring bins.
    told = _bins(values, RANGES[column])[:, None] == classes
    cells: npt.NDArray[np.bool_] = told | (axis.bins(values)[:, None] == classes)
    return cells


def _bins(values: npt.NDArray[np.float32], ranges: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    low, high = ranges[..., 0], ranges[..., 1]
    share = (np.asarray(values, np.float32) - low) / (high - low + np.float32(1e-8))
    bins = np.floor(np.clip(share, 0, 1) * np.float32(NUM_BINS)).astype(np.int64)
    return np.clip(bins, 0, NUM_BINS - 1)
