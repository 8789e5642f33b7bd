"""The reward actor and the Ray Serve deployment: two shells around the same reward. Decoder and reader sit here.

Nothing heavy is imported before a reward is built: a replica starts as fast as its reward does.
"""

from __future__ import annotations

import asyncio
import copy
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import ray

from rlir_ray.config import Config, asset_path
from rlir_ray.rewards.micro_batches import MicroBatches
from rlir_ray.run.tracing import Span, span_since
from rlir_ray.run.watchdog import bounded, show_stack_on_signal
from rlir_ray.trajectory import check_scores

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rlir_ray.rewards.inverse_dynamics import InverseReward
    from rlir_ray.trajectory import EncodedVideo, RewardScores


class Reward(Protocol):
    """What a reward actor holds."""

    def score(self, videos: list[EncodedVideo]) -> list[RewardScores]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What the driver gets for a group."""

    scores: RewardScores
    seconds: float
    """The group's share of the time of decoding and reading."""
    span: Span
    """Of all groups that were read together."""


def build_reward(config: Config, class_shares: Mapping[str, npt.NDArray[np.floating]] | None) -> InverseReward:
    """The inverse reward of the configured checkpoints, on a GPU when the actor was given one."""
    import torch

    from rlir_ray.families import family_of, open_codec
    from rlir_ray.idm.inverse_dynamics import load_inverse_dynamics
    from rlir_ray.rewards.inverse_dynamics import InverseReward

    torch.set_num_threads(config.reward.num_threads)
    device = "cuda" if config.reward.num_gpus else "cpu"
    tokenizer = open_codec(config).to(device)
    idm = load_inverse_dynamics(asset_path(config.models.reward_idm)).to(device)
    return InverseReward(
        tokenizer, idm, world=config.world, config=config.reward, class_shares=class_shares, device=device,
        camera_bins=family_of(config).camera_bins,
    )  # fmt: skip


class RewardActor:
    """Args:
    make_reward: builds the reward in the actor's process.
    timeout_s: groups that take longer to read end the process: each is asked for again, alone, elsewhere.
    """

    def __init__(self, make_reward: Callable[[], Reward], timeout_s: float = math.inf) -> None:
        show_stack_on_signal()
        self.reward, self.timeout_s = make_reward(), timeout_s
        self._has_failed = False
        self._readable: EncodedVideo | None = None

    def score(self, video: EncodedVideo) -> Scored:
        """One group; raises what its reward raised."""
        scored = self.score_all([video])[0]
        if isinstance(scored, Exception):
            raise scored
        return scored

    def score_all(self, videos: Sequence[EncodedVideo]) -> list[Scored | Exception]:
        """Groups read together. One that cannot be scored takes no other along: its error stands in its place."""
        started = time.time()
        try:
            with bounded(self.timeout_s):
                scores = self.reward.score(list(videos))
            check_scores(scores, videos)
        except Exception as error:
            if len(videos) == 1:
                self._has_failed = True
                return [error]
            return [scored for video in videos for scored in self.score_all([video])]
        if self._readable is None:
            # A copy: the video itself would stay in the object store.
            self._readable = copy.deepcopy(videos[0])
        span = span_since(started)
        return [Scored(scores=one, seconds=span.seconds / len(videos), span=span) for one in scores]

    def check_health(self) -> None:
        """After a failure reads a video that could be read before: was it that group, or is it the replica?

        Raises:
            Exception: what the reward raises now; another replica must take this one's place.
        """
        if self._has_failed and self._readable is not None:
            with bounded(self.timeout_s):
                self.reward.score([self._readable])
        self._has_failed = False


def num_frames(video: EncodedVideo) -> int:
    """Frames to decode, the context's included."""
    return video.codes.shape[0] * video.codes.shape[1]


def form(video: EncodedVideo) -> Hashable:
    """What videos that are read together have in common."""
    return video.num_context, video.codes.shape[1:]


class RewardDeployment:
    """The same for Ray Serve: the groups that wait at a replica are read together, whichever run they are of.

    Args:
        make_reward: builds the reward in the replica's process.
        max_frames: of a batch.
        timeout_s: as of `RewardActor`.
    """

    def __init__(self, make_reward: Callable[[], Any], max_frames: int, timeout_s: float = math.inf) -> None:
        self.actor = RewardActor(make_reward, timeout_s)
        self.batches = MicroBatches[Any, Scored](self.actor.score_all, size=num_frames, max_size=max_frames, kind=form)

    async def score(self, video_refs: Sequence[ray.ObjectRef]) -> list[Scored | None]:
        """Groups that came in one call; the replica gets their videos itself.

        An error, also one that lies where the video should, is raised by a group that came alone; among others it is
        None, and the group wants to come again alone.
        """
        if len(video_refs) == 1:
            return [await self._score(video_refs[0])]
        found = await asyncio.gather(*map(self._score, video_refs), return_exceptions=True)
        return [None if isinstance(one, BaseException) else one for one in found]

    async def _score(self, video_ref: ray.ObjectRef) -> Scored:
        return await self.batches.submit(await video_ref)

    async def check_health(self) -> None:
        """Serve asks this now and then, and replaces a replica that raises."""
        await self.batches.run(self.actor.check_health)
