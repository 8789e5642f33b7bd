"""The reward pool, usable alone: replicas of Ray Serve, of the run's own or of a service that several runs share.

A video goes to a replica by its reference, as soon as it exists. A group whose replica dies is scored by another one;
the caller's future ends once, whatever happened before.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from functools import partial

import numpy as np
import numpy.typing as npt
import ray

from actors.cluster.diagnostics import activity
from actors.reward.calls import ReplicaLost
from actors.reward.deployment import OwnDeployment, SharedService
from actors.reward.replica import Scored, build_reward
from rlir_ray.config import MAX_ATTEMPTS, Config
from rlir_ray.rewards.base import Reward
from rlir_ray.trajectory import EncodedVideo

# A group whose scoring raises is tried once more: the cause may have passed.
MAX_RAISED = 2
# How often the wait for videos looks for new ones among them.
LOOK_S = 0.05
STOP_TIMEOUT_S = 60.0


class RewardPool:
    """The reward of a run: groups in, scores out.

    Args:
        config: `reward`, `world` and the checkpoints are read.
        class_shares: how often each class is commanded, for reward.balance=class.
        make_reward: builds the reward in a replica; None: the configured one.
    """

    def __init__(
        self,
        config: Config,
        class_shares: Mapping[str, npt.NDArray[np.floating]] | None = None,
        make_reward: Callable[[], Reward] | None = None,
    ) -> None:
        if config.reward.address and make_reward is not None:
            raise ValueError(
                f"make_reward needs a pool of the run's own, got reward.address={config.reward.address}; leave one out"
            )
        self.config = config
        self.make_reward = make_reward or partial(build_reward, config, class_shares)
        self.deployment: OwnDeployment | SharedService | None = None
        self._suspects = asyncio.Lock()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="reward pool", daemon=True)
        self._waiting: dict[ray.ObjectRef[EncodedVideo], asyncio.Future[None]] = {}
        self._watch: asyncio.Task[None] | None = None
        self._groups: set[asyncio.Task[object]] = set()

    def start(self, stop: threading.Event | None = None) -> None:
        """Start the replicas and wait until they are ready.

        Args:
            stop: ends the wait when it is set.

        Raises:
            RuntimeError: they did not start, with the cause.
            ValueError: there is no such service, or it gives another reward than the configured one.
            Stopped: the user ended the run.
        """
        self._thread.start()
        try:
            self.deployment = self._deploy(stop or threading.Event())
        except BaseException:
            self._end_loop()
            raise

    def _deploy(self, stop: threading.Event) -> OwnDeployment | SharedService:
        if self.config.reward.address:
            return SharedService(self.config)
        return OwnDeployment(self.config, self.make_reward, stop)

    def score(self, video_ref: ray.ObjectRef[EncodedVideo]) -> Future[Scored]:
        """Score a group; the replica reads the video, the caller gets G x F floats."""
        assert self.deployment is not None, "start the pool first"
        return asyncio.run_coroutine_threadsafe(self._score(self.deployment, video_ref), self.loop)

    def scale(self, num_replicas: int) -> None:
        """Grow or shrink to a number, which holds from then on; replicas that go finish the groups that they hold."""
        assert self.deployment is not None, "start the pool first"
        self.deployment.scale(num_replicas)

    def activity(self) -> str:
        """Say what the replicas are busy with, for a message; empty for a service that other runs share."""
        return activity(self.deployment.actor_ids()) if self.deployment is not None else ""

    def num_replicas(self) -> int:
        """Return the wanted number of replicas; 0 for a service that other runs share."""
        return self.deployment.num_replicas() if self.deployment is not None else 0

    async def _score(self, deployment: OwnDeployment | SharedService, video_ref: ray.ObjectRef[EncodedVideo]) -> Scored:
        task = asyncio.current_task()
        assert task is not None
        self._groups.add(task)
        task.add_done_callback(self._groups.discard)
        await self._until_ready(video_ref)
        num_raised = 0
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                # One at a time: of the groups that shared a dead replica, one may kill every replica that reads it.
                async with self._suspects if attempt > 1 else contextlib.nullcontext():
                    return await deployment.score(video_ref)
            except ReplicaLost as lost:
                if attempt == MAX_ATTEMPTS:
                    raise RuntimeError(
                        f"{attempt} reward replicas in a row died over this group, or took more than "
                        f"reward.timeout_s={self.config.reward_timeout_s:g}: {lost}"
                    ) from lost
            except Exception:
                num_raised += 1
                if num_raised == MAX_RAISED or attempt == MAX_ATTEMPTS:
                    raise
        raise AssertionError

    async def _until_ready(self, video_ref: ray.ObjectRef[EncodedVideo]) -> None:
        """Wait for a video that is still being sampled: meanwhile its group holds no place in a replica's queue."""
        if ray.wait([video_ref], timeout=0, fetch_local=False)[0]:
            return
        ready = self._waiting.setdefault(video_ref, self.loop.create_future())
        if self._watch is None or self._watch.done():
            self._watch = self.loop.create_task(self._watch_videos())
        # Two groups may wait for one video: when one of them is cancelled, the other goes on waiting.
        await asyncio.shield(ready)

    async def _watch_videos(self) -> None:
        """Wait for videos until no group needs one; no video is fetched."""
        while self._waiting:
            refs = list(self._waiting)
            wait = partial(ray.wait, refs, num_returns=1, timeout=LOOK_S, fetch_local=False)
            if not (await self.loop.run_in_executor(None, wait))[0]:
                continue
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
            for ref in ready:
                self._waiting.pop(ref).set_result(None)

    def stop(self) -> None:
        """End the replicas; groups that are not scored yet stay without scores."""
        if self.deployment is None:
            return
        self._on_loop(self._give_up())
        self._on_loop(self.deployment.drain())
        self.deployment.stop()
        self.deployment = None
        self._end_loop()

    def _on_loop(self, coroutine: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(STOP_TIMEOUT_S)

    async def _give_up(self) -> None:
        for task in self._groups:
            task.cancel()
        await asyncio.gather(*self._groups, return_exceptions=True)

    def _end_loop(self) -> None:
        """End the thread: if it used Ray after Ray's shutdown, the whole process would end."""
        self._on_loop(self._cancel_rest())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(STOP_TIMEOUT_S)
        self.loop.close()

    async def _cancel_rest(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.loop.shutdown_default_executor()
