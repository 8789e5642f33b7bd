"""The simulator: any number of frames, the same frames again, undo, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from rlir_ray.play.opening import OpenWorld, open_world
from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.words import parse_actions
from tests.fakes import HEIGHT, WIDTH, tiny_actions
from tests.second_space import SPACE
from tests.world import MakeConfig, flow_overrides

FAMILIES = ["tokens", "latents"]


@pytest.fixture(params=FAMILIES)
def world(request: pytest.FixtureRequest, checkpoints: Path, make_config: MakeConfig, tmp_path: Path) -> OpenWorld:
    return opened(request.param, checkpoints, make_config, tmp_path)


def opened(family: str, checkpoints: Path, make_config: MakeConfig, tmp_path: Path) -> OpenWorld:
    from omegaconf import OmegaConf

    config = make_config(*(flow_overrides(checkpoints) if family == "latents" else []))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(OmegaConf.to_yaml(OmegaConf.create(config.to_dict())))
    return open_world(config.models.policy, recipe=str(recipe), device="cpu")


def random_frames(num_clips: int, num_frames: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (num_clips, num_frames, HEIGHT, WIDTH, 3), dtype=np.uint8)


def one(actions: Actions, place: int) -> Actions:
    return actions[place : place + 1]


def test_a_clip_goes_on_beyond_the_window_and_is_the_same_again(world: OpenWorld) -> None:
    simulator, actions = world.simulator(), [tiny_actions(11, seed) for seed in (0, 1)]
    found = []
    for _ in range(2):
        simulator.reset(random_frames(2, 1), [3, 4])
        for place in range(11):
            shown = simulator.step([one(each, place) for each in actions])
            assert shown.shape == (2, HEIGHT, WIDTH, 3) and shown.dtype == np.uint8
        found.append(simulator.frames)
    assert simulator.num_generated == 11 and found[0].shape == (2, 12, HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(*found)
    for clip, commanded in enumerate(actions):
        assert simulator.actions[clip].equals(commanded.space.nothing(1).followed_by(commanded))
    # Another seed and another action both change the frames.
    simulator.reset(random_frames(2, 1), [3, 5])
    simulator.step([one(each, 0) for each in actions])
    assert (simulator.frames[0, 1] == found[0][0, 1]).all() and (simulator.frames[1, 1] != found[0][1, 1]).any()


def test_a_clip_does_not_depend_on_its_company(world: OpenWorld) -> None:
    simulator, actions = world.simulator(), tiny_actions(5)
    simulator.reset(random_frames(2, 1), [3, 4])
    for place in range(5):
        simulator.step([one(actions, place)] * 2)
    together = simulator.frames[1]
    simulator.reset(random_frames(2, 1)[1:], [4])
    for place in range(5):
        simulator.step([one(actions, place)])
    # Rounding may move a pixel by one level.
    assert np.abs(simulator.frames[0].astype(int) - together).max() <= 1


def test_undo_and_the_same_action_give_the_same_frame(world: OpenWorld) -> None:
    simulator, actions = world.simulator(), tiny_actions(7)
    simulator.reset(random_frames(1, 1), [0])
    for place in range(7):
        simulator.step([one(actions, place)])
    whole = simulator.frames
    # Back over a place where the window began anew, with another action in between.
    for _ in range(5):
        before = simulator.undo()
    np.testing.assert_array_equal(before[0], whole[0, 2])
    simulator.step([parse_actions("jump", world.space)])
    simulator.undo()
    for place in range(2, 7):
        simulator.step([one(actions, place)])
    # The model has read the frames before at once, not one by one: rounding may move a pixel by one level.
    assert np.abs(simulator.frames.astype(int) - whole).max() <= 1
    for _ in range(7):
        simulator.undo()
    with pytest.raises(ValueError, match="undo needs a frame after the context, got none"):
        simulator.undo()


def test_a_context_longer_than_the_window_is_read_in_part(world: OpenWorld) -> None:
    simulator, nothing = world.simulator(), world.space.nothing(1)
    long = random_frames(1, 9)
    simulator.reset(long, [0], [tiny_actions(8)])
    simulator.step([nothing])
    assert simulator.frames.shape[1] == 10 and simulator.num_generated == 1


def test_bad_beginnings_and_steps_are_refused(world: OpenWorld) -> None:
    simulator, nothing = world.simulator(), world.space.nothing(1)
    with pytest.raises(ValueError, match="a step needs one action of each of 0 clips"):
        simulator.step([nothing])
    with pytest.raises(ValueError, match="reads uint8 frames"):
        simulator.reset(np.zeros((1, 1, 8, 8, 3), np.uint8), [0])
    with pytest.raises(ValueError, match=r"clips must have a seed, .* got 2 clips of 1 frames, 1 seeds"):
        simulator.reset(random_frames(2, 1), [0])
    with pytest.raises(ValueError, match=r"actions of 1 clips in numbers \[2\]; give one of each"):
        simulator.reset(random_frames(1, 2), [0], [tiny_actions(2)])
    with pytest.raises(ValueError, match="the actions must have the action space of the world model"):
        simulator.reset(random_frames(1, 2), [0], [SPACE.nothing(1)])
    simulator.reset(random_frames(1, 1), [0])
    with pytest.raises(ValueError, match=r"a step needs one action of each of 1 clips, got \[1, 1\]"):
        simulator.step([nothing, nothing])
