"""The commands of the driver to the learner ranks, their reports, and the actor that passes both on. No torch here."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import ray

from actors.cluster.lifecycle import Handle
from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.algorithm.batching import split_groups
from rlir_ray.run.checkpoint import Files
from rlir_ray.run.tracing import Span

if TYPE_CHECKING:
    from rlir_ray.trajectory import TrajectoryGroup
    from rlir_ray.transfer.broadcast import Channel
    from rlir_ray.transfer.weights import Received


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCommand:
    """One rank's share of an optimiser step."""

    group_refs: list[ray.ObjectRef[TrajectoryGroup]]
    """References inside a list travel as they are: only the rank that trains a group reads it."""
    advantages: list[GroupAdvantages]


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveCommand:
    folder: str
    node: str
    """Where that folder is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointCommand:
    folder: str
    """Empty; the files of a checkpoint go there."""
    node: str
    group_refs: list[ray.ObjectRef[TrajectoryGroup]]
    """Groups that are ready but not trained."""


Command = StepCommand | SaveCommand | CheckpointCommand | None
"""None ends the loop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """What rank 0 says when it is ready, after a step, a save or a checkpoint."""

    version: int
    metrics: dict[str, float]
    weights_refs: list[ray.ObjectRef[Received]]
    """The version's weights, put once; empty after a save or a checkpoint."""
    checksum: str
    span: Span
    """From the command to the report."""
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
class BroadcastCommand:
    """A version that rank 0 is to send, beside its steps."""

    channel: Channel
    version: int
    weights_refs: list[ray.ObjectRef[Received]]
    """The version's weights, put once; a reference inside a list travels as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SendingRank:
    """Rank 0 as a sender of broadcasts."""

    queue: Handle
    """Through which it gets its commands."""
    host: str
    """Where the store of its groups listens."""
    port: int


class CommandQueue:
    """Pass commands to each rank and reports back. An async actor, so that waiting takes no thread and no CPU."""

    def __init__(self, num_ranks: int) -> None:
        self._commands: list[asyncio.Queue[Command]] = [asyncio.Queue() for _ in range(num_ranks)]
        self._reports: dict[int, asyncio.Future[StepReport | Failure]] = {}
        self._num_reports, self._next_command = 0, 1
        self._early: dict[int, list[Command]] = {}
        self._ranks: dict[int, str] = {}
        self._all_registered = asyncio.Event()
        self._broadcasts: asyncio.Queue[BroadcastCommand | None] = asyncio.Queue()
        self._sender = ("", 0)

    async def register(self, rank: int, actor_id: str) -> None:
        """Which actor a rank lives in."""
        self._ranks[rank] = actor_id
        if len(self._ranks) == len(self._commands):
            self._all_registered.set()

    async def wait_registered(self) -> None:
        """Block until every rank has registered."""
        await self._all_registered.wait()

    async def ranks(self) -> list[str]:
        """Actor ids of the ranks that have started, in the order of the ranks."""
        return [self._ranks[rank] for rank in sorted(self._ranks)]

    async def register_sender(self, host: str, port: int) -> None:
        """Where rank 0's store of broadcasts listens."""
        self._sender = host, port

    async def sender(self) -> tuple[str, int]:
        """Host and port; an empty host where there is none."""
        return self._sender

    async def submit_broadcast(self, command: BroadcastCommand) -> None:
        self._broadcasts.put_nowait(command)

    async def next_broadcast(self) -> BroadcastCommand | None:
        """None ends the sending."""
        return await self._broadcasts.get()

    async def execute(self, number: int, commands: list[Command]) -> StepReport | Failure:
        """Hand a command to each rank; return the report of what they did, or the failure of one rank.

        Args:
            number: from 1 on. Ray starts the calls of an async actor in any order; commands and reports keep theirs.
        """
        self._early[number] = commands
        while self._next_command in self._early:
            for queue, command in zip(self._commands, self._early.pop(self._next_command), strict=True):
                queue.put_nowait(command)
            self._next_command += 1
        return await self.next_report(number)

    async def end(self) -> None:
        """Ends the ranks' loops."""
        for queue in self._commands:
            queue.put_nowait(None)
        self._broadcasts.put_nowait(None)

    async def next_command(self, rank: int) -> Command:
        return await self._commands[rank].get()

    async def report(self, report: StepReport | Failure) -> None:
        self._report(self._num_reports).set_result(report)
        self._num_reports += 1

    async def next_report(self, number: int = 0) -> StepReport | Failure:
        """Wait for the report of a command; 0: the report that the ranks are ready."""
        report = await self._report(number)
        # The report holds a reference to the weights: drop it, so that their memory is freed.
        del self._reports[number]
        return report

    def _report(self, number: int) -> asyncio.Future[StepReport | Failure]:
        return self._reports.setdefault(number, asyncio.get_running_loop().create_future())


def split_step(
    group_refs: list[ray.ObjectRef[TrajectoryGroup]], advantages: list[GroupAdvantages], num_ranks: int
) -> list[StepCommand]:
    """A step's groups over the ranks."""
    shares = split_groups([each.values.size for each in advantages], num_ranks)
    return [
        StepCommand(
            group_refs=[group_refs[place] for place in share], advantages=[advantages[place] for place in share]
        )
        for share in shares
    ]
