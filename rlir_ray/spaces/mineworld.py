"""Action inputs of world models: MineWorld's 11 tokens, and the nine classes of a flow model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rlir_ray.spaces.actions import BUTTON_INDEX, MINEWORLD_CAMERA, Actions

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
YAW_OFFSET = PITCH_OFFSET + MINEWORLD_CAMERA.num_bins
BOS, NULL, EOS = (YAW_OFFSET + MINEWORLD_CAMERA.num_bins + index for index in range(3))
NUM_ACTION_TOKENS = EOS + 1  # 68
TOKENS_PER_ACTION = len(TOKEN_SLOTS) + 4  # 11
MINEWORLD_IMAGE_VOCABULARY = 8192


def token_camera_bins(degrees: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Quantize angles of any shape for MineWorld's tokens; MineWorld truncates to whole degrees first."""
    return MINEWORLD_CAMERA.bins(np.trunc(np.round(np.asarray(degrees, np.float64), 4)))


def flow_camera_bins(degrees: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Quantize angles of any shape for a flow model (`action_classes`)."""
    return MINEWORLD_CAMERA.bins(degrees)


def action_tokens(actions: Actions, first_id: int = MINEWORLD_IMAGE_VOCABULARY) -> npt.NDArray[np.int64]:
    """Return MineWorld's 11 tokens a frame: BOS, pitch, yaw, hotbar, forward/back, left/right, sprint/sneak,
    use/attack, jump, drop/pickItem, EOS.

    Args:
        actions: F frames.
        first_id: the first action id, which is the size of the image vocabulary.

    Returns:
        int64 [F, 11].
    """
    tokens = np.full((len(actions), TOKENS_PER_ACTION), NULL, np.int64)
    tokens[:, 0], tokens[:, -1] = BOS, EOS
    bins = token_camera_bins(actions.camera)
    tokens[:, 1], tokens[:, 2] = PITCH_OFFSET + bins[:, 0], YAW_OFFSET + bins[:, 1]
    for slot, members in enumerate(TOKEN_SLOTS):
        pressed = actions.buttons[:, [BUTTON_INDEX[name] for name in members]]
        ids = np.array([TOKEN_BUTTONS.index(name) for name in members])
        # The two buttons of a pair cancel each other; of several hotbar slots the first one counts.
        held = pressed.any(1) if len(members) > 2 else pressed.sum(1) == 1
        tokens[:, 3 + slot] = np.where(held, ids[pressed.argmax(1)], NULL)
    return tokens + first_id


ACTION_CLASS_COUNTS = (*(2 * (MINEWORLD_CAMERA.num_bins,)), *(len(members) + 1 for members in TOKEN_SLOTS))
"""Classes of each column of `action_classes`."""


def action_classes(actions: Actions) -> npt.NDArray[np.int64]:
    """Return a flow model's action input: MineWorld's camera bins, and the classes of its seven button categories.

    Next-Frame Diffusion (https://arxiv.org/abs/2506.01380) quantizes the camera and has seven categories of keys;
    MineWorld's seven slots serve as categories. Unlike the tokens, the classes do not truncate angles to whole degrees.

    Args:
        actions: F frames.

    Returns:
        int64 [F, 9]: pitch, yaw, then `TOKEN_SLOTS`, 0 for none and i for the i-th member (the first pressed one).
    """
    classes = np.zeros((len(actions), len(ACTION_CLASS_COUNTS)), np.int64)
    classes[:, :2] = flow_camera_bins(actions.camera)
    for slot, members in enumerate(TOKEN_SLOTS, start=2):
        pressed = actions.buttons[:, [BUTTON_INDEX[name] for name in members]]
        classes[:, slot] = np.where(pressed.any(1), pressed.argmax(1) + 1, 0)
    return classes


def null_action_classes() -> npt.NDArray[np.int64]:
    """Return the classes of the null action, int64 [9], for a clip's first frame, whose action is unknown."""
    classes: npt.NDArray[np.int64] = action_classes(Actions.from_events([{}]))[0]
    return classes
