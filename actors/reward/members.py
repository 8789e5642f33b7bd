"""Plain actors as a backend of the reward pool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from actors.cluster.diagnostics import ids
from actors.cluster.errors import import_hint, one_line
from actors.cluster.lifecycle import as_actor
from actors.cluster.placement import ray_options
from actors.reward.backend import ReplicaLost, is_lost
from actors.reward.serving import Reward, RewardActor, Scored
from rlir_ray.config import Config

# Calls that an actor holds: the next one is there when it has finished.
CALLS_AHEAD = 2
# Starts that may fail in a row.
MAX_FAILED_STARTS = 3
STOP_TIMEOUT_S = 60.0


@dataclass(eq=False, slots=True)
class Member:
    """A plain actor of the pool."""

    actor: Any
    in_hand: int = 0
    is_leaving: bool = False


class ActorBackend:
    """Plain actors, one group a call, for the lowest latency.

    Groups wait in one queue and each actor takes the next: a new one has work at once, and one that goes leaves none
    behind. All state lives on the pool's loop.
    """

    def __init__(
        self,
        config: Config,
        make_reward: Callable[[], Reward],
        loop: asyncio.AbstractEventLoop,
        progress: Callable[[str], None],
    ) -> None:
        self.progress = progress
        self.timeout_s, self.wait_timeout_s = config.reward_timeout_s, config.train.wait_timeout_s
        self.shell, self.make_reward, self.loop = as_actor(RewardActor, **ray_options(config.reward)), make_reward, loop
        self.members: list[Member] = []
        self._free: asyncio.Queue[Member | None] = asyncio.Queue()
        self._failed_starts = 0
        self._broken = ""
        self._starts: set[asyncio.Task[None]] = set()
        self.scale(config.reward.num_replicas)

    def scale(self, num_replicas: int) -> None:
        asyncio.run_coroutine_threadsafe(self._scale(num_replicas), self.loop).result(STOP_TIMEOUT_S)

    def num_replicas(self) -> int:
        return len(self.members)

    def actor_ids(self) -> list[str]:
        return ids([member.actor for member in self.members])

    async def _scale(self, num_replicas: int) -> None:
        while len(self.members) > num_replicas:
            self._let_go(self.members[-1])
        while len(self.members) < num_replicas:
            self._add()

    def _add(self) -> None:
        member = Member(self.shell.remote(self.make_reward, self.timeout_s))
        self.members.append(member)
        start = self.loop.create_task(self._bring_up(member))
        self._starts.add(start)
        start.add_done_callback(self._starts.discard)

    async def _bring_up(self, member: Member) -> None:
        """A new actor gets its first groups when its reward is built."""
        try:
            await asyncio.wait_for(member.actor.check_health.remote(), self.wait_timeout_s)
        except Exception as error:
            if member.is_leaving:
                return
            self._let_go(member)
            self._failed_starts += 1
            if self._failed_starts < MAX_FAILED_STARTS:
                self._add()
                return
            cause = one_line(error)
            self.progress(f"reward pool: an actor does not start: {cause}; {len(self.members)} are left")
            if not self.members:
                way_out = import_hint(cause) or "check models.* and reward.*"
                self._broken = f"the reward actors do not start: {cause}; {way_out}"
                self._free.put_nowait(None)
            return
        self._failed_starts = 0
        for _ in range(CALLS_AHEAD):
            self._free.put_nowait(member)

    def _let_go(self, member: Member) -> None:
        """No more groups for this one; it ends when it has finished those that it holds."""
        if member in self.members:
            self.members.remove(member)
        member.is_leaving = True
        if not member.in_hand:
            ray.kill(member.actor)

    def _replace(self, member: Member) -> None:
        if not member.is_leaving:
            self._let_go(member)
            self._add()

    async def ask(self, video_ref: ray.ObjectRef) -> Scored:
        member = await self._take()
        try:
            return await member.actor.score.remote(video_ref)
        except Exception as error:
            if is_lost(error, member.actor._actor_id.hex()) or not await self._is_healthy(member):
                self._replace(member)
                raise ReplicaLost(one_line(error)) from error
            raise
        finally:
            self._give_back(member)

    async def _is_healthy(self, member: Member) -> bool:
        try:
            await asyncio.wait_for(member.actor.check_health.remote(), self.wait_timeout_s)
        except Exception:
            return False
        return True

    async def _take(self) -> Member:
        while True:
            member = await self._free.get()
            if member is None:
                self._free.put_nowait(None)
                raise RuntimeError(self._broken)
            if not member.is_leaving:
                member.in_hand += 1
                return member

    def _give_back(self, member: Member) -> None:
        member.in_hand -= 1
        if not member.is_leaving:
            self._free.put_nowait(member)
        elif not member.in_hand:
            ray.kill(member.actor)

    async def wind_up(self) -> None:
        pass

    def stop(self) -> None:
        for member in self.members:
            member.is_leaving = True
            ray.kill(member.actor)
        self.members = []
