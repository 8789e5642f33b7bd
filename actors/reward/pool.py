"""The reward pool: Ray Serve replicas of the run's own, or of a service that several runs share. It also works alone.

The pool sends a video to a replica by reference as soon as the video exists. If the replica dies, another replica
scores the group. The caller's future ends exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np
import numpy.typing as npt
import ray

from actors.cluster.diagnostics import activity
from actors.cluster.placement import Options, ray_options
from actors.reward.calls import ReplicaLost
from actors.reward.deployment import OwnDeployment, SharedService, group_frames
from actors.reward.replica import ScoreReport, build_reward
from rlir_ray.config import MAX_ATTEMPTS, Config
from rlir_ray.rewards.base import Reward
from rlir_ray.rewards.fingerprint import reward_fingerprint
from rlir_ray.trajectory import EncodedVideo

# Retry a group once if its scoring raises an error: the cause may be temporary.
MAX_RAISED = 2
# Interval at which the wait for videos includes new groups.
VIDEO_POLL_S = 0.05
STOP_TIMEOUT_S = 60.0


class RewardPool:
    """The pool of reward replicas: takes the videos of groups and returns their scores.

    Args:
        deploy: starts the run's own replicas or connects to a shared service; the event ends its waits early.
        options: resources of one of the run's own replicas, as options of `ray.remote`.
        timeout_s: bound of a batch in a replica, for messages.
    """

    def __init__(
        self,
        deploy: Callable[[threading.Event], OwnDeployment | SharedService],
        *,
        options: Options,
        timeout_s: float,
    ) -> None:
        self._deploy, self.options, self.timeout_s = deploy, options, timeout_s
        self.deployment: OwnDeployment | SharedService | None = None
        self._suspects = asyncio.Lock()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="reward pool", daemon=True)
        self._waiting: dict[ray.ObjectRef[EncodedVideo], asyncio.Future[None]] = {}
        self._watch: asyncio.Task[None] | None = None
        self._groups: set[asyncio.Task[object]] = set()

    @classmethod
    def from_config(
        cls,
        config: Config,
        class_shares: Mapping[str, npt.NDArray[np.floating]] | None = None,
        make_reward: Callable[[], Reward] | None = None,
        real: Callable[[], Sequence[EncodedVideo]] = tuple,
    ) -> RewardPool:
        """Build the pool of a run.

        Args:
            config: the run's configuration.
            class_shares: how often each class is commanded, for reward.balance=class.
            make_reward: builds the reward in a replica; None: the configured reward.
            real: returns encoded real clips in a replica, for terms that read them.

        Raises:
            ValueError: both `make_reward` and a shared service are given.
        """
        reward, timeout_s, wait_timeout_s = config.reward, config.reward_timeout_s, config.train.wait_timeout_s
        deploy: Callable[[threading.Event], OwnDeployment | SharedService]
        if not reward.address:
            make_reward = make_reward or partial(build_reward, config, class_shares, real)
            deploy = partial(
                OwnDeployment,
                reward,
                make_reward,
                group_frames=group_frames(config),
                timeout_s=timeout_s,
                wait_timeout_s=wait_timeout_s,
            )
            return cls(deploy, options=ray_options(reward), timeout_s=timeout_s)
        if make_reward is not None:
            raise ValueError(
                f"make_reward needs a pool of the run's own, got reward.address={reward.address}; leave one out"
            )
        wanted = reward_fingerprint(config)
        deploy = partial(SharedService, reward.address, wanted, timeout_s=timeout_s, wait_timeout_s=wait_timeout_s)
        return cls(deploy, options={}, timeout_s=timeout_s)

    def start(self, stop: threading.Event | None = None) -> None:
        """Start the replicas and block until they are ready.

        Args:
            stop: event that ends the wait early.

        Raises:
            RuntimeError: the replicas did not start; the message names the cause.
            ValueError: the shared service does not run, or its reward differs from the configured one.
            Stopped: the user ended the run.
            TimeoutError: the replicas are not ready in time.
        """
        self._thread.start()
        try:
            self.deployment = self._deploy(stop or threading.Event())
        except BaseException:
            self._end_loop()
            raise

    def score(self, video_ref: ray.ObjectRef[EncodedVideo]) -> Future[ScoreReport]:
        """Score a group: a replica reads the video, and the returned future gets G x F floats."""
        assert self.deployment is not None, "start the pool first"
        return asyncio.run_coroutine_threadsafe(self._score(self.deployment, video_ref), self.loop)

    def scale(self, num_replicas: int) -> None:
        """Fix the number of replicas; removed replicas first finish their groups."""
        assert self.deployment is not None, "start the pool first"
        self.deployment.scale(num_replicas)

    def activity(self) -> str:
        """Describe the current work of the replicas, for a message; empty for a shared service."""
        return activity(self.deployment.actor_ids()) if self.deployment is not None else ""

    def num_replicas(self) -> int:
        """Return the wanted number of replicas; 0 for a shared service."""
        return self.deployment.num_replicas() if self.deployment is not None else 0

    async def _score(
        self, deployment: OwnDeployment | SharedService, video_ref: ray.ObjectRef[EncodedVideo]
    ) -> ScoreReport:
        task = asyncio.current_task()
        assert task is not None
        self._groups.add(task)
        task.add_done_callback(self._groups.discard)
        await self._wait_for_video(video_ref)
        num_raised = 0
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                # Retry these groups one at a time: one of them may crash every replica that reads it.
                async with self._suspects if attempt > 1 else contextlib.nullcontext():
                    return await deployment.score(video_ref)
            except ReplicaLost as lost:
                if attempt == MAX_ATTEMPTS:
                    raise RuntimeError(
                        f"{attempt} reward replicas in a row died over this group, or took more than "
                        f"reward.timeout_s={self.timeout_s:g}: {lost}"
                    ) from lost
            except Exception:
                num_raised += 1
                if num_raised == MAX_RAISED or attempt == MAX_ATTEMPTS:
                    raise
        raise AssertionError

    async def _wait_for_video(self, video_ref: ray.ObjectRef[EncodedVideo]) -> None:
        """Wait until a video is sampled, so that its group does not take a place in a replica's queue before."""
        if ray.wait([video_ref], timeout=0, fetch_local=False)[0]:
            return
        ready = self._waiting.setdefault(video_ref, self.loop.create_future())
        if self._watch is None or self._watch.done():
            self._watch = self.loop.create_task(self._watch_videos())
        # Two calls may wait for one video: the cancellation of one must not cancel the shared future.
        await asyncio.shield(ready)

    async def _watch_videos(self) -> None:
        """Wait for videos until no group waits any more; do not fetch any video."""
        while self._waiting:
            refs = list(self._waiting)
            wait = partial(ray.wait, refs, num_returns=1, timeout=VIDEO_POLL_S, fetch_local=False)
            if not (await self.loop.run_in_executor(None, wait))[0]:
                continue
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
            for ref in ready:
                self._waiting.pop(ref).set_result(None)

    def stop(self) -> None:
        """Stop the replicas and cancel the groups that are not scored yet."""
        if self.deployment is None:
            return
        self._on_loop(self._cancel_groups())
        self._on_loop(self.deployment.drain())
        self.deployment.stop()
        self.deployment = None
        self._end_loop()

    def _on_loop(self, coroutine: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(STOP_TIMEOUT_S)

    async def _cancel_groups(self) -> None:
        for task in self._groups:
            task.cancel()
        await asyncio.gather(*self._groups, return_exceptions=True)

    def _end_loop(self) -> None:
        """End the loop's thread, because the process would crash if the thread used Ray after Ray's shutdown."""
        self._on_loop(self._cancel_tasks())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(STOP_TIMEOUT_S)
        self.loop.close()

    async def _cancel_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.loop.shutdown_default_executor()
