"""What VPT recorders got wrong is put right, and no event of the caller's is changed."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from rlir_ray.data.vpt.events import parse_event, recorder_version, repair_events
from rlir_ray.spaces.vpt import BUTTON_INDEX, BUTTONS, actions_from_events, buttons_of, camera_of
from rlir_ray.worlds.doom_player import Command, command_event
from tests.data.videos import event

NOTHING_PRESSED: dict[str, Any] = {name: 0 for name in BUTTONS}


def held(buttons: list[int], new: list[int]) -> dict[str, Any]:
    return event() | {"mouse": {"dx": 1.0, "dy": 0.0, "buttons": buttons, "newButtons": new}}


def pressed(events: list[dict[str, Any]], button: str) -> list[bool]:
    return buttons_of(actions_from_events(events).classes)[:, BUTTON_INDEX[button]].tolist()


def test_attack_that_is_stuck_at_the_start_is_released_until_it_is_pressed_anew() -> None:
    events = [held([0], [0]), held([0, 1], [1]), held([], []), held([0], [0]), held([0], []), held([], [])]
    before = copy.deepcopy(events)
    repaired = repair_events(events)
    assert [each["mouse"]["buttons"] for each in repaired] == [[], [1], [], [0], [0], []]
    assert events == before


def test_attack_that_is_pressed_with_another_button_or_later_is_not_stuck() -> None:
    for events in (
        [held([0, 1], [0, 1]), held([0], [])],
        [held([], []), held([0], [0])],
        [held([0], []), held([0], [])],
    ):
        assert repair_events(events) == events


def test_a_slot_of_the_scroll_wheel_presses_its_number_key_once() -> None:
    # 4 -> 4 -> 0 by the wheel, then 0 -> 8 by a key that was recorded, then a line without the field.
    events = [event(hotbar=4), event(["w"], hotbar=4), event(keys=["w"], hotbar=0), event(keys=["9"], hotbar=8), {}]
    events += [event(hotbar=8), event(hotbar=1, keyboard=None)]
    before = copy.deepcopy(events)
    repaired = repair_events(events)
    assert [each["keyboard"]["keys"] for each in repaired[2:4]] == [
        ["key.keyboard.w", "key.keyboard.1"],
        ["key.keyboard.9"],
    ]
    assert repaired[:2] == events[:2] and repaired[4:6] == events[4:6]
    assert repaired[6]["keyboard"] == {"keys": ["key.keyboard.2"]}
    assert events == before


@pytest.mark.parametrize(
    ("version", "scale"), [("5.7", 0.5), ("5.8", 0.5), ("6.7", 2), ("6.9", 2), ("8.0", 1), ("", 1)]
)
def test_mouse_motion_in_a_gui_is_scaled_by_the_recorders_version_and_no_other_motion(
    version: str, scale: float
) -> None:
    # The published rule: "If GUI is open, mouse dx/dy need also be adjusted with these scalers."
    events = [event(dx=8.0), event(dx=8.0, isGuiOpen=True), {"mouse": None, "isGuiOpen": True}]
    before = copy.deepcopy(events)
    repaired = repair_events(events, version)
    assert [each["mouse"]["dx"] for each in repaired[:2]] == [8.0, 8.0 * scale]
    assert repaired[2] == events[2]
    assert events == before


def test_the_version_is_the_nearest_folder_that_is_named_like_one() -> None:
    assert recorder_version("data/6.9/player-1") == "6.9"
    assert recorder_version("/5.7/data/10.0/more/player-1") == "10.0"
    assert recorder_version("data/player-6.9") == recorder_version("6.9") == recorder_version("v6.9.1/player") == ""


def test_recordings_of_the_embedded_world_stay_as_they_are() -> None:
    commands = [Command(), Command(attack=True), Command(move=1, attack=True), Command(jump=True, yaw_pixels=21)]
    events = [command_event(new, old) for old, new in zip([commands[0], *commands], commands, strict=False)]
    assert repair_events(events) == events


def test_null_parts_are_read_as_nothing_pressed() -> None:
    events = [{"mouse": None, "keyboard": None}, {"mouse": {"dx": None, "buttons": None}, "keyboard": {"keys": None}}]
    events = repair_events([parse_event(json.dumps(each)) for each in events])
    actions = actions_from_events(events)
    assert not actions.values.any()


def test_lines_of_mineworlds_validation_files_are_read() -> None:
    action = NOTHING_PRESSED | {"forward": 1, "hotbar.3": 1, "jump": 1, "sneak": 1}
    as_json = json.dumps(action | {"camera": [1.5, -3]})
    as_printed = repr(action | {"camera": None}).replace("None", "array([ 1.5, -3. ])")
    with_kind = repr(action | {"camera": None}).replace("None", "np.array([1.5, -3.], dtype=float32)")
    for line in (as_json, as_printed, with_kind):
        actions = actions_from_events([parse_event(line)])
        np.testing.assert_allclose(camera_of(actions), [[1.5, -3]])
        # Jump and sneak contradict each other.
        assert {BUTTONS[index] for index in np.flatnonzero(buttons_of(actions.classes)[0])} == {"forward", "hotbar.3"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'forward': 1, 'camera': array([0, 0])", "no JSON and no Python literal"),
        ("{'forward': __import__('os').getcwd(), 'camera': array([0, 0])}", "no JSON and no Python literal"),
        ("{'forward': 1, 'camera': array([0, 0, 0])}", r"camera must be \[pitch, yaw\] in degrees"),
        ('{"camera": [0, NaN]}', r"camera must be \[pitch, yaw\] in degrees"),
        ('{"mouse": {"dx": "far"}}', "mouse.dx must be a finite number or null, got 'far'"),
        ('{"mouse": {"dy": NaN}}', "mouse.dy must be a finite number"),
        ('{"mouse": [1]}', r"mouse must be an object or null, got \[1\]"),
        ('{"keyboard": {"keys": "w"}}', "keyboard.keys must be a list of str, got 'w'"),
        ('{"mouse": {"newButtons": ["left"]}}', "mouse.newButtons must be a list of int"),
        ('{"hotbar": "first"}', "hotbar must be a finite number or null"),
        ("", r"no JSON \(Expecting value\)"),
        ("[1]", r"an event is a JSON object, got '\[1\]'"),
    ],
)
def test_a_line_that_is_no_event_is_refused_with_its_reason(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_event(line)


def test_events_of_the_recorder_press_what_they_name() -> None:
    assert pressed([event(keys=["w"]), event(buttons=[0])], "forward") == [True, False]
    assert pressed([event(keys=["w"]), event(buttons=[0])], "attack") == [False, True]
