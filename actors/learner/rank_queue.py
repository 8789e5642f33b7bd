"""A learner rank's end of the command queue: fetches commands with their groups, sends reports, beside the work."""

from __future__ import annotations

import time
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from actors.cluster.lifecycle import Handle
from actors.cluster.waiting import WAY_OUT
from actors.learner.command_queue import CheckpointCommand, SaveCommand, StepCommand, StepReport
from rlir_ray.run.checkpoint import Files
from rlir_ray.run.tracing import span_since
from rlir_ray.trajectory import TrajectoryGroup
from rlir_ray.transfer.weights import Received, Weights, checksum

# How often a wait for a command looks whether the rank has ended.
LOOK_S = 1.0
# The command queue does no work of its own, so it answers at once.
POST_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class FetchedCommand:
    """A command with the groups that it names."""

    command: StepCommand | SaveCommand | CheckpointCommand
    groups: list[TrajectoryGroup] = field(default_factory=list)
    """Of a step: the rank's share."""
    wait_s: float = 0.0
    """How long the rank was idle before the command came."""


class RankQueue:
    """Args:
    queue: the command queue of the group.
    rank: whose commands are taken.
    timeout_s: bound of fetching groups and of sending a report.
    """

    def __init__(self, queue: Handle, rank: int, timeout_s: float) -> None:
        self.queue, self.rank, self.timeout_s = queue, rank, timeout_s
        self._fetcher, self._sender, self._beside = (ThreadPoolExecutor(1) for _ in range(3))
        self._has_ended = False
        self._next = self._fetcher.submit(self._fetch)
        self._sent: Future[None] = self._sender.submit(lambda: None)

    def next_command(self) -> FetchedCommand | None:
        """Block until the driver's next command; None: LearnerGroup.stop() was called, or the queue has ended.

        The wait has no bound, since an evaluation may take the driver any time; each look is bounded.

        Raises:
            Exception: what sending a report raised.
        """
        started = time.monotonic()
        while not self._next.done():
            # Any: of a command, and of a report that is sent.
            pending: list[Future[Any]] = [each for each in (self._next, self._sent) if not each.done()]
            futures.wait(pending, timeout=LOOK_S, return_when=futures.FIRST_COMPLETED)
            if self._sent.done():
                self._sent.result(0)
        fetched = self._next.result(0)
        if fetched is None:
            return None
        self._next = self._fetcher.submit(self._fetch)
        return replace(fetched, wait_s=time.monotonic() - started)

    def _fetch(self) -> FetchedCommand | None:
        """Fetch the next command with its groups: they come to this node while the step before is trained."""
        ref = self.queue.next_command.remote(self.rank)
        while not ray.wait([ref], timeout=LOOK_S)[0]:
            if self._has_ended:
                return None
        command = ray.get(ref, timeout=self.timeout_s)
        if command is None:
            return None
        groups = ray.get(command.group_refs, timeout=self.timeout_s) if isinstance(command, StepCommand) else []
        return FetchedCommand(command, groups)

    def report(
        self,
        version: int,
        metrics: dict[str, float],
        started: float,
        weights: Weights,
        files: Files | None = None,
        skipped: str = "",
    ) -> None:
        """Send a report of what began at `started`; raise what sending the report before raised. Only rank 0 reports.

        Args:
            weights: of the version, put once whatever the number of readers; nothing may write into them any more.
                Empty: none are published.
            skipped: why a step's update was; empty: it was done.
        """
        if self.rank != 0:
            return
        span = span_since(started)
        self.flush()
        report = StepReport(
            version=version,
            metrics=metrics,
            weights_refs=[],
            checksum="",
            span=span,
            files=files or {},
            skipped=skipped,
        )
        self._sent = self._sender.submit(self._send, report, weights)

    def flush(self) -> None:
        """Block until the last report was sent."""
        if not futures.wait([self._sent], timeout=self.timeout_s)[0]:
            raise TimeoutError(f"waited {self.timeout_s:.0f} s for the last report to be sent; {WAY_OUT}")
        self._sent.result(0)

    def close(self) -> None:
        """End the threads."""
        self._has_ended = True
        self._fetcher.shutdown()
        self._sender.shutdown()
        self._beside.shutdown()

    def _send(self, report: StepReport, weights: Weights) -> None:
        if weights:
            # The checksum and the put both read the weights at the speed of the memory: do them side by side.
            published = self._beside.submit(checksum, weights)
            ref: ray.ObjectRef[Received] = ray.put(weights)
            report = replace(report, weights_refs=[ref], checksum=published.result(self.timeout_s))
        ray.get(self.queue.report.remote(report), timeout=POST_TIMEOUT_S)
