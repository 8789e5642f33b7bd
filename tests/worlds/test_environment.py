"""Recording of Gymnasium environments: the frame shows the action that leads into it, and a seed is a dataset."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlir_ray.data.lerobot.reader import LerobotDataset
from rlir_ray.spaces.fields import Axis, Choice
from rlir_ray.spaces.space import SPACE_FILE, read_space
from rlir_ray.worlds.environment import EnvironmentSummary, EnvironmentWorld, RandomPolicy, collect_environment
from rlir_ray.worlds.environment_episodes import MAX_ATTEMPTS
from rlir_ray.worlds.environment_world import open_environment, resize_area
from tests.worlds.fake_environments import Steered

HERE = "tests.worlds.fake_environments"


def fake(name: str, **settings) -> EnvironmentWorld:
    return EnvironmentWorld(**{"env_id": f"{HERE}:Fake/{name}-v0", "size": None, "episode_frames": 12} | settings)


def record(folder: Path, world: EnvironmentWorld, num_frames: int = 36, **arguments) -> EnvironmentSummary:
    return collect_environment(folder, world, num_frames=num_frames, seed=5, **arguments)


def read(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return frames [F, H, W] (red) and values [F, D] of each episode."""
    dataset = LerobotDataset(folder)
    episodes = [dataset.recording(name) for name in dataset.names]
    return [(each.read(0, len(each))[..., 0].astype(int), each.actions.values) for each in episodes]


# The video's compression changes a pixel by a few levels.
TOLERANCE = 6


def test_a_class_leads_into_the_frame_that_shows_it(tmp_path: Path) -> None:
    summary = record(tmp_path, fake("Shown", hold=1))
    assert (summary.num_episodes, summary.num_frames) == (3, 36)
    for frames, values in read(tmp_path):
        assert abs(frames[0]).max() <= TOLERANCE
        shown = np.broadcast_to((1 + values[1:, :, None]) * 85, frames[1:].shape)
        np.testing.assert_allclose(frames[1:], shown, atol=TOLERANCE)
        assert len(np.unique(values[1:])) == 3


def test_numbers_of_a_box_lead_into_the_frame_that_shows_them(tmp_path: Path) -> None:
    space = record(tmp_path, fake("Steered", hold=2)).space
    assert all(isinstance(field, Axis) and (field.low, field.high) == (-1, 1) for field in space.fields)
    zeros = 0.0
    for frames, values in read(tmp_path):
        np.testing.assert_allclose(frames[1:, 8, [4, 12]], (1 + values[1:]) * 127.5, atol=TOLERANCE)
        zeros += np.mean(values[1:] == 0) / 3
    assert 0.05 < zeros < 0.6


def test_members_of_nested_spaces_are_columns_in_their_order(tmp_path: Path) -> None:
    space = record(tmp_path, fake("Nested", hold=1)).space
    assert [field.name for field in space.fields] == ["move/0", "move/1/0", "gear"]
    for frames, values in read(tmp_path):
        shown = np.stack([values[1:, 0], values[1:, 1], values[1:, 2] / 2], 1) * 255
        np.testing.assert_allclose(frames[1:, 8, [2, 6, 14]], shown, atol=TOLERANCE)


def test_fields_get_the_names_that_the_user_gives(tmp_path: Path) -> None:
    world = fake("Nested", hold=1)
    found = collect_environment(tmp_path / "named", world, num_frames=12, names=("right", "down", "gear"))
    assert found.space.names == ("right", "down", "gear")
    assert read_space(tmp_path / "named" / SPACE_FILE) == found.space
    for names in (("right", "down"), ("right", "down", "down")):
        with pytest.raises(ValueError, match="must be 3 different ones, for move/0, move/1/0, gear, got right, down"):
            collect_environment(tmp_path / "other", world, num_frames=12, names=names)
    assert not (tmp_path / "other").exists()


def test_vector_observations_are_recorded_and_others_are_not(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    record(tmp_path / "vector", fake("Shown"))
    record(tmp_path / "nested", fake("Nested"))
    (table,) = [pq.read_table(path).to_pydict() for path in (tmp_path / "vector" / "data").glob("*/*.parquet")]
    # The second number of the fake's observation is the number of its steps.
    assert [row[1] for row in table["observation.state"]] == 3 * list(range(12))
    (table,) = [pq.read_table(path).to_pydict() for path in (tmp_path / "nested" / "data").glob("*/*.parquet")]
    assert "observation.state" not in table


def test_classes_have_the_names_that_the_environment_gives(tmp_path: Path) -> None:
    (field,) = record(tmp_path, fake("Named"), 12).space.fields
    assert field == Choice(name="action", classes=("NOOP", "LEFT", "RIGHT"), null_class=0)


def test_the_same_seed_gives_the_same_recordings_with_two_workers_and_another_split_gives_others(
    tmp_path: Path,
) -> None:
    world = fake("Short", min_episode_frames=5)
    record(tmp_path / "one", world)
    record(tmp_path / "two", world, num_workers=2)
    record(tmp_path / "validation", world, split="validation")
    one, two, validation = (read(tmp_path / name) for name in ("one", "two", "validation"))
    assert [len(frames) for frames, _ in one] == [len(frames) for frames, _ in two]
    for each, other in zip(one, two, strict=True):
        assert all(np.array_equal(*pair) for pair in zip(each, other, strict=True))
    assert [values.tolist() for _, values in one] != [values.tolist() for _, values in validation]


def test_a_stopped_recording_resumes_with_the_next_episode(tmp_path: Path) -> None:
    world = fake("Short", min_episode_frames=5)
    whole = record(tmp_path / "whole", world, 60)

    def stop(done: int, total: int) -> None:
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "stopped", world, 60, progress=stop)
    assert len(LerobotDataset(tmp_path / "stopped")) < whole.num_episodes
    shown: list[tuple[int, int]] = []
    assert record(tmp_path / "stopped", world, 60, progress=lambda *counts: shown.append(counts)) == whole
    assert shown[0][0] > 20 and shown[-1] == (60, 60)
    for each, other in zip(read(tmp_path / "whole"), read(tmp_path / "stopped"), strict=True):
        assert np.array_equal(each[1], other[1])
    # Enough frames are there.
    assert record(tmp_path / "stopped", world, 60) == whole


def test_a_folder_of_other_settings_is_refused_in_one_line_that_names_the_setting(tmp_path: Path) -> None:
    record(tmp_path, fake("Shown"), 12)
    with pytest.raises(ValueError, match="holds recordings made with hold 4, not 2; use another folder"):
        record(tmp_path, fake("Shown", hold=2))
    with pytest.raises(ValueError, match="made with split 'train', not 'validation'"):
        record(tmp_path, fake("Shown"), split="validation")
    assert record(tmp_path, fake("Shown"), 36).num_episodes == 3
    assert json.loads((tmp_path / "settings.json").read_text())["env_id"] == f"{HERE}:Fake/Shown-v0"


def test_a_short_episode_is_played_again_until_none_is_long_enough(tmp_path: Path) -> None:
    record(tmp_path / "short", fake("Short", min_episode_frames=8))
    lengths = [len(frames) for frames, _ in read(tmp_path / "short")]
    assert min(lengths) >= 8 and max(lengths) <= 12 and len(set(lengths)) > 1
    message = rf"must last min_episode_frames=10 frames, got at most 4 in {MAX_ATTEMPTS} attempts; lower"
    with pytest.raises(ValueError, match=message):
        record(tmp_path / "never", fake("Shown", env_args={"max_steps": 3}))


def test_own_policies_and_wrappers_play(tmp_path: Path) -> None:
    record(tmp_path / "function", fake("Shown", policy=f"{HERE}:last_class", wrappers=(f"{HERE}:Brighter",)))
    for frames, values in read(tmp_path / "function"):
        assert (values[1:] == 2).all() and frames[1:].max() <= TOLERANCE and frames[0].min() >= 255 - TOLERANCE
    record(tmp_path / "class", fake("Shown", policy=f"{HERE}:TakesTurns"))
    for _, values in read(tmp_path / "class"):
        assert values[1:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]


def test_frames_of_another_size_are_means_of_areas_and_of_the_same_size_exact() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    means = frame.reshape(3, 2, 2, 4, 3).mean((1, 3))
    # Rows and columns are rounded one after the other.
    assert abs(resize_area(frame, 3, 2) - means).max() <= 1
    assert np.array_equal(resize_area(frame, 6, 8), frame)


def test_a_step_is_repeated_between_two_frames(tmp_path: Path) -> None:
    world = fake("Shown", frame_skip=3, env_args={"max_episode_steps": 20}, min_episode_frames=2)
    summary = record(tmp_path, world, 8)
    # Six frames of three steps and one of two, after the first frame.
    assert summary.num_frames == 8 and LerobotDataset(tmp_path).fps == 10


def test_a_drawn_action_is_held() -> None:
    policy, rng, space = RandomPolicy(hold=4, zero_share=0.3), np.random.default_rng(0), Steered.action_space
    actions = np.stack([policy(None, {}, space, rng) for _ in range(4000)])
    changes = np.flatnonzero((np.diff(actions, axis=0) != 0).any(1))
    assert set(np.diff(changes)) >= {2, 3, 4, 5, 6} and np.diff(changes).min() == 2
    assert np.mean(actions == 0) == pytest.approx(0.3, abs=0.05)


BAD = {
    "no such id": (
        fake("Shown", env_id="NoSuchWorld-v0"),
        r"must be registered, got NoSuchWorld-v0: .*; check the name",
    ),
    "no such namespace": (fake("Shown", env_id="Nowhere/World-v0"), r"must be registered, got Nowhere/World-v0: "),
    "no such package": (
        fake("Shown", env_id="no_such_package:World-v0"),
        r"needs the package no_such_package, which is not installed; pip install no_such_package",
    ),
    "no picture": (fake("Blind"), r"must render rgb_array, uint8 \[H, W, 3\], got NoneType; add a wrapper"),
    "no render mode": (fake("NoRenderMode"), r"must render rgb_array, .* got no argument render_mode"),
    "unbounded": (fake("Unbounded"), r"a Box must be bounded, got action/0 from -inf to inf; wrap"),
    "arguments": (fake("Shown", env_args={"speed": 3}), r"env_args must fit .*, got {'speed': 3}: .*; correct them"),
    "wrapper": (
        fake("Shown", wrappers=(f"{HERE}:Brigther",)),
        r"wrapper=.*:Brigther must be in module .*; did you mean",
    ),
    "no module": (
        fake("Shown", policy="last_class"),
        r"policy must have the form package.module:name, got 'last_class'",
    ),
    "policy's arguments": (fake("Shown", policy=f"{HERE}:of_two"), r"policy=.*:of_two must be a function of \(obs"),
    "policy's action": (
        fake("Shown", policy=f"{HERE}:outside"),
        r"an action must be in Discrete\(3\), got 99; correct",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BAD)
def test_an_environment_that_cannot_be_recorded_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    world, message = BAD[name]
    with pytest.raises(ValueError, match=message) as refusal:
        record(tmp_path, world)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hold": 0}, "hold must be >= 1, got 0; give 4"),
        ({"zero_share": 2.0}, "zero_share must be within 0 and 1, got 2.0"),
        ({"size": (0, 4)}, r"size must be HxW with H and W >= 1, got \(0, 4\); give 64x64"),
        ({"episode_frames": 5}, "episode_frames must be >= min_episode_frames=10, got 5; give 200"),
        ({"min_episode_frames": 1}, "min_episode_frames must be >= 2, got 1; give 10"),
        ({"env_args": {"render_mode": "human"}}, "env_args must not hold render_mode"),
        ({"env_args": {"shape": np.zeros(2)}}, "env_args must hold JSON values, got"),
    ],
)
def test_settings_that_cannot_hold_are_refused(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fake("Shown", **settings)


def test_number_of_frames_and_split_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frames to record must be >= 1, got 0; ask for 12"):
        record(tmp_path, fake("Shown"), 0)
    with pytest.raises(ValueError, match="split must be one of train, validation, prompts, got 'test'"):
        record(tmp_path, fake("Shown"), split="test")


def test_a_worker_that_fails_tells_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got at most 4 in"):
        record(tmp_path, fake("Shown", env_args={"max_steps": 3}), num_workers=2)


def test_an_environment_without_a_limit_of_its_own_ends_with_the_episode(tmp_path: Path) -> None:
    env = open_environment(replace(fake("Shown"), env_args={"max_episode_steps": 3}))
    assert env.spec is not None and env.spec.max_episode_steps == 3
    env.close()
