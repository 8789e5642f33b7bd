"""The VPT action space and its views: buttons, exclusive groups, camera quantisers, MineWorld's action tokens.

An action at index k leads INTO frame k (MineWorld's indexing). Numpy only; knows nothing of models.
Legend: F frames, B buttons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rlir_ray.spaces.space import MuLaw

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
CameraBins = Callable[[npt.ArrayLike], npt.NDArray[np.int64]]
"""Function from degrees to the camera bins that a world model gets."""
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


@dataclass(frozen=True)
class CameraQuantizer:
    """Mu-law bins of a camera angle, as VPT and MineWorld use it.

    Args:
        max_degrees: angles are clipped to ± this value.
        bin_size: width of a bin after companding, in the companded unit (also ± `max_degrees`).
        mu: strength of the companding; larger gives finer bins near zero.
    """

    max_degrees: float
    bin_size: float
    mu: float

    @property
    def num_bins(self) -> int:
        return 2 * int(self.max_degrees / self.bin_size) + 1

    @property
    def null_bin(self) -> int:
        return int(self.max_degrees / self.bin_size)

    @cached_property
    def _law(self) -> MuLaw:
        return MuLaw(num_bins=self.num_bins, mu=self.mu)

    def bins(self, degrees: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Convert degrees of any shape to bin indices of the same shape."""
        return self._law.bins(np.asarray(degrees, np.float64), -self.max_degrees, self.max_degrees)

    def degrees(self, bins: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Convert bin indices of any shape to the degrees of their centres."""
        return self._law.centres(np.asarray(bins, np.int64), -self.max_degrees, self.max_degrees)


VPT_CAMERA = CameraQuantizer(max_degrees=10, bin_size=2, mu=10)
MINEWORLD_CAMERA = CameraQuantizer(max_degrees=90, bin_size=9, mu=11.4887)


@dataclass(frozen=True)
class Actions:
    """The actions of one clip, factored; contradictions are already cancelled.

    Args:
        buttons: bool [F, 23], columns in the order of `BUTTONS`.
        camera: float32 [F, 2], degrees of pitch (positive looks down) and yaw (positive turns right).

    Example: two frames, forward held in the second: ``Actions.from_events([{}, {"keyboard": {"keys":
    ["key.keyboard.w"]}}])`` has ``buttons[:, 2] == [False, True]``.
    """

    buttons: npt.NDArray[np.bool_]
    camera: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        num_frames = len(self.buttons)
        if self.buttons.shape != (num_frames, len(BUTTONS)) or self.camera.shape != (num_frames, 2):
            raise ValueError(
                f"actions need buttons [F, {len(BUTTONS)}] and camera [F, 2], got {self.buttons.shape} and "
                f"{self.camera.shape}; build them with Actions.from_events"
            )

    def __len__(self) -> int:
        return len(self.buttons)

    def __getitem__(self, frames: slice) -> Actions:
        return Actions(self.buttons[frames], self.camera[frames])

    def shifted(self, shift: int) -> Actions:
        """Return F actions; action k is the action k + shift of this object, or the null action if there is none."""
        buttons, camera = np.zeros_like(self.buttons), np.zeros_like(self.camera)
        kept, taken = slice(max(0, -shift), len(self) - max(0, shift)), slice(max(0, shift), len(self) - max(0, -shift))
        buttons[kept], camera[kept] = self.buttons[taken], self.camera[taken]
        return Actions(buttons, camera)

    @classmethod
    def from_events(cls, events: Sequence[Event]) -> Actions:
        """Convert events, one a frame, to actions. Missing or null fields mean that nothing is pressed.

        Args:
            events: events of the VPT recorder (`mouse`, `keyboard`), or of MineWorld's validation files, which hold the
                environment's action: ``{"forward": 1, "hotbar.1": 0, …, "camera": [pitch, yaw]}`` in degrees.
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
        return cls.from_buttons(buttons, camera)

    @classmethod
    def from_buttons(cls, buttons: npt.NDArray[np.bool_], camera: npt.NDArray[np.float32]) -> Actions:
        """Build actions from buttons bool [F, 23] and camera float32 [F, 2]; cancel contradictions."""
        return cls(cancel_contradictions(buttons), camera)


def recovered_actions(buttons: npt.NDArray[np.integer], camera: npt.NDArray[np.integer]) -> Actions:
    """Convert the values of an inverse dynamics model's heads to actions.

    Args:
        buttons: int [F, 20], 1 for pressed, in the order of `IDM_BUTTONS`; the other buttons stay released.
        camera: int [F, 2], bins of `VPT_CAMERA`, pitch first.

    Returns:
        F actions; contradictions are cancelled as in `Actions.from_events`, and angles are the centres of their bins.
    """
    without_head = np.zeros((len(buttons), len(BUTTONS) - len(IDM_BUTTONS)), np.bool_)
    pressed = np.concatenate([np.asarray(buttons) != 0, without_head], 1)
    return Actions.from_buttons(pressed, VPT_CAMERA.degrees(camera).astype(np.float32))


def cancel_contradictions(buttons: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Release both buttons of each contradicting pair; bool [..., B] in the order of `BUTTONS`, B is 20 or 23."""
    buttons = buttons.copy()
    for first, second in CONTRADICTIONS:
        both = buttons[..., BUTTON_INDEX[first]] & buttons[..., BUTTON_INDEX[second]]
        buttons[..., BUTTON_INDEX[first]] &= ~both
        buttons[..., BUTTON_INDEX[second]] &= ~both
    return buttons


# ---------------------------------------------------------------------------------------------------------------------
# Groups of mutually exclusive actions, which rewards and evaluation compare


@dataclass(frozen=True)
class ActionGroup:
    """Mutually exclusive actions: class 0 is "none", class i is `members[i - 1]`.

    A camera axis is a group whose classes are the bins of `VPT_CAMERA`.
    """

    name: str
    members: tuple[str, ...] = ()
    camera_axis: int | None = None  # None: a group of buttons

    @property
    def num_classes(self) -> int:
        return VPT_CAMERA.num_bins if self.camera_axis is not None else len(self.members) + 1

    @property
    def null_class(self) -> int:
        """Class of a frame without an action of this group."""
        return VPT_CAMERA.null_bin if self.camera_axis is not None else 0

    @cached_property
    def columns(self) -> list[int]:
        return [BUTTON_INDEX[name] for name in self.members]


GROUPS = {
    group.name: group
    for group in (
        ActionGroup("forward_back", ("forward", "back")),
        ActionGroup("left_right", ("left", "right")),
        ActionGroup("sprint_sneak", ("sprint", "sneak")),
        ActionGroup("use_attack", ("use", "attack")),
        ActionGroup("jump", ("jump",)),
        ActionGroup("drop", ("drop",)),
        ActionGroup("inventory", ("inventory",)),
        ActionGroup("hotbar", tuple(f"hotbar.{slot}" for slot in range(1, 10))),
        ActionGroup("pitch", camera_axis=0),
        ActionGroup("yaw", camera_axis=1),
    )
}


def group_classes(actions: Actions, groups: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the class of each group in each frame.

    Args:
        actions: F frames.
        groups: names from `GROUPS`, in the order of the columns.

    Returns:
        int64 [F, len(groups)]; if several members are pressed (hotbar), the first one counts, as in MineWorld's tokens.
    """
    classes = np.zeros((len(actions), len(groups)), np.int64)
    for column, name in enumerate(groups):
        group = GROUPS[name]
        if group.camera_axis is not None:
            classes[:, column] = VPT_CAMERA.bins(actions.camera[:, group.camera_axis])
        else:
            pressed = actions.buttons[:, group.columns]
            classes[:, column] = np.where(pressed.any(1), pressed.argmax(1) + 1, 0)
    return classes
