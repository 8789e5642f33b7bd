"""Events of the VPT recorder: parse a line of the jsonl, and repair known errors of the recorder.

Pure functions that never modify their arguments; independent of files and frames.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Sequence
from pathlib import PurePath

from rlir_ray.spaces.vpt import Event

ATTACK = 0  # the recorder's number of the left mouse button
# Scale of mouse motion in an open GUI by version of the recorder, as in VPT's data loader; 1 for other versions.
GUI_MOUSE_SCALES = {"5.7": 0.5, "5.8": 0.5, "6.7": 2.0, "6.8": 2.0, "6.9": 2.0}

VERSION = re.compile(r"\d+\.\d+")
# MineWorld's files hold the camera as a printed numpy array: array([0., 1.5]), with or without a dtype.
PRINTED_ARRAY = re.compile(r"(?:np\.|numpy\.)?array\((\[[^()\[\]]*\])(?:,\s*dtype=[\w.]+)?\)")


def parse_event(line: str) -> Event:
    """Parse one line of a recording: the VPT recorder's JSON object, or MineWorld's, which may be a Python literal.

    Raises:
        ValueError: the line is neither, or a field of an action has a wrong type.
    """
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:
        if not line.startswith("{'"):
            raise ValueError(f"no JSON ({getattr(error, 'msg', error)})") from error
        event = _parse_literal(line)
    if not isinstance(event, dict):
        raise ValueError(f"an event is a JSON object, got {line[:40]!r}")
    _check_event(event)
    return event


def _parse_literal(line: str) -> object:
    try:
        return ast.literal_eval(PRINTED_ARRAY.sub(r"\1", line))
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"no JSON and no Python literal, got {line[:40]!r}") from error


def _check_event(event: Event) -> None:
    """Check the types of all fields that hold actions; null means nothing pressed."""
    mouse, keyboard = event.get("mouse"), event.get("keyboard")
    for key, part in (("mouse", mouse), ("keyboard", keyboard)):
        if part is not None and not isinstance(part, dict):
            raise ValueError(f"{key} must be an object or null, got {part!r:.40}")
    for key, kind, values in (
        ("keyboard.keys", str, (keyboard or {}).get("keys")),
        ("mouse.buttons", int, (mouse or {}).get("buttons")),
        ("mouse.newButtons", int, (mouse or {}).get("newButtons")),
    ):
        if values is not None and not (isinstance(values, list) and all(isinstance(value, kind) for value in values)):
            raise ValueError(f"{key} must be a list of {kind.__name__}, got {values!r:.40}")
    numbers = {f"mouse.{key}": (mouse or {}).get(key) for key in ("dx", "dy")}
    for key, value in (numbers | {key: event.get(key) for key in ("hotbar", "wallDistance")}).items():
        if value is not None and not _is_number(value):
            raise ValueError(f"{key} must be a finite number or null, got {value!r:.40}")
    camera = event.get("camera", [0, 0])
    if not (isinstance(camera, list | tuple) and len(camera) == 2 and all(map(_is_number, camera))):
        raise ValueError(f"camera must be [pitch, yaw] in degrees, got {camera!r:.40}")


def _is_number(value: object) -> bool:
    # JSON allows integers of any length; reject an integer that a float cannot hold.
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def recorder_version(path: PurePath | str) -> str:
    """Return the recorder's version: the nearest parent folder that is named like a version ("6.9"), or ""."""
    names = (parent.name for parent in PurePath(path).parents)
    return next((name for name in names if VERSION.fullmatch(name)), "")


def repair_events(events: Sequence[Event], version: str = "") -> list[Event]:
    """Repair all known errors of VPT recordings, as VPT's own data loader does.

    Args:
        events: all events of one recording from its start.
        version: the recorder's version, from `recorder_version`.
    """
    return scale_gui_mouse(add_hotbar_keys(release_stuck_attack(events)), GUI_MOUSE_SCALES.get(version, 1.0))


def release_stuck_attack(events: Sequence[Event]) -> list[Event]:
    """Release an attack button that is down when the recording starts, until the player presses the button again."""
    repaired = list(events)
    if not events or _new_buttons(events[0]) != [ATTACK]:
        return repaired
    for index, event in enumerate(events):
        if index > 0 and ATTACK in _new_buttons(event):
            break
        if mouse := event.get("mouse"):
            buttons = [button for button in mouse.get("buttons") or [] if button != ATTACK]
            repaired[index] = event | {"mouse": mouse | {"buttons": buttons}}
    return repaired


def _new_buttons(event: Event) -> list[int]:
    return (event.get("mouse") or {}).get("newButtons") or []


def add_hotbar_keys(events: Sequence[Event]) -> list[Event]:
    """Add the number key of a slot chosen with the scroll wheel, which only the `hotbar` field shows."""
    repaired, last_slot = list(events), None
    for index, event in enumerate(events):
        slot = event.get("hotbar")
        if slot is None:
            continue
        if last_slot not in (None, slot):
            keyboard = event.get("keyboard") or {}
            key, keys = f"key.keyboard.{int(slot) + 1}", keyboard.get("keys") or []
            repaired[index] = event | {"keyboard": keyboard | {"keys": keys if key in keys else [*keys, key]}}
        last_slot = slot
    return repaired


def scale_gui_mouse(events: Sequence[Event], scale: float) -> list[Event]:
    """Scale mouse motion in an open GUI, which some recorders wrote in another unit than camera motion."""
    if scale == 1:
        return list(events)
    return [
        event | {"mouse": mouse | {axis: (mouse.get(axis) or 0) * scale for axis in ("dx", "dy")}}
        if event.get("isGuiOpen") and (mouse := event.get("mouse"))
        else event
        for event in events
    ]
