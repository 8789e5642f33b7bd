"""Publish the weights of one version to every rollout actor: put once, checked by their checksum."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.cluster.errors import one_line
from actors.cluster.lifecycle import Handle
from actors.cluster.waiting import wait_all
from actors.learner.command_queue import SendingRank, StepReport
from actors.rollout.pool import RolloutPool
from actors.weights.broadcasts import Broadcasts

# One failed transfer is an accident; as many versions in a row mean a fault.
MAX_LOST = 3


@dataclass(frozen=True, slots=True)
class Publication:
    version: int
    loads: list[ray.ObjectRef[Any]]
    """One load an actor, which answers the version, or of a broadcast a text."""
    is_broadcast: bool


class WeightSync:
    """Publish versions. Through the store at most max_staleness + 1 publications are in flight.

    An actor whose load fails keeps the version that it holds, as long as max_staleness allows that version.

    Args:
        pool: whose actors load the weights.
        timeout_s: bound of the wait for an earlier publication.
        progress: called with a line for loads that failed.
    """

    def __init__(
        self, pool: RolloutPool, timeout_s: float, progress: Callable[[str], None] = lambda line: None
    ) -> None:
        self.pool, self.timeout_s, self.progress = pool, timeout_s, progress
        self.latest: StepReport | None = None
        self._num_lost = 0
        self.broadcasts = Broadcasts(pool.config, pool, progress)
        self._in_flight: deque[Publication] = deque()
        self._lock = threading.Lock()

    def publish(self, report: StepReport, sender: SendingRank | None = None) -> None:
        """Submit the loads of a version.

        An actor executes its calls in order: calls submitted after this sample with this version. So the caller may
        free slots without waiting for the loads.

        Args:
            report: of the step whose weights are published.
            sender: the rank that can broadcast them; None: every actor loads them from the object store.

        Raises:
            RuntimeError: the last versions did not reach all actors.
            TimeoutError: an actor did not load an earlier version in time.
        """
        # Broadcast one version at a time: when a broadcast breaks, the next one needs another group.
        broadcasts = sender is not None and not self.broadcasts.has_given_up
        self.wait(most=0 if broadcasts else self.pool.config.train.max_staleness)
        with self._lock:
            if sender is not None and broadcasts:
                publication = Publication(report.version, self.broadcasts.load(report, sender), is_broadcast=True)
            else:
                publication = Publication(report.version, self._load(report), is_broadcast=False)
            self._in_flight.append(publication)
            # Keep the reference, and so the weights, alive until the next version.
            self.latest = report

    def reset(self) -> None:
        """Forget the publications of a lost learner: that they may not arrive says nothing about the next learner."""
        self._in_flight.clear()
        self._num_lost = 0

    def join(self, actors: Sequence[Handle], stop: threading.Event) -> None:
        """Let new actors of the pool serve once they hold the latest version; for another thread than `publish`.

        Raises:
            ValueError: an actor got other bytes than the published ones.
            TimeoutError: an actor did not load the weights in time.
            Stopped: the event was set.
        """
        held: StepReport | None = None
        while True:
            # Under the lock no version is published: serving and joining actors hold the same version.
            with self._lock:
                if held is not None and held is self.latest:
                    self.pool.join(actors)
                    return
                held = self.latest
            assert held is not None, "publish before others join"
            who = f"{len(actors)} new rollout actors to load weights"
            wait_all(self._load(held, actors), self.timeout_s, who, stop)

    def _load(self, report: StepReport, actors: Sequence[Handle] | None = None) -> list[ray.ObjectRef[int]]:
        return self.pool.load_weights(report.weights_refs[0], report.version, report.checksum, actors)

    def wait(self, most: int = 0) -> None:
        """Block until at most `most` publications are in flight; report the loads that failed.

        Raises:
            RuntimeError: `MAX_LOST` versions in a row did not reach all actors.
            TimeoutError: an actor did not answer.
        """
        while self._in_flight and (len(self._in_flight) > most or _are_done(self._in_flight[0].loads)):
            self._finish(self._in_flight.popleft())

    def _finish(self, one: Publication) -> None:
        causes = self._causes(one)
        if not causes:
            self._num_lost = 0
            return
        self._num_lost += 1
        line = f"{len(causes)} of {len(one.loads)} rollout actors could not load them: {causes[0]}"
        self.progress(f"weights of version {one.version}: {line}; they keep the version before")
        if self._num_lost >= MAX_LOST:
            raise RuntimeError(
                f"the weights of {MAX_LOST} versions in a row did not reach the rollout pool: {causes[0]}; free memory "
                "on its nodes, or look into Ray's logs"
            )

    def _causes(self, one: Publication) -> list[str]:
        """Wait for all loads; return the causes of those that failed."""
        try:
            answers = wait_all(
                one.loads,
                self.timeout_s,
                f"{len(one.loads)} rollout actors to load weights",
                activity=self.pool.activity,
            )
        except ray.exceptions.RayError:
            self.broadcasts.broke()
            return [one_line(error) for load in one.loads if (error := self._error(load))]
        if one.is_broadcast:
            self.broadcasts.answered(one.version, answers)
        return []

    def _error(self, load: ray.ObjectRef[object]) -> Exception | None:
        try:
            ray.get(load, timeout=self.timeout_s)
        except ray.exceptions.RayError as error:
            return error
        return None


def _are_done(loads: list[ray.ObjectRef[object]]) -> bool:
    return len(ray.wait(loads, num_returns=len(loads), timeout=0)[0]) == len(loads)
