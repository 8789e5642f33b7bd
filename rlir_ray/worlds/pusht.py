"""The embedded world PushT: a disc pushes a T in the environment of `gym-pusht`, played by a scripted player.

The action (dx, dy) is the agent's target relative to the agent; see `rlir_ray.worlds.pusht_wrapper`. Recorded as a
LeRobot dataset whose `observation.state` is agent x, agent y, block x, block y (units of the game) and block angle
(radians). Independent of models.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rlir_ray.extras import require_library
from rlir_ray.spaces.fields import Axis, Uniform
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.worlds.environment import EnvironmentSummary, EnvironmentWorld, collect_environment
from rlir_ray.worlds.pusht_player import MAX_SPEED

# Bins of 8.6 units: the speeds of the player are 30 units apart, and the middle bin holds the command to rest.
NUM_BINS = 21

_QUANTIZER = Uniform(num_bins=NUM_BINS)
PUSHT_SPACE = ActionSpace(
    (
        Axis(name="dx", low=-MAX_SPEED, high=MAX_SPEED, unit="units", quantizer=_QUANTIZER, direction="right"),
        Axis(name="dy", low=-MAX_SPEED, high=MAX_SPEED, unit="units", quantizer=_QUANTIZER, direction="down"),
    )
)
"""The agent's target minus its position at the start of the frame; x to the right, y down. The field has 512 units."""

PUSHT_WORLD = EnvironmentWorld(
    env_id="gym_pusht:gym_pusht/PushT-v0",
    # Half of the size at which the environment draws: the mean of four pixels. No limit of steps.
    env_args={"obs_type": "state", "observation_width": 256, "observation_height": 256, "max_episode_steps": 10**9},
    wrappers=("rlir_ray.worlds.pusht_wrapper:RelativeTarget",),
    policy="rlir_ray.worlds.pusht_player:PushtPolicy",
    size=(48, 48),
    episode_frames=120,
)


def collect_pusht(
    folder: Path,
    *,
    num_frames: int,
    split: str = "train",
    seed: int = 0,
    size: tuple[int, int] = (48, 48),
    episode_frames: int = 120,
    num_workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> EnvironmentSummary:
    """Record PushT; see `collect_environment` for arguments and errors.

    Args:
        size: height and width of the frames.
        episode_frames: frames of an episode; one that pushes the T into its goal ends before.

    Raises:
        ValueError: gym-pusht is not installed, or see `collect_environment`.
    """
    require_library("gym_pusht", "recording PushT")
    # pygame greets on stdout when it is imported, in each process.
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    return collect_environment(
        folder,
        replace(PUSHT_WORLD, size=size, episode_frames=episode_frames),
        num_frames=num_frames,
        split=split,
        seed=seed,
        space=PUSHT_SPACE,
        task="Push the T.",
        num_workers=num_workers,
        progress=progress,
    )
