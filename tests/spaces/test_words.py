"""Actions as a person types them."""

from __future__ import annotations

import numpy as np
import pytest

from rlir_ray.spaces.fields import Choice
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE
from rlir_ray.spaces.words import parse_actions, vocabulary
from tests.second_space import SPACE


def test_words_times_and_numbers() -> None:
    actions = parse_actions("forward*2, forward+turn_left+attack, yaw=2.5, none*2,", VPT_SPACE)
    found = actions.values_of(["forward_back", "use_attack", "yaw"])
    np.testing.assert_array_equal(found, [[1, 0, 0], [1, 0, 0], [1, 2, -5], [0, 0, 2.5], [0, 0, 0], [0, 0, 0]])
    pitch = parse_actions("look_down, look_up", VPT_SPACE).values_of(["pitch"])
    np.testing.assert_array_equal(pitch, [[5], [-5]])


def test_a_class_of_two_fields_needs_its_field() -> None:
    space = ActionSpace(tuple(Choice(name=name, classes=("none", "on")) for name in ("lamp", "heater")))
    assert not vocabulary(space)
    np.testing.assert_array_equal(parse_actions("heater=on, lamp=on", space).values, [[0, 1], [1, 0]])
    with pytest.raises(ValueError, match="an action must be one of none, lamp=…, heater=…, got 'on'"):
        parse_actions("on", space)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold at least one word, got ''; give for example 'forward.4, back.4'"),
        ("fly", r"must be one of forward, back, .*turn_right, none, .*yaw=…, got 'fly'"),
        ("forward*0", r"a number of frames must follow \*, got 'forward\*0'"),
        ("forward*", r"a number of frames must follow \*, got 'forward\*'"),
        ("forward*1e3", r"a number of frames must follow \*"),
        ("forward+back", "a frame must set forward_back once, got forward and back; leave one out"),
        ("jump=high", "jump must be one of none, jump, got 'high'"),
        ("yaw=left", "yaw must be a number, got 'left'; give -10 to 10"),
        ("gear=2", "a field must be of the action space, got gear"),
        ("forward*999999", "actions must be at most 100000 frames"),
    ],
)
def test_a_wrong_word_is_told_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        parse_actions(text, VPT_SPACE)
    assert "\n" not in str(refusal.value)


def test_a_number_outside_of_its_axis_is_refused_where_the_axis_has_ends() -> None:
    axis = next(axis for axis in SPACE.axes if not axis.is_clipped)
    with pytest.raises(ValueError, match=axis.name):
        parse_actions(f"{axis.name}={axis.high + 1}", SPACE)
