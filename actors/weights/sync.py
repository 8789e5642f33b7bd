"""Publishing: the weights of one version to every rollout actor, put once, checked by their checksum."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.cluster.errors import one_line
from actors.cluster.waiting import wait_all
from actors.learner.command_queue import SendingRank, StepReport
from actors.rollout.pool import RolloutPool
from actors.weights.broadcasts import Broadcasts

# A transfer that was cut off is an accident; so many versions in a row are none.
MAX_LOST = 3


@dataclass(frozen=True, slots=True)
class Publication:
    version: int
    loads: list[ray.ObjectRef]
    """One of each actor."""
    is_broadcast: bool


class WeightSync:
    """Through the store no more publications are under way than versions that a group may lag behind, and one.

    An actor whose load fails goes on with the version that it holds, as long as that may still be sampled with.

    Args:
        pool: who reads.
        timeout_s: bound of the wait for an earlier publication.
        progress: told of loads that failed.
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
        """Submits the loads of a version.

        An actor works through its calls in order: what is submitted after this is sampled with this version, so that
        slots may be given back without waiting for the loads.

        Args:
            report: whose weights are put.
            sender: who can broadcast them; None: every actor takes them from the store.

        Raises:
            RuntimeError: the last versions did not reach all actors.
            TimeoutError: an actor did not load an earlier version in time.
        """
        # Broadcasts go one after the other: when one breaks, the next needs another group.
        broadcasts = sender is not None and not self.broadcasts.has_given_up
        self.wait(most=0 if broadcasts else self.pool.config.train.max_staleness)
        with self._lock:
            if sender is not None and broadcasts:
                publication = Publication(report.version, self.broadcasts.load(report, sender), is_broadcast=True)
            else:
                publication = Publication(report.version, self._load(report), is_broadcast=False)
            self._in_flight.append(publication)
            # Keeps the reference, and with it the weights, alive until the next version.
            self.latest = report

    def reset(self) -> None:
        """What the learner that was lost had published may not arrive any more, which says nothing of the next one."""
        self._in_flight.clear()
        self._num_lost = 0

    def join(self, actors: Sequence[Any], stop: threading.Event) -> None:
        """Lets new actors of the pool serve once they hold the latest version; for another thread than `publish`.

        Raises:
            ValueError: an actor got other bytes than the published ones.
            TimeoutError: an actor did not load them in time.
            Stopped: the event was set.
        """
        held: StepReport | None = None
        while True:
            # Under the lock no version is published: those that serve and those that join hold the same one.
            with self._lock:
                if held is not None and held is self.latest:
                    self.pool.join(actors)
                    return
                held = self.latest
            assert held is not None, "publish before others join"
            who = f"{len(actors)} new rollout actors to load weights"
            wait_all(self._load(held, actors), self.timeout_s, who, stop)

    def _load(self, report: StepReport, actors: Sequence[Any] | None = None) -> list[ray.ObjectRef]:
        return self.pool.load_weights(report.weights_refs[0], report.version, report.checksum, actors)

    def wait(self, most: int = 0) -> None:
        """Blocks until at most so many publications are under way, and says which loads failed.

        Raises:
            RuntimeError: so many versions in a row did not reach all actors that it is no accident.
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
        line = f"{len(causes)} of {len(one.loads)} rollout actors could not load it: {causes[0]}"
        self.progress(f"weights of version {one.version}: {line}; they go on with the one before")
        if self._num_lost >= MAX_LOST:
            raise RuntimeError(
                f"the weights of {MAX_LOST} versions in a row did not reach the rollout pool: {causes[0]}; free memory "
                "on its nodes, or look into Ray's logs"
            )

    def _causes(self, one: Publication) -> list[str]:
        """Of the loads that failed, when all are done."""
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

    def _error(self, load: ray.ObjectRef) -> Exception | None:
        try:
            ray.get(load, timeout=self.timeout_s)
        except ray.exceptions.RayError as error:
            return error
        return None


def _are_done(loads: list[ray.ObjectRef]) -> bool:
    return len(ray.wait(loads, num_returns=len(loads), timeout=0)[0]) == len(loads)
