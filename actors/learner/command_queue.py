"""The driver's commands to the learner ranks, the ranks' reports, and the actor that passes both on. No torch here."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import ray

from actors.cluster.placement import Handle
from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.algorithm.batching import minibatch_sizes, split_groups
from rlir_ray.run.checkpoint import Files
from rlir_ray.run.tracing import Span

if TYPE_CHECKING:
    from rlir_ray.trajectory import TrajectoryGroup
    from rlir_ray.transfer.broadcast import Channel
    from rlir_ray.transfer.weights import Received


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCommand:
    """One rank's share of a step."""

    group_refs: list[ray.ObjectRef[TrajectoryGroup]]
    """References to the groups. Ray does not resolve references inside a list, so only the rank reads the groups."""
    advantages: list[GroupAdvantages]
    minibatch_sizes: list[int]
    """Groups of each minibatch; the groups are in the order of the minibatches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveCommand:
    """The command to save the policy."""

    folder: str
    node: str
    """Id of the folder's node."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointCommand:
    """The command to write a checkpoint's files."""

    folder: str
    """An empty folder for the files."""
    node: str
    """Id of the folder's node."""
    group_refs: list[ray.ObjectRef[TrajectoryGroup]]
    """References to the groups that are scored but not trained."""


Command = StepCommand | SaveCommand | CheckpointCommand | None
"""A command to a rank; None ends the rank's loop."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """The report of rank 0 when the ranks are ready, and after each step, save or checkpoint."""

    version: int
    """The learner's version: the number of steps done."""
    metrics: dict[str, float]
    weights_refs: list[ray.ObjectRef[Received]]
    """One reference to the version's weights; empty after a save or a checkpoint."""
    checksum: str
    """Checksum of the weights; empty without weights."""
    span: Span
    """The span from the command to the report."""
    average_refs: list[ray.ObjectRef[Received]] = field(default_factory=list)
    """One reference to the weights of the version's moving average; empty without train.ema_decay."""
    files: Files = field(default_factory=dict)
    """The files that rank 0 wrote for a checkpoint."""
    skipped: str = ""
    """Why the update of a step was skipped; empty: the update was done."""

    @property
    def judged_ref(self) -> ray.ObjectRef[Received]:
        """The reference to the weights that an evaluation judges: the moving average's if there is one."""
        return (self.average_refs or self.weights_refs)[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """The report of a rank that failed."""

    cause: str
    """The error in one line."""
    is_final: bool = False
    """Whether new ranks would fail with the same error, such as a full disk or a checkpoint of another policy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BroadcastCommand:
    """The command to rank 0 to broadcast a version while it trains."""

    channel: Channel
    version: int
    weights_refs: list[ray.ObjectRef[Received]]
    """One reference to the version's weights; in a list, so that Ray does not resolve it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SendingRank:
    """Rank 0 as the sender of broadcasts."""

    queue: Handle
    """The command queue, which passes `BroadcastCommand`s to rank 0."""
    host: str
    """Host of the store through which broadcast groups form."""
    port: int


class CommandQueue:
    """The queues of commands to each rank and of reports back.

    An async actor, so that waiting takes no thread and no CPU.
    """

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
        """Record the id of the actor that runs a rank."""
        self._ranks[rank] = actor_id
        if len(self._ranks) == len(self._commands):
            self._all_registered.set()

    async def wait_registered(self) -> None:
        """Block until every rank has registered."""
        await self._all_registered.wait()

    async def ranks(self) -> list[str]:
        """Return the actor ids of the ranks that have started, in the order of the ranks."""
        return [self._ranks[rank] for rank in sorted(self._ranks)]

    async def register_sender(self, host: str, port: int) -> None:
        """Record the address of rank 0's broadcast store."""
        self._sender = host, port

    async def sender(self) -> tuple[str, int]:
        """Return host and port of rank 0's broadcast store; the host is empty before rank 0 has registered."""
        return self._sender

    async def submit_broadcast(self, command: BroadcastCommand) -> None:
        """Queue a broadcast for rank 0."""
        self._broadcasts.put_nowait(command)

    async def next_broadcast(self) -> BroadcastCommand | None:
        """Wait for the next broadcast; None: the group is stopping."""
        return await self._broadcasts.get()

    async def execute(self, number: int, commands: list[Command]) -> StepReport | Failure:
        """Pass a command to each rank; wait for the report of rank 0 or the failure of a rank.

        Args:
            number: position of the command in the driver's order, from 1 on. Commands wait for their turn, because Ray
                may start the calls of an async actor in any order.
            commands: one command for each rank.
        """
        self._early[number] = commands
        while self._next_command in self._early:
            for queue, command in zip(self._commands, self._early.pop(self._next_command), strict=True):
                queue.put_nowait(command)
            self._next_command += 1
        return await self.next_report(number)

    async def end(self) -> None:
        """End the loops of all ranks, and the broadcasts of rank 0."""
        for queue in self._commands:
            queue.put_nowait(None)
        self._broadcasts.put_nowait(None)

    async def next_command(self, rank: int) -> Command:
        """Wait for the next command of a rank."""
        return await self._commands[rank].get()

    async def report(self, report: StepReport | Failure) -> None:
        """Pass a rank's report to the driver; reports have the order of the commands."""
        self._report(self._num_reports).set_result(report)
        self._num_reports += 1

    async def next_report(self, number: int = 0) -> StepReport | Failure:
        """Wait for the report of a command; number 0 is the report that the ranks are ready."""
        report = await self._report(number)
        # Drop the report, which holds a reference to the weights: otherwise their memory would never be freed.
        del self._reports[number]
        return report

    def _report(self, number: int) -> asyncio.Future[StepReport | Failure]:
        return self._reports.setdefault(number, asyncio.get_running_loop().create_future())


def split_step(
    group_refs: list[ray.ObjectRef[TrajectoryGroup]],
    advantages: list[GroupAdvantages],
    num_ranks: int,
    num_minibatches: int = 1,
) -> list[StepCommand]:
    """Split the groups of a step into minibatches and each minibatch over the ranks; return the ranks' commands."""
    sizes = minibatch_sizes(len(group_refs), num_minibatches)
    shares: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    for size, end in zip(sizes, itertools.accumulate(sizes), strict=True):
        first = end - size
        split = split_groups([each.values.size for each in advantages[first:end]], num_ranks)
        for rank, own in enumerate(split):
            shares[rank].append([first + place for place in own])
    return [
        StepCommand(
            group_refs=[group_refs[place] for part in parts for place in part],
            advantages=[advantages[place] for part in parts for place in part],
            minibatch_sizes=[len(part) for part in parts],
        )
        for parts in shares
    ]
