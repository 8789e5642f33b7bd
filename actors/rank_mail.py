"""A learner rank's end of the mailbox: the next order is fetched while it works, its reports go out beside the work."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import ray

from actors.mailbox import Order, StepReport
from rlir_ray.checkpoint import Files
from rlir_ray.timeline import span_since
from rlir_ray.weights import Weights, checksum

# How often a rank that waits for an order looks whether the mailbox is still there.
LOOK_S = 60.0
# The mailbox does nothing but take letters.
POST_TIMEOUT_S = 60.0


class RankMail:
    """Args:
    mailbox: of the group.
    rank: whose orders are taken.
    timeout_s: bound of sending a report.
    """

    def __init__(self, mailbox: Any, rank: int, timeout_s: float) -> None:
        self.mailbox, self.rank, self.timeout_s = mailbox, rank, timeout_s
        self._next: ray.ObjectRef = mailbox.next_order.remote(rank)
        self._sender, self._beside = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._sent: Future[None] = self._sender.submit(lambda: None)

    def next_order(self) -> Order:
        """Unblocked by the driver's next order, by None from LearnerGroup.stop(), or by the end of the mailbox.

        A driver may be busy with an evaluation for as long as it likes; each look at it is bounded.
        """
        if not ray.wait([self._next], timeout=0)[0]:
            self.flush()
            while not ray.wait([self._next], timeout=LOOK_S)[0]:
                pass
        order: Order = ray.get(self._next, timeout=LOOK_S)
        if order is not None:
            self._next = self.mailbox.next_order.remote(self.rank)
        return order

    def report(
        self, version: int, metrics: dict[str, float], started: float, weights: Weights, files: Files | None = None
    ) -> None:
        """Sends a report of what began at `started`; raises what sending the one before raised. Rank 0 speaks for all.

        Args:
            weights: of the version, put once whatever the number of readers; nothing may write into them any more.
                Empty: none are published.
        """
        if self.rank != 0:
            return
        span = span_since(started)
        self.flush()
        report = StepReport(
            version=version, metrics=metrics, weights_refs=[], checksum="", span=span, files=files or {}
        )
        self._sent = self._sender.submit(self._send, report, weights)

    def flush(self) -> None:
        """Blocks until the last report was sent."""
        self._sent.result(self.timeout_s)

    def close(self) -> None:
        """Ends its threads."""
        self._sender.shutdown()
        self._beside.shutdown()

    def _send(self, report: StepReport, weights: Weights) -> None:
        if weights:
            # Both read the weights at the speed of the memory, on cores that have nothing else to do.
            published = self._beside.submit(checksum, weights)
            ref = ray.put(weights)
            report = replace(report, weights_refs=[ref], checksum=published.result(self.timeout_s))
        ray.get(self.mailbox.report.remote(report), timeout=POST_TIMEOUT_S)
