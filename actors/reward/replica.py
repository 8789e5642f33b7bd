"""The reward replica, which Ray Serve deploys: a reward and the queue of its groups.

Heavy libraries are imported when the reward is built, so that a replica starts as fast as its reward.
"""

from __future__ import annotations

import asyncio
import copy
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import ray

from actors.reward.external import ExternalTerm
from rlir_ray.config import Config
from rlir_ray.rewards.base import Reward
from rlir_ray.rewards.micro_batches import MicroBatches
from rlir_ray.run.tracing import Span, span_since
from rlir_ray.run.watchdog import bounded, show_stack_on_signal
from rlir_ray.trajectory import check_scores

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rlir_ray.trajectory import EncodedVideo, RewardScores


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreReport:
    """The replica's report of one scored group to the driver."""

    scores: RewardScores
    seconds: float
    """The group's share of the batch's seconds."""
    span: Span
    """The span of the batch, which may hold several groups."""


def build_reward(
    config: Config,
    class_shares: Mapping[str, npt.NDArray[np.floating]] | None,
    real: Callable[[], Sequence[EncodedVideo]] = tuple,
) -> Reward:
    """Build the configured reward, on the replica's GPU if it has one.

    Args:
        config: the run's configuration.
        class_shares, real: as in `RewardContext`.
    """
    import torch

    from rlir_ray.run.reward import run_reward

    torch.set_num_threads(config.reward.num_threads)
    open_external = partial(ExternalTerm, timeout_s=config.train.wait_timeout_s / 2)
    device = "cuda" if config.reward.num_gpus else "cpu"
    return run_reward(config, class_shares, real, open_external, device=device)


def num_frames(video: EncodedVideo) -> int:
    """Count the frames to decode, context frames included."""
    return int(video.codes.shape[0] * video.codes.shape[1])


def batch_key(video: EncodedVideo) -> Hashable:
    """Return the properties that all videos of a batch must share."""
    return video.num_context, video.codes.shape[1:]


class RewardReplica:
    """A process that scores groups of any run, in batches of the waiting groups.

    Args:
        make_reward: builds the reward in the replica's process.
        max_frames: most frames of a batch.
        timeout_s: bound of a batch; a longer batch ends the process, and other replicas retry its groups one at a time.
    """

    def __init__(self, make_reward: Callable[[], Reward], max_frames: int, timeout_s: float = math.inf) -> None:
        show_stack_on_signal()
        self.reward, self.timeout_s = make_reward(), timeout_s
        self.batches: MicroBatches[EncodedVideo, ScoreReport] = MicroBatches(
            self.read, size=num_frames, max_size=max_frames, kind=batch_key
        )
        self._known_good: EncodedVideo | None = None
        """The first video that this replica has scored; None: no video yet."""

    async def score(
        self, video_refs: Sequence[ray.ObjectRef[EncodedVideo]], is_alone: bool = False
    ) -> list[ScoreReport | None]:
        """Score the groups of one call; the replica fetches their videos itself.

        In a call with one group, raise its error; a failed rollout call raises its error here too. In a call with
        several groups, return None for a failed group: the caller retries that group in its own call.

        Args:
            video_refs: references to the groups' videos.
            is_alone: whether the caller has no other group at any replica.
        """
        if len(video_refs) == 1:
            return [await self._score(video_refs[0], is_alone)]
        found = await asyncio.gather(*map(self._score, video_refs), return_exceptions=True)
        return [None if isinstance(each, BaseException) else each for each in found]

    async def _score(self, video_ref: ray.ObjectRef[EncodedVideo], is_alone: bool = False) -> ScoreReport:
        return await self.batches.submit(await video_ref, is_alone)

    async def check_health(self) -> None:
        """Answer Serve's health check between two batches; Serve replaces a replica that does not answer."""
        await self.batches.run(lambda: None)

    def read(self, videos: Sequence[EncodedVideo]) -> list[ScoreReport | Exception]:
        """Score groups together; return the error of a group that cannot be scored, and the scores of the others."""
        if self._known_good is None and len(videos) > 1:
            # If the first group broke the process in a batch with others, no known good group would show it.
            return [*self.read(videos[:1]), *self.read(videos[1:])]
        started = time.time()
        try:
            scores = self._read(videos)
            check_scores(scores, videos)
        except Exception as error:
            if len(videos) > 1:
                return [scored for video in videos for scored in self.read([video])]
            self._exit_if_broken()
            return [error]
        if self._known_good is None:
            # Keep a copy: a reference to the video itself would keep it in the object store.
            self._known_good = copy.deepcopy(videos[0])
        span = span_since(started)
        return [ScoreReport(scores=each, seconds=span.seconds / len(videos), span=span) for each in scores]

    def _read(self, videos: Sequence[EncodedVideo]) -> list[RewardScores]:
        with bounded(self.timeout_s):
            scores: list[RewardScores] = self.reward.score(list(videos))
            return scores

    def _exit_if_broken(self) -> None:
        """End the process if it cannot score a group again that it has scored before.

        This tells a broken replica from a bad group. A broken replica would fail every group until Serve's health
        checks replace it, so its process ends at once and other replicas score the groups.
        """
        if self._known_good is None:
            return
        try:
            self._read([self._known_good])
        except Exception:
            traceback.print_exc(file=sys.stderr)
            os._exit(1)
