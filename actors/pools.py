"""The rollout and the reward pool, each usable alone. Here plain classes become Ray actors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import ray
from ray import serve

from actors.reward import MAX_BATCH, Reward, RewardActor, RewardDeployment, Scored, build_reward
from actors.rollout import RolloutActor, build_sampler
from actors.waiting import wait_all
from rlir_ray.config import Config
from rlir_ray.samplers import Sampler

# Requests that a Serve replica holds; the rest wait in the router, which costs a retry each.
MAX_ONGOING = 8 * MAX_BATCH


def as_actor(shell: type, *, num_cpus: float = 0, num_gpus: float = 0, **options: Any) -> Any:
    """A plain class as a Ray actor class."""
    return ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, **options)(shell)


def stop_actors(actors: Sequence[Any]) -> None:
    for actor in actors:
        ray.kill(actor)


@dataclass(frozen=True, slots=True)
class GroupRefs:
    """What a rollout call leaves of one group in the object store."""

    group_ref: ray.ObjectRef
    video_ref: ray.ObjectRef
    report_ref: ray.ObjectRef
    """The call's `CallReport`, shared by its groups."""


class RolloutPool:
    """Rollout actors; calls go round among them, each actor works through its own in order.

    Args:
        config: `rollout`, the policy's checkpoint and `train.group_size` are read.
        make_sampler: builds the sampler in an actor; None: the configured engine and checkpoint.
    """

    def __init__(self, config: Config, make_sampler: Callable[[], Sampler] | None = None) -> None:
        self.config = config
        self.make_sampler = make_sampler or partial(build_sampler, config)
        self.actors: list[Any] = []
        self._num_calls = 0

    def start(self) -> None:
        rollout = self.config.rollout
        shell = as_actor(RolloutActor, num_cpus=rollout.num_cpus, num_gpus=rollout.num_gpus)
        self.actors = [shell.remote(self.make_sampler) for _ in range(self.config.rollout.num_actors)]

    def wait_ready(self, stop: threading.Event | None = None) -> None:
        """Blocks until every actor holds its policy."""
        refs = [actor.version.remote() for actor in self.actors]
        wait_all(refs, self.config.train.wait_timeout_s, f"{len(refs)} rollout actors to load the policy", stop)

    def sample(
        self, group_ids: Sequence[int], seeds: Sequence[int], prompts: Sequence[ray.ObjectRef]
    ) -> list[GroupRefs]:
        """One call: the groups of these prompts, sampled together by the next actor.

        Args:
            prompts: references of `Prompt`; the actor gets their values, the caller never does.
        """
        actor = self.actors[self._num_calls % len(self.actors)]
        self._num_calls += 1
        method = actor.sample.options(num_returns=2 * len(prompts) + 1)
        *columns, report = method.remote(list(group_ids), list(seeds), self.config.train.group_size, *prompts)
        return [GroupRefs(group, video, report) for group, video in zip(columns[::2], columns[1::2], strict=True)]

    def load_weights(self, weights_ref: ray.ObjectRef, version: int, checksum: str) -> list[ray.ObjectRef]:
        """Hands a version to every actor; calls submitted later are sampled with it."""
        return [actor.load_weights.remote(weights_ref, version, checksum) for actor in self.actors]

    def stop(self) -> None:
        stop_actors(self.actors)
        self.actors = []


class RewardBackend(Protocol):
    def score(self, video_ref: ray.ObjectRef) -> Future[Scored]: ...

    def stop(self) -> None: ...


class ActorBackend:
    """Plain actors, one group a call, in turn."""

    def __init__(self, config: Config, make_reward: Callable[[], Reward]) -> None:
        # A group whose video is ready does not wait for one that is still being sampled.
        shell = as_actor(
            RewardActor,
            num_cpus=config.reward.num_cpus,
            num_gpus=config.reward.num_gpus,
            allow_out_of_order_execution=True,
        )
        self.actors = [shell.remote(make_reward) for _ in range(config.reward.num_replicas)]
        self._num_calls = 0

    def score(self, video_ref: ray.ObjectRef) -> Future[Scored]:
        actor = self.actors[self._num_calls % len(self.actors)]
        self._num_calls += 1
        return actor.score.remote(video_ref).future()

    def stop(self) -> None:
        stop_actors(self.actors)


class ServeBackend:
    """A Ray Serve deployment, reached by its handle alone: no HTTP proxy is started."""

    def __init__(self, config: Config, make_reward: Callable[[], Reward]) -> None:
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        deployment = serve.deployment(
            num_replicas=config.reward.num_replicas,
            ray_actor_options={"num_cpus": config.reward.num_cpus, "num_gpus": config.reward.num_gpus},
            max_ongoing_requests=MAX_ONGOING,
        )(RewardDeployment)
        self.name = f"rlir_reward_{uuid.uuid4().hex[:8]}"
        # With our small inline limit (plan.py) the controller's arguments lie in the object store, which Ray's core
        # reports on the terminal as an error although they stay there as long as the driver does.
        with _quiet_stderr():
            serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
        try:
            self.handle = serve.run(deployment.bind(make_reward), name=self.name, route_prefix=None)
        except RuntimeError as error:
            cause = self._cause()
            # A user's own Ray goes on: nothing of ours may stay in it.
            serve.delete(self.name)
            raise RuntimeError(f"the reward pool did not start: {cause}; check models.* and reward.*") from error
        # A response blocks whoever turns it into a reference until a replica took it; a loop of its own waits instead.
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="reward responses", daemon=True).start()

    def score(self, video_ref: ray.ObjectRef) -> Future[Scored]:
        return asyncio.run_coroutine_threadsafe(_value_of(self.handle.score.remote(video_ref)), self.loop)

    def _cause(self) -> str:
        """The last line of what Serve tells about a deployment that failed: the error raised in the replica."""
        application = serve.status().applications.get(self.name)
        deployments = application.deployments.values() if application else ()
        lines = [line for each in deployments for line in each.message.splitlines() if line.strip()]
        return lines[-1].strip() if lines else "Serve gives no cause"

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        # The handle's threads end the process when they find that Ray has gone before them.
        self.handle.shutdown()
        serve.delete(self.name)


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Nothing reaches the terminal from inside, compiled code included; exceptions pass."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


async def _value_of(response: Any) -> Scored:
    return await response


BACKENDS: dict[str, Callable[[Config, Callable[[], Reward]], RewardBackend]] = {
    "serve": ServeBackend,
    "actors": ActorBackend,
}


class RewardPool:
    """The inverse reward behind one interface, whatever the backend.

    Args:
        config: `reward`, `world` and the checkpoints are read.
        class_shares: how often each class is commanded, for reward.balance=class.
        make_reward: builds the reward in a replica; None: the configured one.
    """

    def __init__(
        self,
        config: Config,
        class_shares: Mapping[str, npt.NDArray[np.floating]] | None = None,
        make_reward: Callable[[], Reward] | None = None,
    ) -> None:
        self.config = config
        self.make_reward = make_reward or partial(build_reward, config, class_shares)
        self.backend: RewardBackend | None = None

    def start(self) -> None:
        self.backend = BACKENDS[self.config.reward.backend](self.config, self.make_reward)

    def score(self, video_ref: ray.ObjectRef) -> Future[Scored]:
        """The scores of a group; the replica reads the video, the caller gets G x F floats."""
        assert self.backend is not None, "start the pool first"
        return self.backend.score(video_ref)

    def stop(self) -> None:
        if self.backend is not None:
            self.backend.stop()
        self.backend = None
