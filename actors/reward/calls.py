"""Calls to reward replicas through a Serve handle: one group per call, or several if every replica has work."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.cluster.diagnostics import one_line
from actors.cluster.placement import Handle
from actors.reward.replica import ScoreReport

if TYPE_CHECKING:
    from rlir_ray.trajectory import EncodedVideo

# Bound of the wait for calls in flight when a run ends. Let them finish, because cancelling a Serve call can end the
# driver (MAX_ONGOING in deployment.py says when).
DRAIN_S = 10.0


class ReplicaLost(Exception):
    """The replica died before it scored a group; another replica can score the group."""


def is_replica_lost(error: Exception) -> bool:
    """Return whether an error means that the replica died; a RayTaskError means that the actor of the video died."""
    return isinstance(error, RayActorError) and not isinstance(error, RayTaskError)


@dataclass(eq=False, slots=True)
class _Request:
    """A group that waits for its scores."""

    video_ref: ray.ObjectRef[EncodedVideo]
    answer: asyncio.Future[ScoreReport]


class HandleCalls:
    """The calls to the replicas of a handle; Serve's router sends each call to the replica with the fewest calls.

    Coroutines run on the pool's event loop.

    Args:
        handle: handle of a Serve deployment with a method `score`.
        timeout_s: bound of an answer, including the time in the queue; infinity: the replicas bound their own batches.
    """

    def __init__(self, handle: Handle, timeout_s: float = math.inf) -> None:
        self.handle, self.timeout_s = handle, timeout_s
        self._waiting: list[_Request] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._num_in_flight = 0
        """Number of groups in calls that have not returned."""

    async def score(self, video_ref: ray.ObjectRef[EncodedVideo]) -> ScoreReport:
        """Score a group whose video exists.

        Raises:
            ReplicaLost: the replica died, or the answer took longer than timeout_s.
            Exception: the error that the reward raised.
        """
        loop = asyncio.get_running_loop()
        if not self._waiting:
            # Send later in this turn of the loop: videos that become ready in the same turn may share a call.
            loop.call_soon(self._send)
        answer: asyncio.Future[ScoreReport] = loop.create_future()
        self._waiting.append(_Request(video_ref, answer))
        # If the caller stops waiting, the call still runs to its end (DRAIN_S says why).
        done, _ = await asyncio.wait([answer], timeout=None if self.timeout_s == math.inf else self.timeout_s)
        if not done:
            answer.cancel()
            raise ReplicaLost(f"no answer within {self.timeout_s:g} s")
        return await answer

    def groups_per_call(self, num_in_flight: int) -> int:
        """Return how many groups may share the next call while `num_in_flight` groups are at the replicas."""
        return 1

    def _send(self) -> None:
        while self._waiting:
            size = self.groups_per_call(self._num_in_flight)
            requests, self._waiting = self._waiting[:size], self._waiting[size:]
            self._start(requests)

    def _start(self, requests: list[_Request]) -> None:
        self._num_in_flight += len(requests)
        is_alone = self._num_in_flight == 1 and not self._waiting
        call = asyncio.get_running_loop().create_task(self._call(requests, is_alone))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call(self, requests: list[_Request], is_alone: bool) -> None:
        reports: Sequence[ScoreReport | Exception | None]
        try:
            # Ray does not resolve references inside a list: the replica reads the videos itself.
            reports = await self.handle.score.remote([request.video_ref for request in requests], is_alone)
        except Exception as error:
            # Retry the groups of a failed call one by one, to find the group that fails.
            reports = [error if len(requests) == 1 else None] * len(requests)
        self._num_in_flight -= len(requests)
        for request, report in zip(requests, reports, strict=True):
            self._answer(request, report)

    def _answer(self, request: _Request, report: ScoreReport | Exception | None) -> None:
        if request.answer.done():
            return
        if report is None:
            self._start([request])
        elif isinstance(report, ScoreReport):
            request.answer.set_result(report)
        else:
            request.answer.set_exception(ReplicaLost(one_line(report)) if is_replica_lost(report) else report)

    async def drain(self) -> None:
        """Wait up to `DRAIN_S` for the calls in flight and ignore their answers."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=DRAIN_S)
