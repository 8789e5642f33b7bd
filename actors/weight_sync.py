"""Publishing: the weights of one version to every rollout actor, put once, checked by their checksum."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import ray

from actors.broadcasts import Broadcasts
from actors.errors import one_line
from actors.mailbox import SendingRank, StepReport
from actors.pools import RolloutPool
from actors.waiting import wait_all

# A transfer that was cut off is an accident; so many versions in a row are none.
MAX_LOST = 3


class WeightSync:
    """One publication under way at a time.

    An actor whose load fails goes on with the version that it holds, as long as that may still be sampled with.

    Args:
        pool: who reads.
        timeout_s: bound of the wait for the previous publication.
        progress: told of loads that failed.
    """

    def __init__(
        self, pool: RolloutPool, timeout_s: float, progress: Callable[[str], None] = lambda line: None
    ) -> None:
        self.pool, self.timeout_s, self.progress = pool, timeout_s, progress
        self.latest: StepReport | None = None
        self._num_lost = 0
        self._loads: list[ray.ObjectRef] = []
        self.broadcasts = Broadcasts(pool.config, pool, progress)
        self._is_broadcast = False
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
            TimeoutError: an actor did not load the previous version in time.
        """
        self.wait()
        with self._lock:
            if sender is None or self.broadcasts.has_given_up:
                self._is_broadcast, self._loads = False, self._load(report)
            else:
                self._is_broadcast, self._loads = True, self.broadcasts.load(report, sender)
            # Keeps the reference, and with it the weights, alive until the next version.
            self.latest = report

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

    def wait(self) -> None:
        """Blocks until the loads under way are done, and says which failed.

        Raises:
            RuntimeError: so many versions in a row did not reach all actors that it is no accident.
            TimeoutError: an actor did not answer.
        """
        causes = self._causes()
        self._num_lost = self._num_lost + 1 if causes else 0
        if causes:
            assert self.latest is not None
            line = f"{len(causes)} of {len(self._loads)} rollout actors could not load it: {causes[0]}"
            self.progress(f"weights of version {self.latest.version}: {line}; they go on with the one before")
        self._loads = []
        if self._num_lost >= MAX_LOST:
            raise RuntimeError(
                f"the weights of {MAX_LOST} versions in a row did not reach the rollout pool: {causes[0]}; free memory "
                "on its nodes, or look into Ray's logs"
            )

    def _causes(self) -> list[str]:
        """Of the loads that failed, when all are done."""
        try:
            answers = wait_all(self._loads, self.timeout_s, f"{len(self._loads)} rollout actors to load weights")
        except ray.exceptions.RayError:
            self.broadcasts.broke()
            return [one_line(error) for load in self._loads if (error := self._error(load))]
        if self._is_broadcast and self.latest is not None:
            self.broadcasts.answered(self.latest.version, answers)
        self._is_broadcast = False
        return []

    def _error(self, load: ray.ObjectRef) -> Exception | None:
        try:
            ray.get(load, timeout=self.timeout_s)
        except ray.exceptions.RayError as error:
            return error
        return None
