"""A learner rank's end of the command queue: fetches commands and sends reports in threads, while the rank trains."""

from __future__ import annotations

import time
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from actors.cluster.placement import Handle
from actors.cluster.waiting import WAY_OUT
from actors.learner.command_queue import CheckpointCommand, SaveCommand, StepCommand, StepReport
from rlir_ray.run.checkpoint import Files
from rlir_ray.run.tracing import span_since
from rlir_ray.trajectory import TrajectoryGroup
from rlir_ray.transfer.weights import Received, Weights, checksum

# Interval at which a wait for a command checks whether the rank has ended.
POLL_S = 1.0
# The command queue does no work of its own and answers at once; a longer wait means that it has died.
QUEUE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class FetchedCommand:
    """A command together with its groups."""

    command: StepCommand | SaveCommand | CheckpointCommand
    groups: list[TrajectoryGroup] = field(default_factory=list)
    """The rank's groups of a step; empty for other commands."""
    wait_s: float = 0.0
    """Seconds that the rank was idle before the command arrived."""


class RankQueue:
    """The commands and reports of one rank.

    Args:
        queue: the command queue of the group.
        rank: number of the rank.
        timeout_s: bound of fetching groups and of sending a report.
    """

    def __init__(self, queue: Handle, rank: int, timeout_s: float) -> None:
        self.queue, self.rank, self.timeout_s = queue, rank, timeout_s
        self._fetcher, self._sender, self._hasher = (ThreadPoolExecutor(1) for _ in range(3))
        self._has_ended = False
        self._next = self._fetcher.submit(self._fetch)
        self._sent: Future[None] = self._sender.submit(lambda: None)

    def next_command(self) -> FetchedCommand | None:
        """Block until the driver's next command; None: LearnerGroup.stop() was called, or the rank has ended.

        The wait has no bound, because an evaluation may keep the driver busy for any time. Each poll is bounded.

        Raises:
            Exception: the error of sending a report.
        """
        started = time.monotonic()
        while not self._next.done():
            # Any: of a command, and of a report that is sent.
            pending: list[Future[Any]] = [each for each in (self._next, self._sent) if not each.done()]
            futures.wait(pending, timeout=POLL_S, return_when=futures.FIRST_COMPLETED)
            if self._sent.done():
                self._sent.result(0)
        fetched = self._next.result(0)
        if fetched is None:
            return None
        self._next = self._fetcher.submit(self._fetch)
        return replace(fetched, wait_s=time.monotonic() - started)

    def _fetch(self) -> FetchedCommand | None:
        """Fetch the next command with its groups, which come to this node while the rank trains the step before."""
        ref = self.queue.next_command.remote(self.rank)
        while not ray.wait([ref], timeout=POLL_S)[0]:
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
        average: Weights | None = None,
    ) -> None:
        """Send the report of a command in the background; only rank 0 sends reports.

        Args:
            version: the learner's version after the command.
            metrics: metrics of a step.
            started: `time.time()` at the start of the command.
            weights: the version's weights, which no code may change any more; empty: publish no weights.
            files: files of a checkpoint.
            skipped: why the update of a step was skipped; empty: the update was done.
            average: the weights of the moving average; None or empty: there is none.

        Raises:
            Exception: the error of sending the report before.
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
        self._sent = self._sender.submit(self._send, report, weights, average or {})

    def flush(self) -> None:
        """Block until the last report is sent."""
        if not futures.wait([self._sent], timeout=self.timeout_s)[0]:
            raise TimeoutError(f"waited {self.timeout_s:.0f} s for the last report to be sent; {WAY_OUT}")
        self._sent.result(0)

    def close(self) -> None:
        """End the threads."""
        self._has_ended = True
        self._fetcher.shutdown()
        self._sender.shutdown()
        self._hasher.shutdown()

    def _send(self, report: StepReport, weights: Weights, average: Weights) -> None:
        if weights:
            # Compute the checksum during the put, because each of them reads all weights once.
            published = self._hasher.submit(checksum, weights)
            ref: ray.ObjectRef[Received] = ray.put(weights)
            report = replace(report, weights_refs=[ref], checksum=published.result(self.timeout_s))
        if average:
            report = replace(report, average_refs=[ray.put(average)])
        ray.get(self.queue.report.remote(report), timeout=QUEUE_TIMEOUT_S)
