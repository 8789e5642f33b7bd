"""MineWorld's action inputs on VPT's space: 11 tokens, and the nine classes that the shipped flow model takes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rlir_ray.spaces.fields import Axis, MuLaw
from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.vpt import BUTTON_INDEX, CAMERA, DEGREES_PER_PIXEL, buttons_of, camera_of

MINEWORLD_CAMERA = Axis(
    name="camera", low=-90, high=90, unit="degrees", quantizer=MuLaw(num_bins=21, mu=11.4887), is_clipped=True
)
# All camera angles that recordings contain: the recorders' mouse moves by whole pixels.
ANGLES = np.arange(-600, 601) * DEGREES_PER_PIXEL
# Buttons that share a token slot, after BOS, pitch and yaw. swapHands, inventory and ESC have an id but no slot.
TOKEN_SLOTS = (
    tuple(f"hotbar.{slot}" for slot in range(1, 10)),
    ("forward", "back"),
    ("left", "right"),
    ("sprint", "sneak"),
    ("use", "attack"),
    ("jump",),
    ("drop", "pickItem"),
)
TOKEN_BUTTONS = (
    "use",
    "attack",
    "forward",
    "back",
    "left",
    "right",
    "jump",
    "sneak",
    "sprint",
    "drop",
    "swapHands",
    "pickItem",
    "inventory",
    "ESC",
    *(f"hotbar.{slot}" for slot in range(1, 10)),
)
PITCH_OFFSET = len(TOKEN_BUTTONS)
YAW_OFFSET = PITCH_OFFSET + MINEWORLD_CAMERA.num_classes
BOS, NULL, EOS = (YAW_OFFSET + MINEWORLD_CAMERA.num_classes + index for index in range(3))
NUM_ACTION_TOKENS = EOS + 1  # 68
TOKENS_PER_ACTION = len(TOKEN_SLOTS) + 4  # 11
# MineWorld's vocabulary ends with two ids that its sequences never hold.
NUM_UNUSED_IDS = 2
MINEWORLD_IMAGE_VOCABULARY = 8192
ACTION_CLASS_COUNTS = (*(2 * (MINEWORLD_CAMERA.num_classes,)), *(len(members) + 1 for members in TOKEN_SLOTS))
"""Classes of each column of `action_classes`."""


def token_camera_bins(degrees: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Quantize angles of any shape for MineWorld's tokens; MineWorld truncates to whole degrees first."""
    return MINEWORLD_CAMERA.bins(np.trunc(np.round(np.asarray(degrees, np.float64), 4)))


def action_tokens(actions: Actions, first_id: int = MINEWORLD_IMAGE_VOCABULARY) -> npt.NDArray[np.int64]:
    """Return MineWorld's 11 tokens a frame: BOS, pitch, yaw, hotbar, forward/back, left/right, sprint/sneak,
    use/attack, jump, drop/pickItem, EOS.

    Args:
        actions: F frames in VPT's space.
        first_id: the first action id, which is the size of the image vocabulary.

    Returns:
        int64 [F, 11].
    """
    tokens = np.full((len(actions), TOKENS_PER_ACTION), NULL, np.int64)
    tokens[:, 0], tokens[:, -1] = BOS, EOS
    bins = token_camera_bins(camera_of(actions))
    tokens[:, 1], tokens[:, 2] = PITCH_OFFSET + bins[:, 0], YAW_OFFSET + bins[:, 1]
    buttons = buttons_of(actions.classes)
    for slot, members in enumerate(TOKEN_SLOTS):
        pressed = buttons[:, [BUTTON_INDEX[name] for name in members]]
        ids = np.array([TOKEN_BUTTONS.index(name) for name in members])
        # The two buttons of a pair cancel each other.
        held = pressed.sum(1) == 1
        tokens[:, 3 + slot] = np.where(held, ids[pressed.argmax(1)], NULL)
    return tokens + first_id


def action_classes(actions: Actions) -> npt.NDArray[np.int64]:
    """Return a flow model's action input: MineWorld's camera bins, and the classes of its seven button categories.

    Next-Frame Diffusion (https://arxiv.org/abs/2506.01380) quantizes the camera and has seven categories of keys;
    MineWorld's seven slots serve as categories. Unlike the tokens, the classes do not truncate angles to whole degrees.

    Args:
        actions: F frames in VPT's space.

    Returns:
        int64 [F, 9]: pitch, yaw, then `TOKEN_SLOTS`, 0 for none and i for the i-th member (the first pressed one).
    """
    classes = np.zeros((len(actions), len(ACTION_CLASS_COUNTS)), np.int64)
    classes[:, :2] = MINEWORLD_CAMERA.bins(camera_of(actions))
    buttons = buttons_of(actions.classes)
    for slot, members in enumerate(TOKEN_SLOTS, start=2):
        pressed = buttons[:, [BUTTON_INDEX[name] for name in members]]
        classes[:, slot] = np.where(pressed.any(1), pressed.argmax(1) + 1, 0)
    return classes


def token_cells(axis: Axis, values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return the bins of VPT's camera, bool [F, K], that hold an angle with the same tokens as the commanded one."""
    return _cells(axis, token_camera_bins(ANGLES) == token_camera_bins(values)[:, None])


def class_cells(axis: Axis, values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Return the bins of VPT's camera, bool [F, K], that hold an angle with the same class as the commanded one."""
    return _cells(axis, MINEWORLD_CAMERA.bins(ANGLES) == MINEWORLD_CAMERA.bins(values)[:, None])


def _cells(axis: Axis, alike: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the bins of VPT's quantizer that hold an angle like the command; `alike` is bool [F, angles]."""
    if axis.name not in CAMERA:
        raise ValueError(
            f"an axis of the layout mineworld must be pitch or yaw, got {axis.name}; use the layout fields"
        )
    read = axis.bins(ANGLES)[:, None] == np.arange(axis.num_classes)  # [angles, K]
    found: npt.NDArray[np.bool_] = alike.astype(np.float32) @ read > 0
    return found
