"""The rollout pool, usable alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import ray

from actors.cluster.diagnostics import activity, ids
from actors.cluster.lifecycle import Handle, as_actor, stop_actors
from actors.cluster.placement import Options, ray_options
from actors.cluster.waiting import wait_all
from actors.rollout.actor import RECEIVING, CallReport, Published, RolloutActor, build_sampler
from rlir_ray.config import MAX_ATTEMPTS, Config
from rlir_ray.samplers import Sampler
from rlir_ray.trajectory import EncodedVideo, Prompt, TrajectoryGroup
from rlir_ray.transfer.broadcast import Channel
from rlir_ray.transfer.weights import Received


def _restartable(make_sampler: Callable[[], Sampler], timeout_s: float) -> type[RolloutActor]:
    """Return a shell without arguments: Ray does not keep arguments for a restart once the caller is gone."""

    class Restartable(RolloutActor):
        def __init__(self) -> None:
            super().__init__(make_sampler, timeout_s)

    Restartable.__qualname__ = RolloutActor.__qualname__
    return Restartable


@dataclass(frozen=True, slots=True)
class GroupRefs:
    """References to what a rollout call puts into the object store for one group."""

    group_ref: ray.ObjectRef[TrajectoryGroup]
    video_ref: ray.ObjectRef[EncodedVideo]
    report_ref: ray.ObjectRef[CallReport]
    """The call's `CallReport`, shared by its groups."""


class RolloutPool:
    """Rollout actors; calls go to the actors in turn, and each actor executes its calls in order.

    Ray restarts an actor that dies and repeats its calls under the same references. Seeds belong to groups, so a
    repeated call samples the same clips. Another thread than the one that samples may grow and shrink the pool.

    Args:
        config: `rollout`, the policy's checkpoint and `train.group_size` are read.
        make_sampler: builds the sampler in an actor; None: the configured engine and checkpoint.
    """

    def __init__(self, config: Config, make_sampler: Callable[[], Sampler] | None = None) -> None:
        self.config = config
        self.make_sampler = make_sampler or partial(build_sampler, config)
        self.options = ray_options(config.rollout)
        self.actors: list[Handle] = []
        self._joining: list[Handle] = []
        self._leaving: list[Handle] = []
        self._num_calls = 0
        self._shell = _restartable(self.make_sampler, config.rollout_timeout_s)
        self._published: Published | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        self.actors = self._launch(self.config.rollout.num_actors)

    def _launch(self, num_actors: int) -> list[Handle]:
        # Bounded: the groups of a call that crashes every actor must fail.
        restarts: Options = {"max_restarts": -1, "max_task_retries": MAX_ATTEMPTS - 1}
        if self.config.broadcasts_weights:
            restarts["concurrency_groups"] = {RECEIVING: 1}
        shell = as_actor(self._shell, **restarts, **self.options)
        return [shell.remote() for _ in range(num_actors)]

    def wait_ready(self, stop: threading.Event | None = None, actors: Sequence[Handle] | None = None) -> None:
        """Block until every actor, or each of `actors`, holds its policy."""
        chosen = self.actors if actors is None else actors
        who, timeout_s = f"{len(chosen)} rollout actors to load the policy", self.config.train.wait_timeout_s
        wait_all([actor.version.remote() for actor in chosen], timeout_s, who, stop, lambda: activity(ids(chosen)))

    def activity(self) -> str:
        """Say what the actors are busy with."""
        return activity(ids(self.actors))

    def sample(
        self, group_ids: Sequence[int], seeds: Sequence[int], prompts_ref: ray.ObjectRef[list[Prompt]]
    ) -> list[GroupRefs]:
        """Submit one call to the next actor: it samples a group of each prompt.

        Args:
            prompts_ref: of a list of as many `Prompt`s; only the actor reads them.
        """
        # Under the lock: an actor that `shrink` ends must not get a call after that.
        with self._lock:
            actor = self.actors[self._num_calls % len(self.actors)]
            self._num_calls += 1
            method = actor.sample.options(num_returns=2 * len(group_ids) + 1)
            group_size = self.config.train.group_size
            *columns, report = method.remote(list(group_ids), list(seeds), group_size, self._published, prompts_ref)
        return [GroupRefs(group, video, report) for group, video in zip(columns[::2], columns[1::2], strict=True)]

    def load_weights(
        self, weights_ref: ray.ObjectRef[Received], version: int, checksum: str, actors: Sequence[Handle] | None = None
    ) -> list[ray.ObjectRef[int]]:
        """Hand a version to every actor; calls submitted later are sampled with this version.

        Args:
            actors: load the version on these only, and publish nothing: the pool may hold a newer version by now.
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
        """Hand a version to every actor by broadcast: actors receive while they sample.

        Args:
            channel: opens the broadcast group of these actors; an actor's rank is its position, from 1 on.
        """
        with self._lock:
            published, group = self._publish(weights_ref, version, checksum), channel(self.actors)
            loads = []
            for rank, actor in enumerate(self.actors, 1):
                # No retry: a restarted actor is no member of the broadcast group.
                receive = actor.receive.options(concurrency_group=RECEIVING, max_task_retries=0)
                loads.append(actor.load_received.remote(published, [receive.remote(group, rank, version)]))
            return loads

    def _publish(self, weights_ref: ray.ObjectRef[Received], version: int, checksum: str) -> Published:
        oldest = version - self.config.train.max_staleness
        self._published = Published(weights_ref, version, checksum, oldest)
        return self._published

    def num_actors(self) -> int:
        """Count the actors, including those that still load their policy."""
        # Under the lock: an actor that joins meanwhile would be counted twice.
        with self._lock:
            return len(self.actors) + len(self._joining)

    def grow(self, num_more: int) -> list[Handle]:
        """Start more actors, which get no call before they `join`."""
        new = self._launch(num_more)
        with self._lock:
            self._joining += new
        return new

    def join(self, new: Sequence[Handle]) -> None:
        """Let actors serve that `grow` started, except those that `shrink` has stopped meanwhile."""
        with self._lock:
            self.actors += [actor for actor in new if actor in self._joining]
            self._joining = [actor for actor in self._joining if actor not in new]

    def shrink(self, num_actors: int) -> None:
        """Stop actors until `num_actors` are left, the newest first. They finish the calls that they have."""
        assert num_actors >= 1, "a pool keeps an actor"
        with self._lock:
            # Count here: an actor that could not join may be gone since the caller counted.
            while len(self.actors) + len(self._joining) > num_actors:
                if self._joining:
                    stop_actors([self._joining.pop()])
                    continue
                actor = self.actors.pop()
                # The actor executes this call after the calls before it.
                actor.__ray_terminate__.options(max_task_retries=0).remote()
                self._leaving.append(actor)

    def drop(self, actor: Handle) -> bool:
        """Stop an actor that `grow` started and that cannot join; return whether it was still wanted."""
        with self._lock:
            was_wanted = actor in self._joining
            self._joining = [each for each in self._joining if each is not actor]
        stop_actors([actor])
        return was_wanted

    def stop(self) -> None:
        stop_actors([*self.actors, *self._joining, *self._leaving])
        self.actors, self._joining, self._leaving = [], [], []
