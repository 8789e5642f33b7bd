"""A learner rank's end of the mailbox: orders and their groups come while it works, reports go out beside the work."""

from __future__ import annotations

import time
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from actors.cluster.waiting import WAY_OUT
from actors.learner.command_queue import CheckpointOrder, SaveOrder, StepOrder, StepReport
from rlir_ray.run.checkpoint import Files
from rlir_ray.run.tracing import span_since
from rlir_ray.trajectory import TrajectoryGroup
from rlir_ray.transfer.weights import Weights, checksum

# How often whoever waits for an order looks whether the rank has ended.
LOOK_S = 1.0
# The mailbox does nothing but take letters.
POST_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """An order, and what it speaks of."""

    order: StepOrder | SaveOrder | CheckpointOrder
    groups: list[TrajectoryGroup] = field(default_factory=list)
    """Of a step: the rank's share."""
    wait_s: float = 0.0
    """How long the rank had nothing to do before it came."""


class RankMail:
    """Args:
    mailbox: of the group.
    rank: whose orders are taken.
    timeout_s: bound of fetching groups and of sending a report.
    """

    def __init__(self, mailbox: Any, rank: int, timeout_s: float) -> None:
        self.mailbox, self.rank, self.timeout_s = mailbox, rank, timeout_s
        self._fetcher, self._sender, self._beside = (ThreadPoolExecutor(1) for _ in range(3))
        self._has_ended = False
        self._next = self._fetcher.submit(self._fetch)
        self._sent: Future[None] = self._sender.submit(lambda: None)

    def next_order(self) -> Delivery | None:
        """Unblocked by the driver's next order, by None from LearnerGroup.stop(), or by the end of the mailbox.

        A driver may be busy with an evaluation for as long as it likes; each look at it is bounded.

        Raises:
            Exception: what sending a report raised.
        """
        started = time.monotonic()
        while not self._next.done():
            pending: list[Future[Any]] = [each for each in (self._next, self._sent) if not each.done()]
            futures.wait(pending, timeout=LOOK_S, return_when=futures.FIRST_COMPLETED)
            if self._sent.done():
                self._sent.result(0)
        delivery = self._next.result(0)
        if delivery is None:
            return None
        self._next = self._fetcher.submit(self._fetch)
        return replace(delivery, wait_s=time.monotonic() - started)

    def _fetch(self) -> Delivery | None:
        """The next order, with its groups: they are brought to this node while the step before is trained."""
        ref = self.mailbox.next_order.remote(self.rank)
        while not ray.wait([ref], timeout=LOOK_S)[0]:
            if self._has_ended:
                return None
        order = ray.get(ref, timeout=self.timeout_s)
        if order is None:
            return None
        groups = ray.get(order.group_refs, timeout=self.timeout_s) if isinstance(order, StepOrder) else []
        return Delivery(order, groups)

    def report(
        self,
        version: int,
        metrics: dict[str, float],
        started: float,
        weights: Weights,
        files: Files | None = None,
        skipped: str = "",
    ) -> None:
        """Sends a report of what began at `started`; raises what sending the one before raised. Rank 0 speaks for all.

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
            version=version, metrics=metrics, weights_refs=[], checksum="", span=span, files=files or {},
            skipped=skipped,
        )  # fmt: skip
        self._sent = self._sender.submit(self._send, report, weights)

    def flush(self) -> None:
        """Blocks until the last report was sent."""
        if not futures.wait([self._sent], timeout=self.timeout_s)[0]:
            raise TimeoutError(f"waited {self.timeout_s:.0f} s for the last report to be sent; {WAY_OUT}")
        self._sent.result(0)

    def close(self) -> None:
        """Ends its threads."""
        self._has_ended = True
        self._fetcher.shutdown()
        self._sender.shutdown()
        self._beside.shutdown()

    def _send(self, report: StepReport, weights: Weights) -> None:
        if weights:
            # Both read the weights at the speed of the memory, on cores that have nothing else to do.
            published = self._beside.submit(checksum, weights)
            ref = ray.put(weights)
            report = replace(report, weights_refs=[ref], checksum=published.result(self.timeout_s))
        ray.get(self.mailbox.report.remote(report), timeout=POST_TIMEOUT_S)
