"""Wrapper of PushT whose actions show in the picture: commands relative to the agent, and a larger agent.

The environment's own actions are positions in the field: where the agent is explains most of where it is sent to, so
that a reward for such actions would hardly need motion.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from rlir_ray.worlds.pusht_player import AGENT_RADIUS, FIELD, MARGIN, MAX_SPEED

# Steps of the environment in one frame. In one step the agent moves a quarter of the way to its target and keeps much
# of its old velocity; in two steps it moves 60 % of the way, and 99.7 % of a command's variance shows in its own frame.
STEPS_PER_FRAME = 2

State = npt.NDArray[np.float64]


class RelativeTarget(gymnasium.Wrapper[State, npt.NDArray[np.float32], State, npt.NDArray[np.float32]]):
    """PushT with the action (dx, dy): the agent's target minus its position at the start of the frame.

    The target stays fixed during the two environment steps of a frame. The next frame's target starts from the new
    position, so that a held command is a velocity.

    Args:
        env: `gym_pusht/PushT-v0` with obs_type=state.
    """

    def __init__(self, env: gymnasium.Env[State, npt.NDArray[np.float32]]) -> None:
        super().__init__(env)
        self.action_space = gymnasium.spaces.Box(-MAX_SPEED, MAX_SPEED, (2,), np.float32)
        self.metadata = {**env.metadata, "render_fps": env.metadata["render_fps"] / STEPS_PER_FRAME}
        # The environment's class, whose package is not annotated.
        self.game: Any = env.unwrapped

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[State, dict[str, Any]]:
        """Start an episode; see `gymnasium.Env.reset`."""
        found = self.env.reset(seed=seed, options=options)
        # The environment's disc of radius 15 covers six of 48 x 48 pixels, which a tokenizer of small frames loses.
        (disc,) = self.game.agent.shapes
        disc.unsafe_set_radius(AGENT_RADIUS)
        return found

    def step(self, action: npt.NDArray[np.float32]) -> tuple[State, float, bool, bool, dict[str, Any]]:
        """Drive towards the agent's position plus `action`, clipped to the field; see `gymnasium.Env.step`."""
        position = np.array(self.game.agent.position)
        # Nothing else keeps the agent in the field: it passes through walls.
        target = np.clip(position + action, MARGIN, FIELD - MARGIN).astype(np.float32)
        for _ in range(STEPS_PER_FRAME):
            observation, reward, terminated, truncated, info = self.env.step(target)
            if terminated or truncated:
                break
        return observation, float(reward), terminated, truncated, info

    def render(self) -> npt.NDArray[np.uint8]:
        """Draw the field without the target, uint8 [H, W, 3].

        The environment's `render` is not used, because it marks the target, which would show the action.
        """
        obs_type, self.game.obs_type = self.game.obs_type, "pixels"
        try:
            frame: npt.NDArray[np.uint8] = self.game.get_obs()
        finally:
            self.game.obs_type = obs_type
        return frame
