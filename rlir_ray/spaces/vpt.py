"""VPT's action space: keys and mouse of Minecraft's recorder, its contradictions and its camera quantizer.

The only file that knows how VPT's buttons exclude each other. Numpy only; knows nothing of models.
Legend: F frames, B buttons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rlir_ray.spaces.fields import Axis, Choice, MuLaw
from rlir_ray.spaces.space import Actions, ActionSpace

# Buttons of the VPT inverse dynamics model's 20 heads, in this order; the last three of BUTTONS have no head.
IDM_BUTTONS = (
    "attack",
    "back",
    "forward",
    "jump",
    "left",
    "right",
    "sneak",
    "sprint",
    "use",
    "drop",
    "inventory",
    *(f"hotbar.{slot}" for slot in range(1, 10)),
)
BUTTONS = (*IDM_BUTTONS, "swapHands", "pickItem", "ESC")
BUTTON_INDEX = {name: index for index, name in enumerate(BUTTONS)}

Event = dict[str, Any]
"""A parsed line of a recording. Each recorder writes fields of its own; `parse_event` checks those of actions."""

# One degree of camera is 2400/360 mouse pixels in the VPT recorder.
DEGREES_PER_PIXEL = 360 / 2400

KEY_NAMES = {
    "w": "forward",
    "s": "back",
    "a": "left",
    "d": "right",
    "space": "jump",
    "left.shift": "sneak",
    "left.control": "sprint",
    "q": "drop",
    "e": "inventory",
    "f": "swapHands",
    "escape": "ESC",
    **{str(slot): f"hotbar.{slot}" for slot in range(1, 10)},
}
MOUSE_NAMES = ("attack", "use", "pickItem")

# The two buttons of a pair cancel each other. The order of the pairs is MineWorld's; it matters, because sneak is in
# two pairs.
CONTRADICTIONS = (
    ("forward", "back"),
    ("left", "right"),
    ("jump", "sneak"),
    ("sprint", "sneak"),
    ("attack", "use"),
)


def _camera(name: str, direction: Literal["none", "right", "down"] = "none") -> Axis:
    # A mouse moves further in a frame than the quantizer's range.
    return Axis(
        name=name,
        low=-10,
        high=10,
        unit="degrees",
        quantizer=MuLaw(num_bins=11, mu=10),
        is_clipped=True,
        direction=direction,
    )


VPT_CAMERA = _camera("camera")
HOTBAR = tuple(f"hotbar.{slot}" for slot in range(1, 10))
GROUPS = {
    "forward_back": ("forward", "back"),
    "left_right": ("left", "right"),
    "sprint_sneak": ("sprint", "sneak"),
    "use_attack": ("use", "attack"),
    "jump": ("jump",),
    "drop": ("drop",),
    "inventory": ("inventory",),
    "hotbar": HOTBAR,
    "swapHands": ("swapHands",),
    "pickItem": ("pickItem",),
    "ESC": ("ESC",),
}
"""Choice -> buttons that exclude each other; class 0 is none of them, class i the i-th."""
CAMERA = ("pitch", "yaw")
KEY_LABELS = {
    "forward": "W",
    "back": "S",
    "left": "A",
    "right": "D",
    "sneak": "SHIFT",
    "sprint": "CTRL",
    "jump": "JUMP",
    "attack": "FIRE",
    "use": "USE",
    "drop": "DROP",
    "inventory": "E",
    **{name: name.removeprefix("hotbar.") for name in HOTBAR},
}
"""Button -> its key, for pictures."""
VPT_SPACE = ActionSpace(
    (
        *(
            Choice(name=name, classes=("none", *buttons), is_mirrored=name == "left_right")
            for name, buttons in GROUPS.items()
        ),
        _camera("pitch", "down"),
        _camera("yaw", "right"),
    )
)
"""Pitch is positive downwards, yaw to the right."""


def actions_from_events(events: Sequence[Event]) -> Actions:
    """Convert events, one a frame, to actions; contradictions cancel, as in `actions_from_buttons`.

    Missing or null fields mean that nothing is pressed.

    Args:
        events: events of the VPT recorder (`mouse`, `keyboard`), or of MineWorld's validation files, which hold the
            environment's action: ``{"forward": 1, "hotbar.1": 0, …, "camera": [pitch, yaw]}`` in degrees.

    Example: two frames, forward held in the second: ``actions_from_events([{}, {"keyboard": {"keys":
    ["key.keyboard.w"]}}])`` has ``values_of(["forward_back"]) == [[0], [1]]``.
    """
    return actions_from_buttons(*pressed_and_turned(events))


def events_from_actions(actions: Actions) -> list[Event]:
    """Return events that `actions_from_events` reads as these actions, in the form of MineWorld's validation files."""
    return [
        {**dict(zip(BUTTONS, map(int, pressed), strict=True)), "camera": [float(angle) for angle in camera]}
        for pressed, camera in zip(buttons_of(actions.classes), camera_of(actions), strict=True)
    ]


def pressed_and_turned(events: Sequence[Event]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Read the pressed buttons, bool [F, 23] as `BUTTONS` with their contradictions, and the camera, float32 [F, 2].

    Args:
        events: F events, as for `actions_from_events`.
    """
    buttons = np.zeros((len(events), len(BUTTONS)), np.bool_)
    camera = np.zeros((len(events), 2), np.float32)
    for frame, event in enumerate(events):
        if "camera" in event:
            buttons[frame] = [bool(event.get(name)) for name in BUTTONS]
            camera[frame] = event["camera"]
            continue
        mouse, keyboard = event.get("mouse") or {}, event.get("keyboard") or {}
        for key in keyboard.get("keys") or ():
            if name := KEY_NAMES.get(key.removeprefix("key.keyboard.")):
                buttons[frame, BUTTON_INDEX[name]] = True
        for button in mouse.get("buttons") or ():
            if 0 <= button < len(MOUSE_NAMES):
                buttons[frame, BUTTON_INDEX[MOUSE_NAMES[button]]] = True
        camera[frame] = [(mouse.get(axis) or 0) * DEGREES_PER_PIXEL for axis in ("dy", "dx")]
    return buttons, camera


def actions_from_buttons(buttons: npt.NDArray[np.bool_], camera: npt.NDArray[np.float32]) -> Actions:
    """Build actions from buttons bool [F, 23] and camera float32 [F, 2] (degrees); cancel contradictions.

    If several members of a choice are pressed (hotbar), the first one counts, as in MineWorld's tokens.
    """
    num_frames = len(buttons)
    if buttons.shape != (num_frames, len(BUTTONS)) or camera.shape != (num_frames, 2):
        raise ValueError(
            f"VPT's actions need buttons [F, {len(BUTTONS)}] and camera [F, 2], got {buttons.shape} and "
            f"{camera.shape}; build them with actions_from_events"
        )
    buttons = cancel_contradictions(buttons)
    values = np.zeros((num_frames, len(VPT_SPACE)), np.float32)
    for column, members in enumerate(GROUPS.values()):
        pressed = buttons[:, [BUTTON_INDEX[name] for name in members]]
        values[:, column] = np.where(pressed.any(1), pressed.argmax(1) + 1, 0)
    values[:, len(GROUPS) :] = camera
    return Actions(VPT_SPACE, values)


def buttons_of(classes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return the pressed buttons, bool [..., 23] as `BUTTONS`, of classes int64 [..., 13] of `VPT_SPACE`."""
    buttons = np.zeros((*classes.shape[:-1], len(BUTTONS)), np.bool_)
    for column, members in enumerate(GROUPS.values()):
        for number, name in enumerate(members, start=1):
            buttons[..., BUTTON_INDEX[name]] = classes[..., column] == number
    return buttons


def camera_of(actions: Actions) -> npt.NDArray[np.float32]:
    """Return pitch and yaw in degrees, float32 [F, 2]."""
    return actions.values_of(CAMERA)


def cancel_contradictions(buttons: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Release both buttons of each contradicting pair; bool [..., B] in the order of `BUTTONS`, B is 20 or 23."""
    buttons = buttons.copy()
    for first, second in CONTRADICTIONS:
        both = buttons[..., BUTTON_INDEX[first]] & buttons[..., BUTTON_INDEX[second]]
        buttons[..., BUTTON_INDEX[first]] &= ~both
        buttons[..., BUTTON_INDEX[second]] &= ~both
    return buttons
