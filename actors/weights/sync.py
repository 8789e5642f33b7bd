"""Publish each version of the weights to every rollout actor; each actor checks the bytes by a checksum."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.cluster.diagnostics import one_line
from actors.cluster.placement import Handle
from actors.cluster.waiting import wait_all
from actors.learner.command_queue import SendingRank, StepReport
from actors.rollout.pool import RolloutPool
from actors.weights.broadcasts import Broadcasts
from rlir_ray.config import Config

# One failed version may be chance; this many in a row mean a broken pool.
MAX_FAILED_VERSIONS = 3


@dataclass(frozen=True, slots=True)
class Publication:
    """A published version whose loads may still run."""

    version: int
    loads: list[ray.ObjectRef[Any]]
    """One load for each actor, which answers the version, or of a broadcast a text."""
    broadcasts: Broadcasts | None = None
    """The broadcasts that sent the version; None: the version went through the object store."""


class WeightSync:
    """The publication of versions; at most max_staleness + 1 publications through the object store are in flight.

    An actor whose load fails keeps its version, as long as max_staleness allows that version.

    Args:
        pool: the pool whose actors load the weights.
        timeout_s: bound of the wait for an earlier publication.
        progress: called with a line about failed loads.
        broadcasts: broadcasts to the pool's actors; None: every version goes through the object store.
    """

    def __init__(
        self,
        pool: RolloutPool,
        timeout_s: float,
        progress: Callable[[str], None] = lambda line: None,
        broadcasts: Broadcasts | None = None,
    ) -> None:
        self.pool, self.timeout_s, self.progress, self.broadcasts = pool, timeout_s, progress, broadcasts
        self.latest: StepReport | None = None
        self._num_failed = 0
        """Number of versions in a row that did not reach all actors."""
        self._in_flight: deque[Publication] = deque()
        self._lock = threading.Lock()

    @classmethod
    def from_config(cls, config: Config, pool: RolloutPool, progress: Callable[[str], None]) -> WeightSync:
        """Build the weight sync of a run."""
        timeout_s, broadcasts = config.train.wait_timeout_s, None
        if config.broadcasts_weights:
            broadcasts = Broadcasts(
                pool,
                progress,
                bucket_bytes=config.weights.bucket_bytes,
                on_gpus=config.uses_nccl,
                # Half of the bound: after a failed broadcast, an actor must still load the store's copy in time.
                transfer_s=timeout_s / 2,
            )
        return cls(pool, timeout_s, progress, broadcasts)

    def publish(self, report: StepReport, sender: SendingRank | None = None) -> None:
        """Submit the loads of a version.

        An actor executes its calls in order, so calls that are submitted later sample with this version. Therefore the
        caller may free slots without waiting for the loads.

        Args:
            report: the report of the step whose weights are published.
            sender: the rank that broadcasts the weights; None: every actor loads them from the object store.

        Raises:
            RuntimeError: several versions in a row did not reach all actors.
            TimeoutError: an actor did not load an earlier version in time.
        """
        # Broadcast one version at a time: after a failed broadcast, the next one needs a new group.
        broadcasts = None if self.broadcasts is None or self.broadcasts.is_disabled else self.broadcasts
        self.wait(most=0 if broadcasts and sender else self.pool.max_staleness)
        with self._lock:
            if broadcasts and sender:
                publication = Publication(report.version, broadcasts.load(report, sender), broadcasts)
            else:
                publication = Publication(report.version, self._load(report))
            self._in_flight.append(publication)
            # Keep the reference until the next version, so that the object store keeps the weights.
            self.latest = report

    def reset(self) -> None:
        """Forget the publications of a lost learner: their failures must not count against the next learner."""
        self._in_flight.clear()
        self._num_failed = 0

    def join(self, actors: Sequence[Handle], stop: threading.Event) -> None:
        """Load the latest version on new actors of the pool; then give them calls. Any thread may call this.

        Args:
            actors: the new actors.
            stop: event that ends the wait early.

        Raises:
            ValueError: an actor got other bytes than the published ones.
            TimeoutError: an actor did not load the weights in time.
            Stopped: the event was set.
        """
        loaded: StepReport | None = None
        while True:
            # The lock keeps `publish` from adding a version between the check and the join.
            with self._lock:
                if loaded is not None and loaded is self.latest:
                    self.pool.join(actors)
                    return
                loaded = self.latest
            assert loaded is not None, "publish before others join"
            awaited = f"{len(actors)} new rollout actors to load weights"
            wait_all(self._load(loaded, actors), self.timeout_s, awaited, stop)

    def _load(self, report: StepReport, actors: Sequence[Handle] | None = None) -> list[ray.ObjectRef[int]]:
        return self.pool.load_weights(report.weights_refs[0], report.version, report.checksum, actors)

    def wait(self, most: int = 0) -> None:
        """Block until at most `most` publications are in flight; report the loads that failed.

        Raises:
            RuntimeError: `MAX_FAILED_VERSIONS` versions in a row did not reach all actors.
            TimeoutError: an actor did not answer.
        """
        while self._in_flight and (len(self._in_flight) > most or _are_done(self._in_flight[0].loads)):
            self._finish(self._in_flight.popleft())

    def _finish(self, publication: Publication) -> None:
        causes = self._failure_causes(publication)
        if not causes:
            self._num_failed = 0
            return
        self._num_failed += 1
        line = f"{len(causes)} of {len(publication.loads)} rollout actors could not load them: {causes[0]}"
        self.progress(f"weights of version {publication.version}: {line}; they keep the version before")
        if self._num_failed >= MAX_FAILED_VERSIONS:
            raise RuntimeError(
                f"the weights of {MAX_FAILED_VERSIONS} versions in a row did not reach the rollout pool: {causes[0]}; "
                "free memory on its nodes, or look into Ray's logs"
            )

    def _failure_causes(self, publication: Publication) -> list[str]:
        """Wait for all loads of a publication; return the causes of failed loads."""
        loads, broadcasts = publication.loads, publication.broadcasts
        try:
            results = wait_all(
                loads, self.timeout_s, f"{len(loads)} rollout actors to load weights", activity=self.pool.activity
            )
        except ray.exceptions.RayError:
            if broadcasts is not None:
                broadcasts.record_failure()
            return [one_line(error) for load in loads if (error := self._error(load))]
        if broadcasts is not None:
            broadcasts.record(publication.version, results)
        return []

    def _error(self, load: ray.ObjectRef[object]) -> Exception | None:
        try:
            ray.get(load, timeout=self.timeout_s)
        except ray.exceptions.RayError as error:
            return error
        return None


def _are_done(loads: list[ray.ObjectRef[object]]) -> bool:
    return len(ray.wait(loads, num_returns=len(loads), timeout=0)[0]) == len(loads)
