"""Small environments whose pictures show the action that led into them; importing this module registers them."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces


class Shown(gymnasium.Env):
    """Environment whose picture has a column for each number of the last action, from 0 (none) to 255."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 30}
    action_space: spaces.Space = spaces.Discrete(3)
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, render_mode: str | None = None, max_steps: int = 1000) -> None:
        self.render_mode, self.max_steps = render_mode, max_steps

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        self.shades, self.num_steps = [0.0], 0
        # One array for all observations, as some environments have it.
        self.observation = np.array([self.np_random.random(), 0], np.float32)
        return self.observation, {}

    def step(self, action: Any):
        self.shades = self.shade(action)
        self.num_steps += 1
        self.observation[1] = self.num_steps
        return self.observation, 0.0, self.num_steps >= self.max_steps, False, {"num_steps": self.num_steps}

    def shade(self, action: Any) -> list[float]:
        """Return numbers from 0 to 1."""
        return [(1 + action) / 3]

    def render(self):
        columns = np.repeat(np.array(self.shades) * 255, 16 // len(self.shades))
        return np.broadcast_to(columns[None, :, None], (16, len(columns), 3)).astype(np.uint8)


class Named(Shown):
    """With names of the classes, as Atari's environments have them."""

    def get_action_meanings(self) -> list[str]:
        return ["NOOP", "LEFT", "RIGHT"]


class Steered(Shown):
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def shade(self, action: Any) -> list[float]:
        return [(1 + number) / 2 for number in action]


class Nested(Shown):
    action_space = spaces.Dict(
        [("move", spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (1,))))), ("gear", spaces.Discrete(3))]
    )
    observation_space = spaces.Dict(number=spaces.Box(-1, 1, (1,)))

    def shade(self, action: Any) -> list[float]:
        return [float(action["move"][0]), float(action["move"][1][0]), 0, action["gear"] / 2]

    def reset(self, *, seed: int | None = None, options: Any = None):
        super().reset(seed=seed)
        return {"number": np.zeros(1, np.float32)}, {}

    def step(self, action: Any):
        return {"number": np.zeros(1, np.float32)}, *super().step(action)[1:]


class Short(Shown):
    """Ends after 2 to 12 steps, by its seed."""

    def reset(self, *, seed: int | None = None, options: Any = None):
        found = super().reset(seed=seed)
        self.max_steps = int(self.np_random.integers(2, 13))
        return found


class Unbounded(Shown):
    action_space = spaces.Box(-np.inf, np.inf, (1,))


class Blind(Shown):
    metadata: ClassVar = {"render_modes": []}

    def render(self):
        return None


class NoRenderMode(gymnasium.Env):
    action_space, observation_space = Shown.action_space, Shown.observation_space

    def __init__(self) -> None:
        pass


class Brighter(gymnasium.Wrapper):
    def render(self):
        return 255 - self.env.render()


def last_class(observation: Any, info: Any, space: Any, rng: Any) -> int:
    return int(space.n) - 1


def outside(observation: Any, info: Any, space: Any, rng: Any) -> int:
    return 99


def of_two(observation: Any, space: Any) -> int:
    return 0


class TakesTurns:
    """Policy with a memory, which starts anew in each episode."""

    def __init__(self) -> None:
        self.action = 2

    def __call__(self, observation: Any, info: Any, space: Any, rng: Any) -> int:
        self.action = (self.action + 1) % 3
        return self.action


for kind in (Shown, Named, Steered, Nested, Short, Unbounded, Blind, NoRenderMode):
    gymnasium.register(f"Fake/{kind.__name__}-v0", kind)
