"""Episodes of a Gymnasium environment: policies, and the play of one episode.

A step takes an action at frame k - 1 and returns frame k, so that row k of an episode's actions leads INTO frame k.
Legend: F frames, D numbers of an action, n numbers of a state, H W pixels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from rlir_ray.spaces.fields import Axis, Choice
from rlir_ray.spaces.gymnasium import from_row, to_row
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.worlds.environment_world import EnvironmentWorld, first_line, import_named, render_frame

if TYPE_CHECKING:
    from rlir_ray.worlds.environment_world import Env, Space

Policy = Callable[[Any, Mapping[str, Any], "Space", np.random.Generator], Any]
"""Maps the observation and info of a frame, the action space and the episode's only source of randomness to the action
that leads into the next frame."""

# Attempts to play an episode of `min_episode_frames`, each from another start.
MAX_ATTEMPTS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """One played episode.

    Args:
        frames: uint8 [F, H, W, 3], RGB.
        rows: float32 [F, D]; row k leads INTO frame k; row 0 repeats row 1, because nothing leads into frame 0.
        states: float32 [F, n], the observations if they are vectors; None: they are not.
    """

    frames: npt.NDArray[np.uint8]
    rows: npt.NDArray[np.float32]
    states: npt.NDArray[np.float32] | None


# ---------------------------------------------------------------------------------------------------------------------
# Playing


class RandomPolicy:
    """Policy that draws actions and holds each for some frames, so that a frame's action shows in the picture.

    A class is drawn uniformly. A number is 0 with the probability `zero_share`, if 0 is in its range; otherwise it is
    uniform in its range.

    Args:
        hold: mean number of frames of an action; the number is uniform from half to one and a half of it.
        zero_share: see above.
    """

    def __init__(self, hold: int = 4, zero_share: float = 0.25) -> None:
        self.hold, self.zero_share = hold, zero_share
        # Any: the type of the environment's actions.
        self.left, self.action = 0, cast(Any, None)

    def __call__(self, observation: Any, info: Mapping[str, Any], space: Space, rng: np.random.Generator) -> Any:
        if not self.left:
            half = self.hold // 2
            self.left = int(rng.integers(self.hold - half, self.hold + half + 1))
            row = [self._draw(field, rng) for field in ActionSpace.from_gymnasium(space).fields]
            self.action = from_row(space, np.array(row, np.float32))
        self.left -= 1
        return self.action

    def _draw(self, field: Choice | Axis, rng: np.random.Generator) -> float:
        if isinstance(field, Choice):
            return float(rng.integers(field.num_classes))
        if field.null_class is not None and rng.random() < self.zero_share:
            return 0.0
        return float(rng.uniform(field.low, field.high))


def policy_factory(world: EnvironmentWorld) -> Callable[[], Policy]:
    """Return a function that makes the policy of one episode.

    Raises:
        ValueError: the world's policy cannot be imported, or is not called as a `Policy` is.
    """
    if not world.policy:
        return lambda: RandomPolicy(world.hold, world.zero_share)
    named: Any = import_named("policy", world.policy)

    def make() -> Policy:
        # Any: only the call shows whether the arguments fit.
        made: Any = named() if inspect.isclass(named) else named
        return cast(Policy, made)

    try:
        inspect.signature(make()).bind("observation", "info", "space", "rng")
    except TypeError as error:
        raise ValueError(
            f"policy={world.policy} must be a function of (observation, info, space, rng), or a class whose objects "
            f"are, got {first_line(error)}; correct its arguments"
        ) from error
    return make


def play_episode(env: Env, world: EnvironmentWorld, seeds: Sequence[int]) -> Episode:
    """Play one episode; play again from another start if the environment ends it too early.

    Args:
        env: of `open_environment`.
        world: the same settings.
        seeds: the only source of randomness.

    Raises:
        ValueError: the policy cannot be imported or gives an action outside the space, or all episodes are too short.
    """
    factory, longest = policy_factory(world), 0
    for attempt in range(MAX_ATTEMPTS):
        episode = _play(env, world, factory, np.random.default_rng([*seeds, attempt]))
        if len(episode.frames) >= world.min_episode_frames:
            return episode
        longest = max(longest, len(episode.frames))
    raise ValueError(
        f"an episode of {world.env_id} must last min_episode_frames={world.min_episode_frames} frames, got at most "
        f"{longest} in {MAX_ATTEMPTS} attempts; lower min_episode_frames, or give a policy that plays longer"
    )


def _play(env: Env, world: EnvironmentWorld, factory: Callable[[], Policy], rng: np.random.Generator) -> Episode:
    space = env.action_space
    observation, info = env.reset(seed=int(rng.integers(2**31)))
    policy, is_over = factory(), False
    has_states = _is_vector(env.observation_space)
    frames, rows, states = [render_frame(env, world)], [], [_state(observation)] if has_states else []
    while len(frames) < world.episode_frames and not is_over:
        row = to_row(space, policy(observation, info, space, rng))
        for _ in range(world.frame_skip):
            # What is recorded is what the environment gets: float32 numbers.
            observation, _, terminated, truncated, info = env.step(from_row(space, row))
            if is_over := bool(terminated or truncated):
                break
        frames.append(render_frame(env, world))
        rows.append(row)
        if has_states:
            states.append(_state(observation))
    return Episode(
        frames=np.stack(frames),
        rows=np.stack([rows[0], *rows]),
        states=np.stack(states) if has_states else None,
    )


def _state(observation: Any) -> npt.NDArray[np.float32]:
    """Return a copy of an observation: some environments write all their observations into one array."""
    return np.array(observation, np.float32)


def _is_vector(space: Space) -> bool:
    from gymnasium import spaces

    return isinstance(space, spaces.Box) and len(space.shape) == 1
