"""One clip's actions in the conventions of published projects, for a person: VPT, MineWorld, Oasis, an action space.

Wrong pairing of conventions is the usual mistake with published world models, so that each convention also says which
action leads into which frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rlir_ray.spaces.fields import Axis, Choice
from rlir_ray.spaces.mineworld import action_tokens
from rlir_ray.spaces.oasis import OASIS_FIELDS, oasis_classes, oasis_rows
from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.vpt import BUTTONS, VPT_CAMERA, VPT_SPACE, buttons_of, camera_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Convention:
    """One way to write the actions of a clip."""

    alignment: str
    """Which action leads into which frame."""
    lines: Callable[[Actions], list[str]]
    """One line a frame."""


def _vpt_lines(actions: Actions) -> list[str]:
    buttons, camera = buttons_of(actions.classes), camera_of(actions)
    lines = []
    for pressed, (pitch, yaw), (pitch_bin, yaw_bin) in zip(buttons, camera, VPT_CAMERA.bins(camera), strict=True):
        names = [BUTTONS[index] for index in np.flatnonzero(pressed)]
        turn = f"pitch {pitch:+.2f} (bin {pitch_bin})  yaw {yaw:+.2f} (bin {yaw_bin})"
        lines.append(f"{turn}  {' '.join(names) or '-'}")
    return lines


def _mineworld_lines(actions: Actions) -> list[str]:
    return [" ".join(map(str, row)) for row in action_tokens(actions)]


def _oasis_lines(actions: Actions) -> list[str]:
    lines = []
    for row in oasis_rows(oasis_classes(actions)):
        named = (f"{name} {value:+g}" for name, value in zip(OASIS_FIELDS, row, strict=True) if value)
        lines.append("  ".join(named) or "-")
    return lines


def _words(field: Choice | Axis, value: float, number: int) -> str:
    if isinstance(field, Choice):
        return field.words(value)
    return " ".join((f"{value:+.2f}", *filter(None, [field.unit]), f"(bin {number})"))


def _space_lines(actions: Actions) -> list[str]:
    lines = []
    for values, classes in zip(actions.values, actions.classes, strict=True):
        cells = []
        for field, value, number in zip(actions.space.fields, values, classes, strict=True):
            if number != field.null_class:
                cells.append(f"{field.name} {_words(field, value, number)}")
        lines.append("  ".join(cells) or "-")
    return lines


CONVENTIONS = {
    "vpt": Convention(
        alignment="event k leads into frame k; degrees, and the bins of VPT's quantizer; contradicting buttons cancel "
        "each other",
        lines=_vpt_lines,
    ),
    "mineworld": Convention(
        alignment="the 11 tokens of line k stand before the tokens of frame k and lead into it: BOS, pitch, yaw, "
        "hotbar, forward/back, left/right, sprint/sneak, use/attack, jump, drop/pickItem, EOS; ids from 8192 on",
        lines=_mineworld_lines,
    ),
    "oasis": Convention(
        alignment="line k conditions frame k and leads into it; an Oasis action file has no line for frame 0, so its "
        "line k is this line k + 1; cameraX is pitch; numbers that are 0 are left out",
        lines=_oasis_lines,
    ),
    "space": Convention(
        alignment="value k leads into frame k; fields that do nothing are left out",
        lines=_space_lines,
    ),
}


def describe(actions: Actions, convention: str) -> list[str]:
    """Return a clip's actions as lines for a terminal: the alignment, then one line a frame.

    Args:
        actions: of the clip; action k leads INTO frame k.
        convention: key of `CONVENTIONS`.

    Raises:
        ValueError: the actions are not in VPT's space, which the convention needs.
    """
    chosen = CONVENTIONS[convention]
    if convention != "space" and actions.space != VPT_SPACE:
        raise ValueError(
            f"--to {convention} needs a recording in VPT's action space, got one with the fields "
            f"{', '.join(actions.space.names)}; use --to space"
        )
    width = len(str(len(actions)))
    rows = (f"{frame:>{width}}  {line}" for frame, line in enumerate(chosen.lines(actions)))
    return [f"{convention}: {chosen.alignment}", *rows]
