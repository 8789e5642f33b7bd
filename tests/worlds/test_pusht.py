"""PushT: commands show in the frames that they lead into, and the player keeps agent and T in the field."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest

from rlir_ray.config.load import load_config
from rlir_ray.data.clips import ClipRequest
from rlir_ray.data.lerobot.reader import LerobotDataset
from rlir_ray.worlds.environment_episodes import Episode, play_episode
from rlir_ray.worlds.environment_world import open_environment
from rlir_ray.worlds.pusht import PUSHT_SPACE, PUSHT_WORLD, collect_pusht
from rlir_ray.worlds.pusht_player import FIELD, GAIN, MARGIN, MAX_SPEED, PushtPlayer, draw_commands
from rlir_ray.worlds.pusht_source import PushtSource

pytest.importorskip("gym_pusht")

START = [[256.0, 256.0, 100.0, 100.0, 0.0]]


@pytest.fixture(scope="module")
def env() -> gymnasium.Env:
    return open_environment(PUSHT_WORLD)


@pytest.fixture(scope="module")
def episodes(env: gymnasium.Env) -> list[Episode]:
    return [play_episode(env, PUSHT_WORLD, (0, number)) for number in range(8)]


def states_and_rows(episodes: list[Episode]) -> tuple[np.ndarray, np.ndarray]:
    return np.stack([each.states for each in episodes]), np.stack([each.rows for each in episodes])


def displacements(env: gymnasium.Env, commands: list[list[float]]) -> np.ndarray:
    """Return the agent's displacement in each frame, from the middle of the field and far from the T."""
    env.reset(seed=0, options={"reset_to_state": START[0]})
    positions = [env.unwrapped.agent.position]
    for command in commands:
        positions.append(env.step(np.array(command, np.float32))[0][:2])
    return np.diff(np.array(positions), axis=0)


def test_a_command_moves_the_agent_in_its_own_frame(env: gymnasium.Env) -> None:
    moved = displacements(env, [[60, 0], [60, 0], [60, 0], [0, 0], [0, -30]])
    # 0.6 of the way from rest, then the share of a held command; the controller stops within a frame.
    np.testing.assert_allclose(moved[0], [0.62 * 60, 0], atol=1)
    np.testing.assert_allclose(moved[1:3], [[GAIN * 60, 0]] * 2, atol=1)
    np.testing.assert_allclose(moved[3], [0, 0], atol=4)
    np.testing.assert_allclose(moved[4], [0, -0.62 * 30], atol=1)


def test_the_displacement_explains_the_command(episodes: list[Episode]) -> None:
    states, rows = states_and_rows(episodes)
    moved, commanded = np.diff(states[:, :, :2], axis=1).reshape(-1, 2), rows[:, 1:].reshape(-1, 2)
    for axis in range(2):
        slope, start = np.polyfit(moved[:, axis], commanded[:, axis], 1)
        errors = commanded[:, axis] - (slope * moved[:, axis] + start)
        assert 1 - errors.var() / commanded[:, axis].var() > 0.99


def test_agent_and_block_stay_in_the_field_and_commands_in_their_space(episodes: list[Episode]) -> None:
    states, rows = states_and_rows(episodes)
    assert states[:, :, :2].min() > MARGIN - 5 and states[:, :, :2].max() < FIELD - MARGIN + 5
    assert states[:, :, 2:4].min() > 0 and states[:, :, 2:4].max() < FIELD
    assert abs(rows).max() <= MAX_SPEED
    # The T moves in some frames, and the agent rests in some.
    assert (abs(np.diff(states[:, :, 2:], axis=1)).max(2) > 0.5).mean() > 0.03
    assert 0.1 < (rows == 0).all(2).mean() < 0.4


def test_the_target_is_not_in_the_picture(env: gymnasium.Env) -> None:
    env.reset(seed=0, options={"reset_to_state": START[0]})
    env.step(np.array([90, 0], np.float32))
    frame = env.render().astype(int)
    assert frame.shape == (256, 256, 3) and np.median(frame) == 255
    # The environment's mark of the target is red; the agent is blue, the goal green, the T grey.
    assert (frame[..., 0] - frame[..., 1:].max(2)).max() <= 20
    blue = frame[..., 2] - frame[..., :2].max(2) > 80
    assert blue.sum() == pytest.approx(np.pi * 15**2, rel=0.1)


def test_a_command_into_a_wall_stops_at_the_wall(env: gymnasium.Env) -> None:
    env.reset(seed=0, options={"reset_to_state": START[0]})
    for _ in range(20):
        observation = env.step(np.array([90, 0], np.float32))[0]
    assert observation[0] == pytest.approx(FIELD - MARGIN, abs=2)


def test_the_player_leads_into_no_wall_and_holds_its_commands() -> None:
    rng = np.random.default_rng(0)
    player, agent, commands = PushtPlayer(), np.array([60.0, 450.0]), []
    for _ in range(3000):
        commands.append(player.next(agent, np.array([256.0, 256.0]), rng))
        agent = agent + GAIN * commands[-1]
        assert (agent > MARGIN).all() and (agent < FIELD - MARGIN).all()
    changes = np.flatnonzero((np.diff(commands, axis=0) != 0).any(1))
    assert np.diff(changes).min() == 2
    assert {0, 30, 60, 90} == {round(float(np.hypot(*command))) for command in commands}


def test_drawn_commands_are_the_players() -> None:
    drawn = np.concatenate([draw_commands(8, np.random.default_rng(seed)) for seed in range(400)])
    assert drawn.shape == (3200, 2) and drawn.dtype == np.float32
    speeds = np.hypot(*drawn.T).round()
    assert {0, 30, 60, 90} == set(speeds.tolist())
    assert 0.15 < (speeds == 0).mean() < 0.4 and abs(drawn.mean(0)).max() < 8


def test_recordings_hold_states_and_resume(tmp_path: Path) -> None:
    summary = collect_pusht(tmp_path, num_frames=40, episode_frames=20, size=(32, 32), seed=3)
    assert (summary.num_episodes, summary.num_frames, summary.space) == (2, 40, PUSHT_SPACE)
    assert collect_pusht(tmp_path, num_frames=60, episode_frames=20, size=(32, 32), seed=3).num_episodes == 3
    dataset = LerobotDataset(tmp_path)
    episode = dataset.recording(dataset.names[0])
    assert dataset.fps == 5 and episode.read(0, 20).shape == (20, 32, 32, 3)


def test_source_cuts_the_requested_clips_and_splits_share_no_episode(tmp_path: Path) -> None:
    config = load_config("doom_tiny_ar", ["world.height=32", "world.width=32"])
    source = PushtSource(config)

    def clips(split: str):
        return source.clips(ClipRequest(split=split, num_clips=15, num_whole=4, seed=2, folder=tmp_path)).clips

    train, heldout = clips("train"), clips("heldout")
    assert [len(clip.frames) for clip in train] == 4 * [9] + 11 * [1]
    assert all(len(clip.actions) == 8 and clip.frames.shape[1:] == (32, 32, 3) for clip in [*train, *heldout])
    assert len({clip.address for clip in train}) == 15
    again = clips("train")
    assert [clip.address for clip in again] == [clip.address for clip in train]
    assert not np.array_equal(train[0].actions.values, heldout[0].actions.values)


def test_source_draws_commands_of_the_space() -> None:
    actions = PushtSource(load_config("doom_tiny_ar")).commands(8, np.random.default_rng(0))
    assert actions.space == PUSHT_SPACE and len(actions) == 8
