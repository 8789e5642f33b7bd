"""How world models get actions: tokens and classes by hand, and the settings that a checkpoint states."""

from __future__ import annotations

import numpy as np
import pytest

from rlir_ray.spaces.fields import Axis, Uniform
from rlir_ray.spaces.layouts import (
    FieldsLayout,
    MineworldLayout,
    OasisLayout,
    check_layout,
    layout_for,
    layout_of,
    layout_settings,
)
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE
from tests.fakes import tiny_actions
from tests.second_space import LAYOUT, SPACE, second_actions

# Nine bins of 2/9: -1 is in bin 0, 0 in bin 4, 0.5 in bin 6 (from 1/3 to 5/9), 1 in bin 8.
ACTIONS = Actions(SPACE, np.array([[0, -1], [1, 0], [2, 0.5], [2, 1]], np.float32))


def test_an_action_is_bos_one_token_a_field_and_eos() -> None:
    # Behind 100 image ids: BOS 100, the choice 101 to 103, the axis 104 to 112, EOS 113.
    assert LAYOUT.tokens(ACTIONS, 100).tolist() == [
        [100, 101, 104, 113],
        [100, 102, 108, 113],
        [100, 103, 110, 113],
        [100, 103, 112, 113],
    ]
    assert (LAYOUT.num_tokens, LAYOUT.num_ids) == (4, 14)


def test_a_field_is_one_class() -> None:
    assert LAYOUT.classes(ACTIONS).tolist() == [[0, 0], [1, 4], [2, 6], [2, 8]]
    assert LAYOUT.class_counts == (3, 9)
    assert LAYOUT.classes(SPACE.nothing(1)).tolist() == [[1, 4]]


def test_values_of_one_bin_are_one_input() -> None:
    axis = SPACE.axes[0]
    cells = LAYOUT.token_cells(axis, np.array([0.5, -1], np.float32))
    assert [np.flatnonzero(row).tolist() for row in cells] == [[6], [0]]
    np.testing.assert_array_equal(LAYOUT.class_cells(axis, np.array([0.5, -1], np.float32)), cells)


def test_mineworld_has_11_tokens_of_70_ids_and_nine_classes() -> None:
    layout = MineworldLayout()
    assert (layout.num_tokens, layout.num_ids, layout.class_counts) == (11, 70, (21, 21, 10, 3, 3, 3, 3, 2, 3))
    assert layout.tokens(tiny_actions(3), 8192).shape == (3, 11)
    assert layout.classes(VPT_SPACE.nothing(1)).tolist() == [[10, 10, 0, 0, 0, 0, 0, 0, 0]]


def test_oasis_has_one_class_for_each_of_its_25_numbers() -> None:
    layout, actions = OasisLayout(), tiny_actions(4, 0)
    classes = layout.classes(actions)
    assert classes.shape == (4, 25) and layout.class_counts.count(2) == 23 and layout.class_counts.count(81) == 2
    assert bool((classes < np.array(layout.class_counts)).all())
    tokens = layout.tokens(actions, 100)
    assert tokens.shape == (4, layout.num_tokens) and layout.num_ids == 2 + 23 * 2 + 2 * 81
    # Each column has ids of its own, in the columns' order, between BOS and EOS.
    assert bool((np.diff(tokens, axis=1) > 0).all()) and set(tokens[:, -1]) == {100 + layout.num_ids - 1}


def test_settings_open_the_layout_that_wrote_them() -> None:
    assert layout_settings(MineworldLayout()) == {}
    for settings in ({}, {"action_space": None, "action_layout": None}):
        assert isinstance(layout_of(settings), MineworldLayout)
    again = layout_of({"vocab_size": 46, **layout_settings(LAYOUT)})
    assert isinstance(again, FieldsLayout) and again.space == SPACE
    plain = layout_of({"action_space": VPT_SPACE.to_plain()})
    assert plain.name == "fields" and plain.num_tokens == 2 + len(VPT_SPACE)
    assert layout_of({"action_space": VPT_SPACE.to_plain(), "action_layout": "mineworld"}).num_tokens == 11


def test_new_models_of_vpts_space_get_mineworlds_layout() -> None:
    assert layout_for(VPT_SPACE).name == "mineworld" and layout_for(SPACE).name == "fields"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"action_space": SPACE.to_plain(), "action_layout": "words"},
            "must be one of mineworld, fields, oasis, rlvr_world, got 'words'",
        ),
        ({"action_space": SPACE.to_plain(), "action_layout": "mineworld"}, "must have the action space of the layout"),
        ({"action_space": {"fields": []}}, "must hold an action space, got an error at fields"),
    ],
)
def test_settings_that_state_no_layout_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout_of(settings)


def test_actions_of_another_space_are_refused_field_by_field() -> None:
    wider = ActionSpace((SPACE.fields[0], Axis(name="steer", low=-1, high=1, quantizer=Uniform(num_bins=11))))
    with pytest.raises(ValueError, match=r"field 1: steer, .* in 9 uniform bins here, .* 11 uniform bins there"):
        LAYOUT.tokens(Actions(wider, ACTIONS.values), 100)
    with pytest.raises(ValueError, match="field 0: gear, a choice of reverse, neutral, forward here, forward_back"):
        LAYOUT.classes(tiny_actions(2))
    with pytest.raises(ValueError, match=r"field 2: sprint_sneak, .* here, none there; and 10 more; here is"):
        MineworldLayout().tokens(second_actions(2), 8192)


def test_one_space_in_two_layouts_is_refused() -> None:
    check_layout(LAYOUT, FieldsLayout(SPACE), "the model", "the recordings")
    with pytest.raises(ValueError, match="action_layout=mineworld, got fields"):
        check_layout(MineworldLayout(), FieldsLayout(VPT_SPACE), "the model", "the recordings")
