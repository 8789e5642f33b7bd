"""The actions of Oasis-500M (etched-ai/open-oasis, Etched/oasis-500m): 25 numbers a frame, in VPT's space.

Legend: F frames.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rlir_ray.spaces.fields import Axis, MuLaw
from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.vpt import BUTTON_INDEX, buttons_of, camera_of

OASIS_FIELDS = (
    *("inventory", "ESC"),
    *(f"hotbar.{slot}" for slot in range(1, 10)),
    *("forward", "back", "left", "right", "cameraX", "cameraY", "jump", "sneak", "sprint"),
    *("swapHands", "attack", "use", "pickItem", "drop"),
)
"""Order of the numbers; cameraX is pitch, cameraY yaw."""
OASIS_CAMERA = Axis(name="camera", low=-20, high=20, quantizer=MuLaw(num_bins=81, mu=2.7), is_clipped=True)
_CAMERA = ("cameraX", "cameraY")
# The middle bin, 40: no motion.
_STILL = OASIS_CAMERA.num_classes // 2
CLASS_COUNTS = tuple(OASIS_CAMERA.num_classes if name in _CAMERA else 2 for name in OASIS_FIELDS)
"""Classes of each number."""


def oasis_classes(actions: Actions) -> npt.NDArray[np.int64]:
    """Return actions of VPT's space as classes, int64 [F, 25]: buttons 0 or 1, cameras 0 to 80."""
    classes = np.zeros((len(actions), len(OASIS_FIELDS)), np.int64)
    bins, buttons = OASIS_CAMERA.bins(camera_of(actions)), buttons_of(actions.classes)
    for column, name in enumerate(OASIS_FIELDS):
        classes[:, column] = bins[:, _CAMERA.index(name)] if name in _CAMERA else buttons[:, BUTTON_INDEX[name]]
    return classes


def oasis_rows(classes: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
    """Return the conditions of Oasis-500M, float32 [..., 25]: buttons 0 or 1, cameras (bin - 40) / 40."""
    return np.asarray((classes - OFFSETS) / SCALES, np.float32)


OFFSETS, SCALES = (
    np.array([value if name in _CAMERA else other for name in OASIS_FIELDS], np.float32)
    for value, other in ((_STILL, 0), (_STILL, 1))
)
"""A condition is (class - offset) / scale, [25] both."""
