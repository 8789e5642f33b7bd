"""Gymnasium environments inside a world model: one episode, or B episodes that the model generates together.

Legend: B environments, C context frames, H W pixels, n fields.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from rlir_ray.data.recordings import resize_frames
from rlir_ray.idm.base import InverseDynamics
from rlir_ray.play.generate import open_reader
from rlir_ray.play.opening import OpenWorld, open_context, open_world, prompt_frames
from rlir_ray.rewards.field_scores import read_clips
from rlir_ray.spaces.fields import Axis, Choice
from rlir_ray.spaces.space import Actions

Frames = npt.NDArray[np.uint8]
RewardFunction = Callable[[Frames, npt.NDArray[np.int64], Frames], npt.NDArray[np.floating]]
"""Frames before, uint8 [B, H, W, 3], classes of the actions, [B, n], frames after -> rewards [B]."""
EPISODE_FRAMES = 64


class GoalPicture:
    """Reward of a step: how much nearer the frame came to a goal picture, in mean absolute pixels of 255.

    Args:
        picture: a file, or frames uint8 [H, W, 3].
    """

    def __init__(self, picture: str | Frames) -> None:
        if isinstance(picture, str):
            from PIL import Image

            with Image.open(picture) as opened:
                picture = np.array(opened.convert("RGB"))
        self.picture = picture

    def __call__(self, before: Frames, actions: npt.NDArray[np.int64], after: Frames) -> npt.NDArray[np.float64]:
        """Return the rewards, [B]."""
        distance: npt.NDArray[np.float64] = self._distance(before) - self._distance(after)
        return distance

    def _distance(self, frames: Frames) -> npt.NDArray[np.float64]:
        goal = resize_frames(self.picture[None], frames.shape[1], frames.shape[2], "area").astype(np.float64)
        distance: npt.NDArray[np.float64] = np.abs(frames - goal).mean((1, 2, 3)) / 255
        return distance


class Episodes:
    """B episodes of one length, which begin and end together.

    Args:
        policy: as `generate` takes it.
        num_envs: B.
        episode_frames: steps of an episode.
        contexts: frames uint8 [P, C, H, W, 3], texts as `open_context` reads, or ``prompts``: the held-out prompts of
            the policy's recipe.
        reward: the reward function, or ``package.module:name`` of a function, or of a class that `reward_args` make a
            function; None: rewards are 0.
        reward_args: arguments of that class.
        idm: inverse dynamics model that reads each frame for `info`: a folder, or `judge` or `reward`; empty: none.
        temperature, guidance: of the draws.
        recipe, device: see `open_world`.

    Raises:
        ValueError: a part cannot be opened.
    """

    def __init__(
        self,
        policy: str | OpenWorld,
        num_envs: int,
        *,
        episode_frames: int = EPISODE_FRAMES,
        contexts: str | Sequence[str] | Frames = "prompts",
        reward: str | RewardFunction | None = None,
        reward_args: Mapping[str, object] | None = None,
        idm: str = "",
        temperature: float = 1.0,
        guidance: float = 1.0,
        recipe: str = "",
        device: str = "",
    ) -> None:
        if episode_frames < 1:
            raise ValueError(f"episode_frames must be >= 1, got {episode_frames}; leave it out for {EPISODE_FRAMES}")
        self.world = policy if isinstance(policy, OpenWorld) else open_world(policy, recipe=recipe, device=device)
        self.names = self.world.config.world.groups
        self.fields = self.world.space.select(self.names)
        self.simulator = self.world.simulator(temperature, guidance)
        self.num_envs, self.episode_frames = num_envs, episode_frames
        self.contexts = _contexts(contexts, self.world)
        self.reward = _reward_function(reward, reward_args or {})
        self.idm: InverseDynamics | None = open_reader(idm, self.world)
        self.shown: Frames = np.zeros((num_envs, *self.frame_shape), np.uint8)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        return self.world.config.world.height, self.world.config.world.width, 3

    @property
    def is_over(self) -> bool:
        return self.simulator.num_generated >= self.episode_frames

    def action_space(self) -> gymnasium.Space[Any]:
        """Return the space of an action: a class of a single choice, numbers of axes alone, else classes of all fields.

        Fields that the policy's recipe does not compare (`world.groups`) are never used.
        """
        if len(self.fields) == 1 and isinstance(self.fields[0], Choice):
            return gymnasium.spaces.Discrete(self.fields[0].num_classes)
        if all(isinstance(field, Axis) for field in self.fields):
            low, high = (
                np.array([getattr(field, end) for field in self.fields], np.float32) for end in ("low", "high")
            )
            return gymnasium.spaces.Box(low, high, dtype=np.float32)
        return gymnasium.spaces.MultiDiscrete([field.num_classes for field in self.fields])

    def begin(self, generator: np.random.Generator, context: int | None = None) -> tuple[Frames, npt.NDArray[np.int64]]:
        """Begin new episodes; return the last context frames [B, H, W, 3] and the numbers of the contexts [B]."""
        numbers = generator.integers(len(self.contexts), size=self.num_envs)
        if context is not None:
            numbers[:] = context
        seeds = generator.integers(1 << 31, size=self.num_envs).tolist()
        self.shown = self.simulator.reset(self.contexts[numbers], seeds)
        return self.shown, numbers

    def step(self, actions: npt.NDArray[np.generic]) -> tuple[Frames, npt.NDArray[np.float64], dict[str, Any]]:
        """Generate the next frames; return the frames, the rewards [B], and the entries of `info`, [B] each."""
        commanded = self._commanded(actions)
        before = self.shown
        self.shown = self.simulator.step(commanded)
        rewards = np.zeros(self.num_envs)
        if self.reward is not None:
            classes = np.concatenate([each.classes_of(self.names) for each in commanded])
            rewards = np.asarray(self.reward(before, classes, self.shown), np.float64)
        info: dict[str, Any] = {}
        if (uncertainty := self.simulator.stepper.uncertainty) is not None:
            info["uncertainty"] = uncertainty
        if self.idm is not None:
            info |= self._reading(self.idm)
        return self.shown, rewards, info

    def _commanded(self, actions: npt.NDArray[np.generic]) -> list[Actions]:
        """Return one action of each environment."""
        rows = np.asarray(actions).reshape(self.num_envs, len(self.fields))
        nothing, columns = self.world.space.nothing(1), self.world.space.columns(self.names)
        are_numbers = all(isinstance(field, Axis) for field in self.fields)
        found = []
        for row in rows:
            values = nothing.values.copy()
            for column, field, value in zip(columns, self.fields, row.tolist(), strict=True):
                values[0, column] = value if are_numbers else field.centres(int(value))
            found.append(Actions(self.world.space, values))
        return found

    def _reading(self, idm: InverseDynamics) -> dict[str, Any]:
        """Return what the model reads as the last action of each episode, one entry a field."""
        size = self.world.config.world
        last = self.simulator.last_frames(size.num_context + size.num_frames)
        values = read_clips(idm, last, self.names).pictured(self.fields)[:, -1]  # [B, n]
        return {f"reading/{name}": values[:, column] for column, name in enumerate(self.names)}


def _contexts(contexts: str | Sequence[str] | Frames, world: OpenWorld) -> Frames:
    if isinstance(contexts, np.ndarray):
        found = contexts
    elif contexts == "prompts":
        found = prompt_frames(world)
    else:
        texts = [contexts] if isinstance(contexts, str) else list(contexts)
        found = np.stack([open_context(text, world).frames for text in texts])
    if found.ndim != 5 or not len(found):
        raise ValueError(
            f"contexts must be frames [P, C, H, W, 3] with P >= 1, got {list(found.shape)}; add the missing dimension"
        )
    return found


def _reward_function(reward: str | RewardFunction | None, args: Mapping[str, object]) -> RewardFunction | None:
    if isinstance(reward, str):
        module, _, name = reward.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"reward must be package.module:name that can be imported, got {reward!r} ({error}); correct the name"
            ) from None
        return found(**args) if isinstance(found, type) else found  # type: ignore[no-any-return]  # the user's own
    if args:
        raise ValueError(f"reward_args must stand with the name of a class, got {sorted(args)}; leave them out")
    return reward


class WorldModelEnv(gymnasium.Env[Frames, Any]):
    """One episode inside a world model; `info` has the context's number, the model's uncertainty and the IDM's reading.

    Args:
        policy: a run's name or folder, a policy's folder, ``asset:PATH``, or an opened world.
        render_mode: ``rgb_array``: `render` returns the last frame.
        options: as of `Episodes`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012  # as gymnasium declares it

    def __init__(self, policy: str | OpenWorld, render_mode: str | None = None, **options: Any) -> None:
        self.episodes, self.render_mode = Episodes(policy, 1, **options), render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, self.episodes.frame_shape, np.uint8)
        self.action_space = self.episodes.action_space()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frames, dict[str, Any]]:
        """Begin an episode; ``options={"context": N}`` chooses the context."""
        super().reset(seed=seed)
        frames, numbers = self.episodes.begin(self.np_random, (options or {}).get("context"))
        return frames[0], {"context": int(numbers[0])}

    def step(self, action: Any) -> tuple[Frames, float, bool, bool, dict[str, Any]]:
        """Generate the next frame; the episode is truncated at its length, and never terminates before."""
        frames, rewards, info = self.episodes.step(np.asarray(action)[None])
        single = {name: float(value[0]) for name, value in info.items()}
        return frames[0], float(rewards[0]), False, self.episodes.is_over, single

    def render(self) -> Frames | None:
        """Return the last frame, uint8 [H, W, 3]."""
        return self.episodes.shown[0] if self.render_mode == "rgb_array" else None


class WorldModelVectorEnv(VectorEnv[Frames, Any, Any]):
    """B episodes that the model generates together; all end at once, and the step after the last one begins new ones.

    Args:
        policy: as of `WorldModelEnv`.
        num_envs: B.
        render_mode: ``rgb_array``: `render` returns the last frames.
        options: as of `Episodes`.
    """

    metadata = {"render_modes": ["rgb_array"], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self, policy: str | OpenWorld, num_envs: int = 1, render_mode: str | None = None, **options: Any
    ) -> None:
        self.episodes, self.render_mode, self.num_envs = Episodes(policy, num_envs, **options), render_mode, num_envs
        self.single_observation_space = gymnasium.spaces.Box(0, 255, self.episodes.frame_shape, np.uint8)
        self.single_action_space = self.episodes.action_space()
        batch = gymnasium.vector.utils.batch_space
        self.observation_space = batch(self.single_observation_space, num_envs)
        self.action_space = batch(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frames, dict[str, Any]]:
        """Begin episodes; one seed for all."""
        if isinstance(seed, list):
            seed = seed[0]
        super().reset(seed=seed)
        frames, numbers = self.episodes.begin(self.np_random, (options or {}).get("context"))
        return frames.copy(), {"context": numbers}

    def step(
        self, actions: Any
    ) -> tuple[Frames, npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
        """Generate the next frames, or begin new episodes after the last step, whatever the actions."""
        none = np.zeros(self.num_envs, np.bool_)
        if self.episodes.is_over:
            frames, info = self.reset()
            return frames, np.zeros(self.num_envs), none, none.copy(), info
        frames, rewards, info = self.episodes.step(np.asarray(actions))
        return frames.copy(), rewards, none, np.full(self.num_envs, self.episodes.is_over), info

    def render(self) -> tuple[Frames, ...] | None:
        """Return the last frames, uint8 [H, W, 3] each."""
        return tuple(self.episodes.shown) if self.render_mode == "rgb_array" else None
