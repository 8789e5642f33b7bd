"""Publishing: the weights of one version to every rollout actor, put once, checked by their checksum."""

from __future__ import annotations

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

    def publish(self, report: StepReport) -> None:
        """Submits the loads of a version.

        An actor works through its calls in order: what is submitted after this is sampled with this version, so that
        slots may be given back without waiting for the loads. A refused load surfaces at the next publication.
        """
        self.wait()
        self._loads = self.pool.load_weights(report.weights_refs[0], report.version, report.checksum)
        # Keeps the reference, and with it the weights, alive until the next version.
        self.latest = report

    def wait(self) -> None:
        """Blocks until the loads under way are done; raises what one of them raised."""
        if self._loads:
            wait_all(self._loads, self.timeout_s, f"{len(self._loads)} rollout actors to load weights")
        self._loads = []
