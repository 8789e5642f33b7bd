"""Recording of any Gymnasium environment as a LeRobot dataset, with several processes and resumable.

An episode's number decides its random numbers, so that the recordings are the same for any number of processes.
Independent of models.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from rlir_ray.data.lerobot.writer import LerobotWriter
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.worlds.environment_episodes import Episode, Policy, RandomPolicy, play_episode, policy_factory
from rlir_ray.worlds.environment_world import (
    EnvironmentWorld,
    environment_space,
    frame_rate,
    open_environment,
    render_frame,
)
from rlir_ray.worlds.settings import keep_settings

if TYPE_CHECKING:
    from rlir_ray.worlds.environment_world import Env

__all__ = ["EnvironmentSummary", "EnvironmentWorld", "Policy", "RandomPolicy", "collect_environment"]

SPLITS = ("train", "validation", "prompts")
STATE = "observation.state"
# Episodes in work or finished but not written, for each process: episodes are written in order, and differ in length.
EPISODES_AHEAD = 2
# Longest wait for an episode of a worker: long recordings of slow environments take minutes.
EPISODE_TIMEOUT_S = 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvironmentSummary:
    """Summary of a folder of recordings."""

    num_episodes: int
    num_frames: int
    space: ActionSpace


def collect_environment(
    folder: Path,
    world: EnvironmentWorld,
    *,
    num_frames: int,
    split: str = "train",
    seed: int = 0,
    space: ActionSpace | None = None,
    names: Sequence[str] = (),
    task: str = "",
    num_workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> EnvironmentSummary:
    """Play and record episodes until the folder holds `num_frames` frames; resume if an earlier call was stopped.

    The dataset holds the frames, the actions, and `observation.state` if the observations are vectors.

    Args:
        folder: receives the dataset, action_space.json and settings.json.
        world: environment, policy and size of the frames.
        num_frames: number of frames, rounded up to whole episodes.
        split: train, validation or prompts; each split draws other episodes.
        seed: the same seed gives the same recordings for any `num_workers`.
        space: names, ranges and bins of the actions; None: those of the environment's space.
        names: without `space`, a name for each field of the environment's space; empty: names from its keys.
        task: text of the task, as LeRobot stores it.
        num_workers: number of processes.
        progress: called with the numbers of finished frames and of all frames.

    Raises:
        ValueError: `num_frames` is below 1, the split is unknown, the environment or its policy cannot be opened or
            recorded, or the folder holds recordings of other settings.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if num_frames < 1:
        raise ValueError(
            f"frames to record must be >= 1, got {num_frames}; ask for {world.episode_frames}, one episode, or more"
        )
    policy_factory(world)
    with closing(open_environment(world)) as env:
        space, fps, stack = space or environment_space(env, world.num_bins, names), frame_rate(env, world), str(env)
        height, width = render_frame(env, world).shape[:2]
        seeds = (seed, SPLITS.index(split))
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"split": split, "seed": seed, **dataclasses.asdict(world)}
        keep_settings(folder, settings)
        extra = {"environment": {**settings, "stack": stack}}
        with LerobotWriter(folder, space, fps=fps, height=height, width=width, task=task, extra=extra) as writer:
            if num_workers <= 1:
                episodes = _episodes(env, world, seeds, writer.num_episodes)
            else:
                episodes = _episodes_of_workers(world, seeds, writer.num_episodes, num_workers)
            with closing(episodes):
                while writer.num_frames < num_frames:
                    episode = next(episodes)
                    columns = {} if episode.states is None else {STATE: episode.states}
                    writer.write(episode.frames, Actions(space, episode.rows), columns=columns)
                    if progress:
                        progress(min(writer.num_frames, num_frames), num_frames)
            return EnvironmentSummary(num_episodes=writer.num_episodes, num_frames=writer.num_frames, space=space)


def _episodes(env: Env, world: EnvironmentWorld, seeds: tuple[int, int], first: int) -> Generator[Episode, None, None]:
    """Play episodes of the numbers from `first` on."""
    number = first
    while True:
        yield play_episode(env, world, (*seeds, number))
        number += 1


def _episodes_of_workers(
    world: EnvironmentWorld, seeds: tuple[int, int], first: int, num_workers: int
) -> Generator[Episode, None, None]:
    """Play episodes of the numbers from `first` on in several processes; yield them in order."""
    waiting: deque[Future[Episode]] = deque()
    number = first
    # A forked process would share the environment's window and threads.
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), _open_in_worker, (world,))
    try:
        while True:
            while len(waiting) < EPISODES_AHEAD * num_workers:
                waiting.append(pool.submit(_play_in_worker, (*seeds, number)))
                number += 1
            yield waiting.popleft().result(EPISODE_TIMEOUT_S)
    except TimeoutError:
        raise TimeoutError(
            f"an episode must end within {EPISODE_TIMEOUT_S} s, got none from {world.env_id}; lower episode_frames, or "
            "correct the policy or the environment that hangs"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


_in_worker: list[tuple[Env, EnvironmentWorld]] = []
"""The environment of this worker process, which plays one episode after another."""


def _open_in_worker(world: EnvironmentWorld) -> None:
    _in_worker.append((open_environment(world), world))


def _play_in_worker(seeds: tuple[int, ...]) -> Episode:
    (env, world) = _in_worker[0]
    return play_episode(env, world, seeds)
