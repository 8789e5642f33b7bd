"""Action following as GameWorldScore computes it (SkyworkAI/Matrix-Game), from keyboard and mouse.

What GameWorldScore calls precision is an accuracy. A clip is that of `evaluation.mineworld`. Numpy only.
Legend: B clips, F frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rlir_ray.data.files import Json
from rlir_ray.evaluation.mineworld import CAMERA, Clip, pooled, task_classes

# Class i of a task: its i-th button alone is pressed. Class 0: no button or both. Other buttons are not evaluated.
KEYBOARD_TASKS = {
    "back/forward": ("back", "forward"),
    "left/right": ("left", "right"),
    "attack": ("attack",),
    "jump": ("jump",),
}
# A turn below this many degrees is none.
MIN_DEGREES = 0.01
# Row: pitch none, up, down; column: yaw none, left, right.
DIRECTIONS = np.array([[0, 3, 4], [1, 5, 6], [2, 7, 8]])


def game_world_score(predicted: Sequence[Clip], recorded: Sequence[Clip]) -> Json:
    """Compute GameWorldScore's keyboard and mouse figures.

    A reading that never presses a key scores high on recordings without keys: read the macro figures of
    `action_following` beside these.

    Args:
        predicted: B clips that an inverse dynamics model read.
        recorded: the B commanded clips of the same frames, with the camera in whole degrees.

    Returns:
        `keyboard`: the mean accuracy of four tasks, each over the frames of all clips. `mouse`: the share of frames
        whose direction is the commanded one of nine, a mean over clips. `per_task`: task -> accuracy.

    Raises:
        ValueError: as in `action_following`.
    """
    read, commanded = pooled(predicted, recorded)
    per_task = {
        task: float((task_classes(read, members) == task_classes(commanded, members)).mean())
        for task, members in KEYBOARD_TASKS.items()
    }
    agree = directions(read[CAMERA]) == directions(commanded[CAMERA])  # [N]
    ends = np.cumsum([len(np.asarray(clip[CAMERA])) for clip in recorded])
    return {
        "keyboard": float(np.mean(list(per_task.values()))),
        "mouse": float(np.mean([part.mean() for part in np.split(agree, ends[:-1])])),
        "per_task": per_task,
    }


def directions(camera: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the direction of each turn, [..., 2] in degrees (pitch, yaw; down and right positive) to int64 [...].

    0 is none, then up, down, left, right, up-left, up-right, down-left, down-right. If one angle is exactly ±.01
    degrees, the published comparisons fit no case: the direction is none.
    """
    angles = np.asarray(camera, np.float64)
    sides = np.where(np.abs(angles) < MIN_DEGREES, 0, np.where(angles < 0, 1, 2))  # [..., 2]
    found: npt.NDArray[np.int64] = DIRECTIONS[sides[..., 0], sides[..., 1]]
    return np.where((np.abs(angles) == MIN_DEGREES).any(-1), 0, found)
