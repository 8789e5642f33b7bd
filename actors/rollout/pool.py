"""The rollout pool: the actors that sample groups. It also works alone."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ray

from actors.cluster.diagnostics import activity, actor_ids
from actors.cluster.placement import Handle, Options, as_actor, ray_options, stop_actors
from actors.cluster.waiting import wait_all
from actors.rollout.actor import RECEIVING, CallReport, Published, RolloutActor, build_sampler
from rlir_ray.config import MAX_ATTEMPTS, Config, RolloutConfig
from rlir_ray.run.attempts import Attempts
from rlir_ray.samplers import Sampler
from rlir_ray.trajectory import EncodedVideo, Prompt, TrajectoryGroup
from rlir_ray.transfer.broadcast import Channel
from rlir_ray.transfer.weights import Received


def _restartable(make_sampler: Callable[[], Sampler], timeout_s: float) -> type[RolloutActor]:
    """Return an actor class without arguments, because Ray may lose arguments before it restarts an actor."""

    class Restartable(RolloutActor):
        def __init__(self) -> None:
            actor_id = ray.get_runtime_context().get_actor_id()
            attempts = Attempts(Path(tempfile.gettempdir()) / f"rlir_ray-call-{actor_id}", MAX_ATTEMPTS)
            super().__init__(make_sampler, timeout_s, attempts)

    Restartable.__qualname__ = RolloutActor.__qualname__
    return Restartable


@dataclass(frozen=True, slots=True)
class GroupRefs:
    """References to the results of a rollout call for one group."""

    group_ref: ray.ObjectRef[TrajectoryGroup]
    video_ref: ray.ObjectRef[EncodedVideo]
    report_ref: ray.ObjectRef[CallReport]
    """The `CallReport`, shared by the groups of the call."""


class RolloutPool:
    """The rollout actors. Calls go to the actors in turn, and each actor executes its calls in order.

    Ray restarts an actor that dies and repeats its calls under the same references. Seeds belong to groups, so a
    repeated call samples the same clips. A call that ends its actor too often fails, and no other call with it. Any
    thread may grow and shrink the pool while another one samples.

    Args:
        rollout: number and resources of the actors.
        make_sampler: builds the sampler in an actor.
        group_size: number of trajectories of a group.
        max_staleness: number of versions that an actor may lag behind if it cannot load the newest version.
        timeout_s: bound of a call; a longer call ends the actor's process.
        wait_timeout_s: bound of the wait for actors that start.
        receives_broadcasts: whether weights may come by broadcast, which an actor receives while it samples.
    """

    def __init__(
        self,
        rollout: RolloutConfig,
        make_sampler: Callable[[], Sampler],
        *,
        group_size: int,
        max_staleness: int,
        timeout_s: float,
        wait_timeout_s: float,
        receives_broadcasts: bool = False,
    ) -> None:
        self.num_initial, self.options = rollout.num_actors, ray_options(rollout)
        self.group_size, self.max_staleness, self.wait_timeout_s = group_size, max_staleness, wait_timeout_s
        self.receives_broadcasts = receives_broadcasts
        self.actors: list[Handle] = []
        self._joining: list[Handle] = []
        self._leaving: list[Handle] = []
        self._num_calls = 0
        self._shell = _restartable(make_sampler, timeout_s)
        self._published: Published | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_config(cls, config: Config, make_sampler: Callable[[], Sampler] | None = None) -> RolloutPool:
        """Build the pool of a run; without `make_sampler` its actors build the configured policy and engine."""
        return cls(
            config.rollout,
            make_sampler or partial(build_sampler, config),
            group_size=config.train.group_size,
            max_staleness=config.train.max_staleness,
            timeout_s=config.rollout_timeout_s,
            wait_timeout_s=config.train.wait_timeout_s,
            receives_broadcasts=config.broadcasts_weights,
        )

    def start(self) -> None:
        """Start the actors in the background; `wait_ready` blocks until they hold the policy."""
        self.actors = self._launch(self.num_initial)

    def _launch(self, num_actors: int) -> list[Handle]:
        restarts: Options = {"max_restarts": -1, "max_task_retries": MAX_ATTEMPTS - 1}
        if self.receives_broadcasts:
            restarts["concurrency_groups"] = {RECEIVING: 1}
        shell = as_actor(self._shell, **restarts, **self.options)
        return [shell.remote() for _ in range(num_actors)]

    def wait_ready(self, stop: threading.Event | None = None, actors: Sequence[Handle] | None = None) -> None:
        """Block until every actor of the pool, or each of `actors`, holds the policy."""
        chosen = self.actors if actors is None else actors
        awaited = f"{len(chosen)} rollout actors to load the policy"
        versions = [actor.version.remote() for actor in chosen]
        wait_all(versions, self.wait_timeout_s, awaited, stop, lambda: activity(actor_ids(chosen)))

    def activity(self) -> str:
        """Describe the current work of the actors."""
        return activity(actor_ids(self.actors))

    def sample(
        self, group_ids: Sequence[int], seeds: Sequence[int], prompts_ref: ray.ObjectRef[list[Prompt]]
    ) -> list[GroupRefs]:
        """Submit one call to the next actor, which samples one group for each prompt.

        Args:
            group_ids: id of each group.
            seeds: seed of each group.
            prompts_ref: reference to the list of one `Prompt` per group, which only the actor reads.
        """
        # Hold the lock: `shrink` may end the actor, which must not get a call after that.
        with self._lock:
            actor = self.actors[self._num_calls % len(self.actors)]
            self._num_calls += 1
            # Let the actor count the attempts: Ray also counts those of calls that wait behind the one that ends it.
            method = actor.sample.options(num_returns=2 * len(group_ids) + 1, max_task_retries=-1)
            *columns, report = method.remote(
                list(group_ids), list(seeds), self.group_size, self._published, prompts_ref
            )
        return [GroupRefs(group, video, report) for group, video in zip(columns[::2], columns[1::2], strict=True)]

    def load_weights(
        self, weights_ref: ray.ObjectRef[Received], version: int, checksum: str, actors: Sequence[Handle] | None = None
    ) -> list[ray.ObjectRef[int]]:
        """Submit the load of a version to every actor; calls that are submitted later sample with this version.

        Args:
            weights_ref: reference to the weights.
            version: their version.
            checksum: their checksum.
            actors: load the version on these actors only and do not publish it, because the pool may already hold a
                newer version; None: load it on all actors and publish it.
        """
        with self._lock:
            if actors is None:
                self._publish(weights_ref, version, checksum)
            chosen = self.actors if actors is None else actors
            return [actor.load_weights.remote(weights_ref, version, checksum) for actor in chosen]

    def receive_weights(
        self,
        weights_ref: ray.ObjectRef[Received],
        version: int,
        checksum: str,
        channel: Callable[[Sequence[Handle]], Channel],
    ) -> list[ray.ObjectRef[str]]:
        """Submit the load of a version by broadcast to every actor; actors receive while they sample.

        Args:
            weights_ref: reference to the weights, for actors that miss the broadcast.
            version: their version.
            checksum: their checksum.
            channel: opens the broadcast group of the given actors; an actor's rank is its position, from 1 on.
        """
        with self._lock:
            published, group = self._publish(weights_ref, version, checksum), channel(self.actors)
            loads = []
            for rank, actor in enumerate(self.actors, 1):
                # Do not retry: a restarted actor is no member of the broadcast group.
                receive = actor.receive.options(concurrency_group=RECEIVING, max_task_retries=0)
                loads.append(actor.load_received.remote(published, [receive.remote(group, rank, version)]))
            return loads

    def _publish(self, weights_ref: ray.ObjectRef[Received], version: int, checksum: str) -> Published:
        self._published = Published(weights_ref, version, checksum, oldest=version - self.max_staleness)
        return self._published

    def num_actors(self) -> int:
        """Count the actors, including actors that still load their policy."""
        # Hold the lock: an actor that joins meanwhile would be counted twice.
        with self._lock:
            return len(self.actors) + len(self._joining)

    def grow(self, num_more: int) -> list[Handle]:
        """Start more actors, which get no calls before `join`."""
        new = self._launch(num_more)
        with self._lock:
            self._joining += new
        return new

    def join(self, new: Sequence[Handle]) -> None:
        """Give calls to actors that `grow` has started, unless `shrink` has stopped them meanwhile."""
        with self._lock:
            self.actors += [actor for actor in new if actor in self._joining]
            self._joining = [actor for actor in self._joining if actor not in new]

    def shrink(self, num_actors: int) -> None:
        """Stop actors, newest first, until `num_actors` are left. A stopped actor first finishes its calls."""
        assert num_actors >= 1, "a pool keeps an actor"
        with self._lock:
            # Count again: an actor that could not join may have been dropped since the caller counted.
            while len(self.actors) + len(self._joining) > num_actors:
                if self._joining:
                    stop_actors([self._joining.pop()])
                    continue
                actor = self.actors.pop()
                # The actor executes this call in order, after its submitted calls.
                actor.__ray_terminate__.options(max_task_retries=0).remote()
                self._leaving.append(actor)

    def drop(self, actor: Handle) -> bool:
        """Stop an actor that `grow` has started and that cannot join; return whether the pool still wanted it."""
        with self._lock:
            was_wanted = actor in self._joining
            self._joining = [each for each in self._joining if each is not actor]
        stop_actors([actor])
        return was_wanted

    def stop(self) -> None:
        """Stop all actors at once."""
        stop_actors([*self.actors, *self._joining, *self._leaving])
        self.actors, self._joining, self._leaving = [], [], []
