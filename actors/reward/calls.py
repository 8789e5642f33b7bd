"""Calls of reward replicas through a Serve handle: one group a call, or several where every replica has work."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.cluster.errors import one_line
from actors.cluster.lifecycle import Handle
from actors.reward.replica import Scored

if TYPE_CHECKING:
    from rlir_ray.trajectory import EncodedVideo

# How long the end of a run waits for groups that replicas are reading: to give up a call of Serve can end the driver
# (MAX_ONGOING in deployment.py says when).
GIVE_UP_S = 10.0


class ReplicaLost(Exception):
    """The replica that had a group is gone; the group is not."""


def is_lost(error: Exception) -> bool:
    """Whether an error says that the replica is gone. The death of the actor that made a video is a RayTaskError."""
    return isinstance(error, RayActorError) and not isinstance(error, RayTaskError)


@dataclass(eq=False, slots=True)
class _Asked:
    """A group that waits for its scores."""

    video_ref: ray.ObjectRef[EncodedVideo]
    answer: asyncio.Future[Scored]


class HandleCalls:
    """Sends groups to the replicas of a handle; Serve's router gives each call to the replica that has the fewest.

    Coroutines run on the pool's event loop.

    Args:
        handle: of a deployment with `score`.
        timeout_s: bound of an answer, its time in the queue included; infinity: the replicas bound it themselves.
    """

    def __init__(self, handle: Handle, timeout_s: float = math.inf) -> None:
        self.handle, self.timeout_s = handle, timeout_s
        self._waiting: list[_Asked] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._num_out = 0

    async def score(self, video_ref: ray.ObjectRef[EncodedVideo]) -> Scored:
        """Score a video that exists.

        Raises:
            ReplicaLost: the replica died, or the answer took longer than timeout_s.
            Exception: what the reward raised.
        """
        loop = asyncio.get_running_loop()
        if not self._waiting:
            # Videos that become ready in the same turn of the loop may share a call.
            loop.call_soon(self._send)
        answer: asyncio.Future[Scored] = loop.create_future()
        self._waiting.append(_Asked(video_ref, answer))
        # The caller may give up; the call goes on (GIVE_UP_S).
        done, _ = await asyncio.wait([answer], timeout=None if self.timeout_s == math.inf else self.timeout_s)
        if not done:
            answer.cancel()
            raise ReplicaLost(f"no answer within {self.timeout_s:g} s")
        return await answer

    def groups_a_call(self, num_out: int) -> int:
        """Return how many groups may share the next call while `num_out` groups are at the replicas."""
        return 1

    def _send(self) -> None:
        while self._waiting:
            size = self.groups_a_call(self._num_out)
            asked, self._waiting = self._waiting[:size], self._waiting[size:]
            self._start(asked)

    def _start(self, asked: list[_Asked]) -> None:
        self._num_out += len(asked)
        is_alone = self._num_out == 1 and not self._waiting
        call = asyncio.get_running_loop().create_task(self._call(asked, is_alone))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call(self, asked: list[_Asked], is_alone: bool) -> None:
        found: Sequence[Scored | Exception | None]
        try:
            # In a list a reference travels as it is, and the replica gets the video itself.
            found = await self.handle.score.remote([each.video_ref for each in asked], is_alone)
        except Exception as error:
            # Groups that shared a failed call are asked for again one by one, to find the one that fails.
            found = [error if len(asked) == 1 else None] * len(asked)
        self._num_out -= len(asked)
        for each, scored in zip(asked, found, strict=True):
            self._answer(each, scored)

    def _answer(self, asked: _Asked, scored: Scored | Exception | None) -> None:
        if asked.answer.done():
            return
        if scored is None:
            self._start([asked])
        elif isinstance(scored, Scored):
            asked.answer.set_result(scored)
        else:
            asked.answer.set_exception(ReplicaLost(one_line(scored)) if is_lost(scored) else scored)

    async def drain(self) -> None:
        """Wait a while for the calls that are out; nobody waits for their answers any more."""
        if self._calls:
            await asyncio.wait(self._calls, timeout=GIVE_UP_S)
