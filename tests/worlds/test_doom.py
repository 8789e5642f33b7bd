"""The embedded world: actions act on the frame that they lead into, and a seed is a set of recordings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rlir_ray.data.vpt.index import list_recordings
from rlir_ray.data.vpt.pairs import read_events
from rlir_ray.spaces.vpt import actions_from_events, camera_of
from rlir_ray.worlds.doom import TRAIN_MAPS, VALIDATION_MAPS, DoomWorld, collect, play_episode
from rlir_ray.worlds.doom_engine import FRICTION, advance, load_map, open_game, plan_tics, read_frame, read_pose
from rlir_ray.worlds.doom_player import Command
from tests.data.videos import read_recording

pytest.importorskip("vizdoom")

WORLD = DoomWorld(episode_frames=20)
MAPS = ("freedoom2:MAP01", "freedoom2:MAP07", "freedoom1:E1M1")


@pytest.fixture(scope="module")
def game() -> Iterator:
    with open_game("freedoom2", 0) as game:
        yield game


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    collect(folder, num_frames=80, split="train", seed=7, world=WORLD, maps=MAPS)
    return folder


def collect_again(folder: Path, **changes) -> None:
    collect(folder, **{"num_frames": 80, "split": "train", "seed": 7, "world": WORLD, "maps": MAPS} | changes)


def same_recordings(folder: Path, other: Path) -> bool:
    pairs = list(zip(list_recordings(folder), list_recordings(other), strict=True))
    return all(
        one.name == two.name
        and one.with_suffix(".jsonl").read_text() == two.with_suffix(".jsonl").read_text()
        and np.array_equal(read_recording(one).frames, read_recording(two).frames)
        for one, two in pairs
    )


def test_frames_rounds_up_to_whole_recordings_and_the_index_lists_them(recorded: Path) -> None:
    index = json.loads((recorded / "index.json").read_text())
    assert index["summary"]["num_recordings"] == 4 and index["summary"]["num_frames"] == 80
    assert sorted(index["relpaths"]) == [path.name for path in list_recordings(recorded)]
    for shares in index["summary"]["class_shares"].values():
        assert sum(shares.values()) == pytest.approx(1)


def test_the_first_event_is_null_and_each_frame_has_one(recorded: Path) -> None:
    for path in list_recordings(recorded):
        recording = read_recording(path)
        assert recording.frames.shape == (20, 48, 64, 3) and len(recording.events) == 20
        assert not recording.actions.values[0].any()
        assert [event["tick"] for event in recording.events] == list(range(0, 100, 5))
        assert all(event["wallDistance"] >= 0 for event in recording.events)


def test_the_yaw_of_an_event_is_what_its_mouse_motion_turned(recorded: Path) -> None:
    # The engine rounds a tic's turn to 360/65536 degrees.
    for path in list_recordings(recorded):
        events = read_events(path.with_suffix(".jsonl"))
        turned = (np.diff([event["yaw"] for event in events]) + 180) % 360 - 180
        np.testing.assert_allclose(turned, camera_of(actions_from_events(events))[1:, 1], atol=0.03)


def test_the_same_seed_gives_the_same_recordings_with_two_workers(recorded: Path, tmp_path: Path) -> None:
    collect_again(tmp_path, num_workers=2)
    assert same_recordings(recorded, tmp_path)


def test_another_seed_gives_other_recordings(recorded: Path, tmp_path: Path) -> None:
    collect_again(tmp_path, seed=8)
    assert not same_recordings(recorded, tmp_path)


def test_collecting_takes_up_where_it_stopped(recorded: Path, tmp_path: Path) -> None:
    collect_again(tmp_path, num_frames=40)
    kept = list_recordings(tmp_path)
    stamps = [path.stat().st_mtime_ns for path in kept]
    calls: list[tuple[int, int]] = []
    collect_again(tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(60, 80), (80, 80)]
    assert [path.stat().st_mtime_ns for path in kept] == stamps
    assert same_recordings(recorded, tmp_path)


def test_a_folder_of_other_settings_is_refused(recorded: Path) -> None:
    with pytest.raises(ValueError, match="made with seed 7, not 9"):
        collect_again(recorded, seed=9)


def test_no_frames_unknown_maps_and_splits_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown map 'freedoom2:MAP99'"):
        collect_again(tmp_path, maps=["freedoom2:MAP99"])
    with pytest.raises(ValueError, match="split must be one of"):
        collect_again(tmp_path, split="test")
    with pytest.raises(ValueError, match=r"must be >= 1, got 0; ask for 20, one episode, or more"):
        collect_again(tmp_path, num_frames=0)
    assert not list(tmp_path.iterdir())


def test_validation_plays_on_maps_of_its_own() -> None:
    assert len(TRAIN_MAPS) >= 25 and len(VALIDATION_MAPS) >= 10
    assert not set(TRAIN_MAPS) & set(VALIDATION_MAPS)


def test_the_flash_is_in_each_frame_of_an_attack_and_in_no_other(game) -> None:
    load_map(game, "MAP07", 0)
    attacks = [False, True, True, False, True, False, False, True, True, True, False]
    flashes = []
    idle = read_frame(game.get_state(), WORLD).astype(int)
    for attack in attacks:
        advance(game, Command(attack=attack), read_pose(game.get_state()), WORLD)
        # The muzzle: in the middle, above the gun.
        changed = np.abs(read_frame(game.get_state(), WORLD) - idle)[32:42, 26:38].mean()
        flashes.append(bool(changed > 20))
    assert flashes == attacks


def test_a_walk_starts_and_stops_within_a_frame(game) -> None:
    load_map(game, "MAP07", 0)
    travelled, speed = [], []
    for move in (1, 1, 1, 0, 0, -1, -1, 0, 0):
        before = read_pose(game.get_state())
        advance(game, Command(move=move), before, WORLD)
        pose = read_pose(game.get_state())
        ahead = np.array([np.cos(before.angle), np.sin(before.angle)])
        travelled.append((pose.position[:2] - before.position[:2]) @ ahead)
        speed.append(pose.velocity @ ahead)
    # Once the speed is there: five tics of 6.5 / 0.90625 map units, 35.9 a frame.
    assert min(travelled[:3]) > 15 and travelled[2] == pytest.approx(35.9, abs=0.5)
    assert abs(speed[3]) < 0.3 and travelled[3] < 12 and abs(travelled[4]) < 1
    assert max(travelled[5:7]) < -15 and abs(speed[7]) < 0.3


def test_a_turn_takes_the_walk_along(game) -> None:
    """Without the sideways brake the player would slide on in the old direction."""
    load_map(game, "MAP07", 0)
    for _ in range(3):
        advance(game, Command(move=1), read_pose(game.get_state()), WORLD)
    for _ in range(2):
        advance(game, Command(move=1, yaw_pixels=67), read_pose(game.get_state()), WORLD)
    pose = read_pose(game.get_state())
    side = np.array([np.sin(pose.angle), -np.cos(pose.angle)])
    assert np.linalg.norm(pose.velocity) > 5 and abs(pose.velocity @ side) < 0.6


def test_the_plan_of_a_frame_reaches_the_walking_speed_by_the_physics() -> None:
    rows = plan_tics(Command(move=1), 0.0, np.zeros(2), WORLD)
    speed = 0.0
    for forward, *_ in rows:
        speed = (speed + forward / 32) * FRICTION
    # From rest five tics of full thrust 50/32: 1.42, 2.70, 3.86, 4.92, 5.87.
    assert [row[0] for row in rows] == [50.0] * 5 and speed == pytest.approx(5.87, abs=0.01)
    # At speed only friction is made up for: 6.5 / 0.90625 - 6.5 = 0.672, in 32nds 21.5.
    assert plan_tics(Command(move=1), 0.0, np.array([6.5, 0.0]), WORLD)[0][0] in (21.0, 22.0)
    assert [row[2] for row in plan_tics(Command(yaw_pixels=21), 0.0, np.zeros(2), WORLD)] == pytest.approx([0.63] * 5)


def test_a_jump_lifts_the_player_in_the_frame_that_it_leads_into(game) -> None:
    _, events = play_episode(game, "MAP01", np.random.default_rng(0), DoomWorld(episode_frames=80))
    rose = np.diff([event["zpos"] for event in events]) > 10
    jumped = actions_from_events(events).classes_of(["jump"])[1:, 0] == 1
    # A low ceiling stops a few jumps, a step lifts a few walks.
    stood = np.array([event["onGround"] for event in events])[:-1]
    assert jumped.sum() > 8 and rose[jumped].mean() > 0.7 and rose[~jumped & stood].mean() < 0.1
