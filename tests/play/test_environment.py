"""The Gymnasium environments inside a world model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from PIL import Image

from rlir_ray.envs import ENV_ID, GoalPicture, WorldModelEnv, WorldModelVectorEnv
from rlir_ray.play.opening import OpenWorld
from tests.fakes import HEIGHT, WIDTH
from tests.play.test_simulator import opened, random_frames
from tests.world import MakeConfig

CONTEXTS = random_frames(5, 1)


@pytest.fixture(params=["tokens", "latents"])
def world(request: pytest.FixtureRequest, checkpoints: Path, make_config: MakeConfig, tmp_path: Path) -> OpenWorld:
    return opened(request.param, checkpoints, make_config, tmp_path)


def test_gymnasium_accepts_the_environment(world: OpenWorld) -> None:
    env = WorldModelEnv(world, contexts=CONTEXTS, episode_frames=5, render_mode="rgb_array")
    check_env(env, skip_render_check=False)


def test_gymnasium_makes_it_by_its_name_alone(checkpoints: Path) -> None:
    made = gymnasium.make(ENV_ID, policy="asset:doom/world_model", contexts=np.zeros((1, 1, 48, 64, 3), np.uint8))
    assert made.action_space == gymnasium.spaces.MultiDiscrete([3, 3, 2, 11])
    assert made.reset(seed=0)[0].shape == (48, 64, 3)
    check = f"import sys; assert {ENV_ID!r} in gymnasium.registry; assert 'torch' not in sys.modules"
    for imports in ("import gymnasium, rlir_ray", "import rlir_ray.envs, gymnasium"):
        subprocess.run([sys.executable, "-c", f"{imports}; {check}"], check=True, timeout=120)
    # A program without Gymnasium does not wait for it.
    subprocess.run(
        [sys.executable, "-c", "import sys, rlir_ray; assert 'gymnasium' not in sys.modules"], check=True, timeout=120
    )


def test_the_same_seed_and_actions_give_the_same_frames(world: OpenWorld) -> None:
    env = WorldModelEnv(world, contexts=CONTEXTS, episode_frames=6, idm="judge")
    episodes = []
    for seed in (3, 3, 4):
        env.action_space.seed(0)
        frame, info = env.reset(seed=seed)
        frames, numbers = [frame], [info["context"]]
        while True:
            frame, reward, terminated, truncated, info = env.step(env.action_space.sample())
            frames.append(frame)
            assert not terminated and reward == 0
            if truncated:
                break
        episodes.append((np.stack(frames), numbers))
        assert len(frames) == 7
    np.testing.assert_array_equal(episodes[0][0], episodes[1][0])
    assert (episodes[0][0] != episodes[2][0]).any()
    names = {f"reading/{name}" for name in world.config.world.groups}
    has_likelihoods = world.config.policy.family == "autoregressive"
    assert set(info) == names | ({"uncertainty"} if has_likelihoods else set())
    if has_likelihoods:
        assert 0 < info["uncertainty"] < np.log(32)


def test_a_context_can_be_chosen(world: OpenWorld) -> None:
    env = WorldModelEnv(world, contexts=CONTEXTS)
    first, info = env.reset(seed=0, options={"context": 2})
    again, _ = env.reset(options={"context": 2})
    np.testing.assert_array_equal(first, again)
    assert info == {"context": 2} and (env.reset(options={"context": 3})[0] != first).any()


def test_a_batch_is_generated_together_and_begins_anew_after_the_last_step(world: OpenWorld) -> None:
    env = WorldModelVectorEnv(world, num_envs=3, contexts=CONTEXTS, episode_frames=2, render_mode="rgb_array")
    frames, info = env.reset(seed=1)
    assert frames.shape == (3, HEIGHT, WIDTH, 3) and info["context"].shape == (3,)
    env.action_space.seed(0)
    for last in (False, True):
        frames, rewards, terminated, truncated, info = env.step(env.action_space.sample())
        assert truncated.tolist() == [last] * 3 and not terminated.any() and not rewards.any()
    assert np.array_equal(np.stack(env.render()), frames)
    frames, _, terminated, truncated, info = env.step(env.action_space.sample())
    assert not truncated.any() and info["context"].shape == (3,)
    shown = WorldModelEnv(world, contexts=CONTEXTS).reset(options={"context": int(info["context"][0])})[0]
    np.testing.assert_array_equal(frames[0], shown)
    made = gymnasium.make_vec(ENV_ID, num_envs=2, policy=world, contexts=CONTEXTS)
    assert made.reset(seed=0)[0].shape == (2, HEIGHT, WIDTH, 3)


def test_a_reward_of_ones_own_and_a_goal_picture(world: OpenWorld, tmp_path: Path) -> None:
    Image.fromarray(CONTEXTS[0, 0]).save(tmp_path / "goal.png")
    goal = GoalPicture(str(tmp_path / "goal.png"))
    env = WorldModelEnv(
        world,
        contexts=CONTEXTS,
        reward="rlir_ray.envs:GoalPicture",
        reward_args={"picture": str(tmp_path / "goal.png")},
    )
    before, _ = env.reset(seed=0)
    action = np.array([1, *[0] * (len(world.config.world.groups) - 1)])
    after, reward, *_ = env.step(action)
    assert reward == pytest.approx(float(goal(before[None], action[None], after[None])[0])) and reward != 0
    # At the goal no step comes nearer.
    assert goal(CONTEXTS[:1, 0], action[None], after[None])[0] < 0
    seen = []

    def own(before: np.ndarray, actions: np.ndarray, after: np.ndarray) -> np.ndarray:
        seen.append(actions)
        return after.mean((1, 2, 3))

    own_env = WorldModelEnv(world, contexts=CONTEXTS, reward=own)
    own_env.reset(seed=0)
    frame, reward, *_ = own_env.step(action)
    assert reward == pytest.approx(frame.mean()) and seen[0].tolist() == [action.tolist()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episode_frames": 0}, "episode_frames must be >= 1, got 0"),
        ({"contexts": CONTEXTS[0]}, r"contexts must be frames \[P, C, H, W, 3\] with P >= 1, got \[1, 24, 32, 3\]"),
        ({"reward": "nowhere:Goal"}, "reward must be package.module:name that can be imported, got 'nowhere:Goal'"),
        ({"reward_args": {"picture": "x"}}, r"reward_args must stand with the name of a class, got \['picture'\]"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str, world: OpenWorld) -> None:
    with pytest.raises(ValueError, match=message):
        WorldModelEnv(world, **{"contexts": CONTEXTS, **options})
