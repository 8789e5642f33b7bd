"""The script: shares, hold times, and how it minds the walls."""

from __future__ import annotations

import numpy as np
import pytest

from rlir_ray.spaces.mineworld import MINEWORLD_CAMERA
from rlir_ray.spaces.vpt import DEGREES_PER_PIXEL, VPT_CAMERA
from rlir_ray.worlds.doom_player import (
    YAW_PIXELS,
    Command,
    Observation,
    ScriptedPlayer,
    command_event,
    draw_commands,
)


def test_each_turn_has_a_bin_of_its_own_in_both_quantisers() -> None:
    degrees = np.array(YAW_PIXELS) * DEGREES_PER_PIXEL
    assert VPT_CAMERA.bins(degrees).tolist() == [0, 1, 2, 5, 8, 9, 10]
    # MineWorld truncates to whole degrees first: ±10, ±5, ±3.
    assert len(set(MINEWORLD_CAMERA.bins(np.trunc(degrees)).tolist())) == len(YAW_PIXELS)


def test_drawn_commands_have_the_shares_of_the_script() -> None:
    actions = draw_commands(20_000, np.random.default_rng(0))
    forward_back, jump, attack, yaw = actions.classes_of(["forward_back", "jump", "use_attack", "yaw"]).T
    assert np.bincount(forward_back) / 20_000 == pytest.approx([0.25, 0.48, 0.27], abs=0.03)
    assert 0.15 < jump.mean() < 0.2 and 0.3 < (attack == 2).mean() < 0.4
    for turn in (0, 1, 2, 8, 9, 10):
        assert (yaw == turn).mean() > 0.08
    assert not actions.values_of(["pitch", "left_right"]).any()


def test_drawn_jumps_are_apart_and_a_rest_lies_between_opposite_walks() -> None:
    actions = draw_commands(5_000, np.random.default_rng(1))
    jump, walk = actions.classes_of(["jump", "forward_back"]).T
    assert np.diff(np.flatnonzero(jump)).min() == 4
    forward, back = walk == 1, walk == 2
    assert not (forward[1:] & back[:-1]).any() and not (back[1:] & forward[:-1]).any()


def test_the_same_seed_draws_the_same_commands() -> None:
    first, again, other = (draw_commands(50, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.equals(again)
    assert not np.array_equal(first.values_of(["yaw"]), other.values_of(["yaw"]))


def test_the_player_does_not_walk_into_a_wall_that_it_sees() -> None:
    player = ScriptedPlayer(np.random.default_rng(0))
    moves = [player.next(Observation(ahead=30.0)).move for _ in range(500)]
    assert 1 not in moves and -1 in moves


def test_the_player_turns_to_the_open_side() -> None:
    player = ScriptedPlayer(np.random.default_rng(0))
    yaw = np.array([player.next(Observation(ahead=100.0, left=50.0, right=900.0)).yaw_pixels for _ in range(1000)])
    assert (yaw > 0).sum() > 3 * (yaw < 0).sum() > 0


def test_a_blocked_walk_is_given_up() -> None:
    player = ScriptedPlayer(np.random.default_rng(0))
    while not player.next(Observation()).move:
        pass
    assert player.next(Observation(blocked=True)).move == 0


def test_no_jump_in_the_air() -> None:
    player = ScriptedPlayer(np.random.default_rng(0))
    assert not any(player.next(Observation(on_ground=False)).jump for _ in range(200))


def test_events_tell_new_keys_and_buttons() -> None:
    event = command_event(Command(move=1, jump=True, attack=True), Command(move=1), {"tick": 5})
    assert event["keyboard"]["keys"] == ["key.keyboard.w", "key.keyboard.space"]
    assert event["keyboard"]["newKeys"] == ["key.keyboard.space"]
    assert event["mouse"]["buttons"] == event["mouse"]["newButtons"] == [0]
    assert event["tick"] == 5 and event["isGuiOpen"] is False
