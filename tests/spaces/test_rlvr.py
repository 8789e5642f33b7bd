"""RLVR-World's actions against outputs of the published code, and as a token layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from rlir_ray.spaces.layouts import RlvrLayout, layout_of, layout_settings
from rlir_ray.spaces.rlvr import RANGES, RT1_SPACE, action_bins
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "rlvr_actions" / "io.safetensors")
ROWS, TOKENS = GOLDEN["rows"], GOLDEN["tokens"]


def test_tokens_are_the_published_ones_on_and_beside_the_edges_too() -> None:
    assert np.array_equal(RANGES, GOLDEN["ranges"]) and GOLDEN["is_boundary"].sum() == 20
    assert np.array_equal(action_bins(ROWS), TOKENS)
    assert np.array_equal(RlvrLayout().tokens(Actions(RT1_SPACE, ROWS), 4375), TOKENS + 4375)


def test_float64_would_give_other_tokens_on_some_edge() -> None:
    assert not np.array_equal(Actions(RT1_SPACE, ROWS).classes, TOKENS)


def test_the_layout_fills_the_published_vocabulary() -> None:
    layout = RlvrLayout()
    assert (layout.num_tokens, 4375 + layout.num_ids) == (13, 4633)
    assert layout.class_counts == (256,) * 13
    again = layout_of({"vocab_size": 4633, **layout_settings(layout)})
    assert isinstance(again, RlvrLayout)
    assert ActionSpace.from_plain(RT1_SPACE.to_plain()) == RT1_SPACE


def test_a_cell_is_the_bin_of_the_command() -> None:
    gripper = RT1_SPACE.fields[RT1_SPACE.names.index("gripper_closedness_action")]
    # 256 bins of 2/256 from -1 on: 0.1 is in bin 140 (140.8), numbers beyond the ends are in the first and last bin.
    cells = RlvrLayout().token_cells(gripper, np.array([0.1, -3, 3], np.float32))
    assert [np.flatnonzero(row).tolist() for row in cells] == [[140], [0], [255]]
    # A number beside an edge can be in two bins, of the model's arithmetic and of the axis': the cell has both.
    for column, axis in enumerate(RT1_SPACE.axes):
        held = RlvrLayout().class_cells(axis, ROWS[:, column])
        rows = np.arange(len(ROWS))
        assert held[rows, TOKENS[:, column]].all() and held[rows, axis.bins(ROWS[:, column])].all()
        assert held.sum(1).max() <= 2


def test_other_actions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be 13 finite numbers a frame, got \[2, 7\]"):
        action_bins(np.zeros((2, 7), np.float32))
    with pytest.raises(ValueError, match="finite numbers a frame, got NaN or infinity"):
        action_bins(np.full((2, 13), np.nan, np.float32))
    with pytest.raises(ValueError, match="must have the action space of the world model's checkpoint"):
        RlvrLayout().tokens(VPT_SPACE.nothing(2), 0)
    with pytest.raises(ValueError, match="the layout rlvr_world"):
        layout_of({"action_space": VPT_SPACE.to_plain(), "action_layout": "rlvr_world"})
