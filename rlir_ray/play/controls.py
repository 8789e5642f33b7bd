"""Which keys and pointer moves command which fields of an action space, for the page to drive a model in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from rlir_ray.spaces.fields import Axis, Choice
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE
from rlir_ray.spaces.words import TURN

VPT_KEYS = {
    "forward": ("KeyW", "W"),
    "back": ("KeyS", "S"),
    "left": ("KeyA", "A"),
    "right": ("KeyD", "D"),
    "jump": ("Space", "space"),
    "sneak": ("ShiftLeft", "shift"),
    "sprint": ("ControlLeft", "ctrl"),
    "attack": ("KeyF", "F"),
    "use": ("KeyR", "R"),
    "drop": ("KeyQ", "Q"),
    "inventory": ("KeyE", "E"),
    **{f"hotbar.{slot}": (f"Digit{slot}", str(slot)) for slot in range(1, 10)},
}
"""Button of VPT's recorder -> code of the key in a browser, and its label."""
TURN_KEYS = {
    "right": (("ArrowLeft", "←"), ("ArrowRight", "→")),
    "down": (("ArrowUp", "↑"), ("ArrowDown", "↓")),
}
"""Direction of an axis -> keys for a move down and up the axis."""
ARROWS = (("ArrowUp", "↑"), ("ArrowDown", "↓"), ("ArrowLeft", "←"), ("ArrowRight", "→"))
DIGITS = tuple((f"Digit{number}", str(number)) for number in (*range(1, 10), 0))
LETTERS = tuple((f"Key{letter}", letter) for letter in "QWERTYUIOPASDFGHJKLZXCVBNM")
POINTER = ("x", "y")


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyControl:
    """A key that sets a field while it is held."""

    code: str
    """`KeyboardEvent.code` of the key."""
    label: str
    field: str
    value: float
    words: str
    """What the key does, for the legend."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PointerControl:
    """An axis that the pointer's place over the picture sets, or a slider."""

    direction: str
    """``x`` or ``y``; empty: a slider."""
    field: str
    low: float
    high: float
    rest: float
    """Value without the pointer."""
    unit: str


@dataclass(frozen=True, slots=True)
class Controls:
    """All controls of a world."""

    keys: tuple[KeyControl, ...]
    pointers: tuple[PointerControl, ...]

    def to_json(self) -> dict[str, object]:
        return {"keys": [asdict(key) for key in self.keys], "pointers": [asdict(each) for each in self.pointers]}


def controls_of(space: ActionSpace, names: Sequence[str]) -> Controls:
    """Return the controls of the named fields: VPT's keys for its space, else arrows, numbers and letters for choices.

    Axes with a direction have arrows in VPT's space; every other axis has the pointer or a slider. A class that finds
    no free key is left out.
    """
    fields = space.select(names)
    choices = [field for field in fields if isinstance(field, Choice)]
    axes = [field for field in fields if isinstance(field, Axis)]
    if space == VPT_SPACE:
        return Controls((*_vpt_keys(choices), *_turn_keys(axes)), ())
    free = iter((*ARROWS, *DIGITS, *LETTERS))
    keys = []
    for field in choices:
        for number, words in enumerate(field.classes):
            if number != field.null_class and (key := next(free, None)) is not None:
                keys.append(_key(key, field, float(number), words if len(choices) == 1 else f"{field.name} {words}"))
    pointers = [
        PointerControl(
            direction=POINTER[place] if place < len(POINTER) else "",
            field=axis.name,
            low=axis.low,
            high=axis.high,
            rest=min(max(0.0, axis.low), axis.high),
            unit=axis.unit,
        )
        for place, axis in enumerate(axes)
    ]
    return Controls(tuple(keys), tuple(pointers))


def _vpt_keys(choices: Sequence[Choice]) -> Iterator[KeyControl]:
    for field in choices:
        for number, words in enumerate(field.classes):
            if number != field.null_class and words in VPT_KEYS:
                yield _key(VPT_KEYS[words], field, float(number), words)


def _turn_keys(axes: Sequence[Axis]) -> Iterator[KeyControl]:
    for axis in axes:
        for key, end in zip(TURN_KEYS.get(axis.direction, ()), (axis.low, axis.high), strict=False):
            yield _key(key, axis, TURN * end, f"{axis.name} {TURN * end:+g}")


def _key(key: tuple[str, str], field: Choice | Axis, value: float, words: str) -> KeyControl:
    return KeyControl(code=key[0], label=key[1], field=field.name, value=value, words=words)


def action_of(values: Mapping[object, object], space: ActionSpace, names: Sequence[str]) -> Actions:
    """Return one action from the values that a page sends; fields that are left out do nothing.

    Raises:
        ValueError: a field is unknown, or a value is no number, no class of the field, or outside its axis.
    """
    row = space.nothing(1).values.copy()
    for name, value in values.items():
        if name not in names:
            raise ValueError(f"an action may set {', '.join(names)}, got {str(name)[:40]!r}; leave it out")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {str(value)[:40]!r}; correct it")
        (column,) = space.columns([str(name)])
        row[0, column] = value
    return Actions(space, row)
