"""The reward replica, which Ray Serve deploys: a reward with its decoder and reader, and the groups that wait for it.

Nothing heavy is imported before a reward is built: a replica starts as fast as its reward does.
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

from rlir_ray.config import Config
from rlir_ray.rewards.base import Reward, RewardContext, open_reward
from rlir_ray.rewards.micro_batches import MicroBatches
from rlir_ray.run.tracing import Span, span_since
from rlir_ray.run.watchdog import bounded, show_stack_on_signal
from rlir_ray.trajectory import check_scores

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rlir_ray.trajectory import EncodedVideo, RewardScores


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What the driver gets for a group."""

    scores: RewardScores
    seconds: float
    """The group's share of the time of decoding and reading."""
    span: Span
    """Of all groups that were read together."""


def build_reward(config: Config, class_shares: Mapping[str, npt.NDArray[np.floating]] | None) -> Reward:
    """Build the configured reward, on a GPU where the replica has one."""
    import torch

    from rlir_ray.families import family_of, open_codec

    torch.set_num_threads(config.reward.num_threads)
    context = RewardContext(
        config=config,
        device="cuda" if config.reward.num_gpus else "cpu",
        class_shares=class_shares,
        open_codec=partial(open_codec, config),
        camera_bins=family_of(config).camera_bins,
    )
    return open_reward(context)


def num_frames(video: EncodedVideo) -> int:
    """Count the frames to decode, the context's included."""
    return int(video.codes.shape[0] * video.codes.shape[1])


def form(video: EncodedVideo) -> Hashable:
    """Return what videos that are read together have in common."""
    return video.num_context, video.codes.shape[1:]


class RewardReplica:
    """A process that scores groups: those that wait are read together, whichever run they are of.

    Args:
        make_reward: builds the reward in the replica's process.
        max_frames: of a batch.
        timeout_s: a batch that takes longer ends the process; each of its groups is asked for again elsewhere, alone.
    """

    def __init__(self, make_reward: Callable[[], Reward], max_frames: int, timeout_s: float = math.inf) -> None:
        show_stack_on_signal()
        self.reward, self.timeout_s = make_reward(), timeout_s
        self.batches: MicroBatches[EncodedVideo, Scored] = MicroBatches(
            self.read, size=num_frames, max_size=max_frames, kind=form
        )
        self._readable: EncodedVideo | None = None

    async def score(
        self, video_refs: Sequence[ray.ObjectRef[EncodedVideo]], is_alone: bool = False
    ) -> list[Scored | None]:
        """Score the groups of one call; the replica gets their videos itself.

        An error, also one that lies where the video should, is raised for the only group of a call; among several it
        is None, and the caller asks for that group again in a call of its own.

        Args:
            is_alone: the caller has no other group at any replica.
        """
        if len(video_refs) == 1:
            return [await self._score(video_refs[0], is_alone)]
        found = await asyncio.gather(*map(self._score, video_refs), return_exceptions=True)
        return [None if isinstance(one, BaseException) else one for one in found]

    async def _score(self, video_ref: ray.ObjectRef[EncodedVideo], is_alone: bool = False) -> Scored:
        return await self.batches.submit(await video_ref, is_alone)

    async def check_health(self) -> None:
        """Answer Serve between two batches; Serve replaces a replica that does not."""
        await self.batches.run(lambda: None)

    def read(self, videos: Sequence[EncodedVideo]) -> list[Scored | Exception]:
        """Score groups together. A group that cannot be scored gets its error and leaves the others their scores."""
        started = time.time()
        try:
            scores = self._read(videos)
            check_scores(scores, videos)
        except Exception as error:
            if len(videos) > 1:
                return [scored for video in videos for scored in self.read([video])]
            self._end_if_sick()
            return [error]
        if self._readable is None:
            # A copy: the video itself would stay in the object store.
            self._readable = copy.deepcopy(videos[0])
        span = span_since(started)
        return [Scored(scores=one, seconds=span.seconds / len(videos), span=span) for one in scores]

    def _read(self, videos: Sequence[EncodedVideo]) -> list[RewardScores]:
        with bounded(self.timeout_s):
            scores: list[RewardScores] = self.reward.score(list(videos))
            return scores

    def _end_if_sick(self) -> None:
        """Read a group again that was readable, to tell a bad group from a sick replica.

        A sick replica would fail every group until Serve has asked often enough: its process ends at once, so that
        the groups go to another replica.
        """
        if self._readable is None:
            return
        try:
            self._read([self._readable])
        except Exception:
            traceback.print_exc(file=sys.stderr)
            os._exit(1)
