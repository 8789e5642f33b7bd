"""Publishing: the weights of one version to every rollout actor, put once, checked by their checksum."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import ray

from actors.mailbox import StepReport
from actors.pools import RolloutPool
from actors.waiting import wait_all


class WeightSync:
    """One publication under way at a time.

    Args:
        pool: who reads.
        timeout_s: bound of the wait for the previous publication.
    """

    def __init__(self, pool: RolloutPool, timeout_s: float) -> None:
        self.pool, self.timeout_s = pool, timeout_s
        self.latest: StepReport | None = None
        self._loads: list[ray.ObjectRef] = []
        self._lock = threading.Lock()

    def publish(self, report: StepReport) -> None:
        """Submits the loads of a version.

        An actor works through its calls in order: what is submitted after this is sampled with this version, so that
        slots may be given back without waiting for the loads. A refused load surfaces at the next publication.
        """
        self.wait()
        with self._lock:
            self._loads = self._load(report)
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
        """Blocks until the loads under way are done; raises what one of them raised."""
        if self._loads:
            wait_all(self._loads, self.timeout_s, f"{len(self._loads)} rollout actors to load weights")
        self._loads = []
