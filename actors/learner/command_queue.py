"""What driver and learner ranks say to each other, and the mailbox actor through which they say it. No torch here."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray

from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.algorithm.batching import split_groups
from rlir_ray.run.checkpoint import Files
from rlir_ray.run.tracing import Span

if TYPE_CHECKING:
    from rlir_ray.transfer.broadcast import Channel


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOrder:
    """One rank's share of an optimiser step."""

    group_refs: list[ray.ObjectRef]
    """References inside a list travel as they are: only the rank that trains a group reads it."""
    advantages: list[GroupAdvantages]


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveOrder:
    folder: str
    node: str
    """Where that folder is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointOrder:
    folder: str
    """Empty; the files of a checkpoint go there."""
    node: str
    group_refs: list[ray.ObjectRef]
    """Groups that are ready but not trained."""


Order = StepOrder | SaveOrder | CheckpointOrder | None
"""None ends the loop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What rank 0 says when it is ready, after a step, a save or a checkpoint."""

    version: int
    metrics: dict[str, float]
    weights_refs: list[ray.ObjectRef]
    """The version's weights, put once; empty after a save or a checkpoint."""
    checksum: str
    span: Span
    """From the order to the report."""
    files: Files = field(default_factory=dict)
    """After a checkpoint: what rank 0 wrote."""
    skipped: str = ""
    """After a step: why its update was skipped; empty: it was done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A rank ended; the cause in one line."""

    cause: str
    is_final: bool = False
    """New ranks would end alike: a full disk, a checkpoint of another policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BroadcastOrder:
    """A version that rank 0 is to send, beside its steps."""

    channel: Channel
    version: int
    weights_refs: list[ray.ObjectRef]
    """The version's weights, put once; a reference inside a list travels as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SendingRank:
    """Rank 0 as a sender of broadcasts."""

    mailbox: Any
    """Through which it gets its orders."""
    host: str
    """Where the store of its groups listens."""
    port: int


class Mailbox:
    """Orders to each rank, reports back. An async actor, so that waiting takes no thread and no CPU."""

    def __init__(self, num_ranks: int) -> None:
        self._orders: list[asyncio.Queue[Order]] = [asyncio.Queue() for _ in range(num_ranks)]
        self._reports: dict[int, asyncio.Future[StepReport | Failure]] = {}
        self._num_reports, self._next_order = 0, 1
        self._early: dict[int, list[Order]] = {}
        self._ranks: dict[int, str] = {}
        self._all_registered = asyncio.Event()
        self._broadcasts: asyncio.Queue[BroadcastOrder | None] = asyncio.Queue()
        self._sender = ("", 0)

    async def register(self, rank: int, actor_id: str) -> None:
        """Which actor a rank lives in."""
        self._ranks[rank] = actor_id
        if len(self._ranks) == len(self._orders):
            self._all_registered.set()

    async def wait_registered(self) -> None:
        """Block until every rank has registered."""
        await self._all_registered.wait()

    async def ranks(self) -> list[str]:
        """Actor ids in the order of the ranks; of those that have started."""
        return [self._ranks[rank] for rank in sorted(self._ranks)]

    async def register_sender(self, host: str, port: int) -> None:
        """Where rank 0's store of broadcasts listens."""
        self._sender = host, port

    async def sender(self) -> tuple[str, int]:
        """Host and port; an empty host where there is none."""
        return self._sender

    async def order_broadcast(self, order: BroadcastOrder) -> None:
        self._broadcasts.put_nowait(order)

    async def next_broadcast(self) -> BroadcastOrder | None:
        """None ends the sending."""
        return await self._broadcasts.get()

    async def carry_out(self, number: int, orders: list[Order]) -> StepReport | Failure:
        """Hands an order to each rank; the report of what they did, or the failure of one.

        Args:
            number: from 1 on. Ray starts the calls of an async actor in any order; orders and reports keep theirs.
        """
        self._early[number] = orders
        while self._next_order in self._early:
            for queue, order in zip(self._orders, self._early.pop(self._next_order), strict=True):
                queue.put_nowait(order)
            self._next_order += 1
        return await self.next_report(number)

    async def end(self) -> None:
        """Ends the ranks' loops."""
        for queue in self._orders:
            queue.put_nowait(None)
        self._broadcasts.put_nowait(None)

    async def next_order(self, rank: int) -> Order:
        return await self._orders[rank].get()

    async def report(self, report: StepReport | Failure) -> None:
        self._report(self._num_reports).set_result(report)
        self._num_reports += 1

    async def next_report(self, number: int = 0) -> StepReport | Failure:
        """0: of what was not ordered: that a rank is ready."""
        report = await self._report(number)
        # It names the weights, which live as long as somebody does.
        del self._reports[number]
        return report

    def _report(self, number: int) -> asyncio.Future[StepReport | Failure]:
        return self._reports.setdefault(number, asyncio.get_running_loop().create_future())


def split_order(group_refs: list[ray.ObjectRef], advantages: list[GroupAdvantages], num_ranks: int) -> list[StepOrder]:
    """A step's groups over the ranks."""
    shares = split_groups([each.values.size for each in advantages], num_ranks)
    return [
        StepOrder(group_refs=[group_refs[place] for place in share], advantages=[advantages[place] for place in share])
        for share in shares
    ]
