"""The reward actor and the Ray Serve deployment: two shells around the same reward. Decoder and reader sit here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from ray import serve

from rlir_ray.config import Config, asset_path
from rlir_ray.families import open_codec
from rlir_ray.models.inverse_dynamics import load_inverse_dynamics
from rlir_ray.rewards.inverse_dynamics import InverseReward
from rlir_ray.trajectory import EncodedVideo, RewardScores

# Groups that a Serve replica reads together; they come in bursts, one burst a rollout call.
MAX_BATCH = 8
BATCH_WAIT_S = 0.01


class Reward(Protocol):
    """What a reward actor holds."""

    def score(self, videos: list[EncodedVideo]) -> list[RewardScores]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What the driver gets for a group."""

    scores: RewardScores
    seconds: float
    """The group's share of the time of decoding and reading."""


def build_reward(config: Config, class_shares: Mapping[str, npt.NDArray[np.floating]] | None) -> InverseReward:
    """The inverse reward of the configured checkpoints, on a GPU when the actor was given one."""
    torch.set_num_threads(config.reward.num_threads)
    device = "cuda" if config.reward.num_gpus else "cpu"
    tokenizer = open_codec(config).to(device)
    idm = load_inverse_dynamics(asset_path(config.models.reward_idm)).to(device)
    return InverseReward(
        tokenizer, idm, world=config.world, config=config.reward, class_shares=class_shares, device=device
    )


class RewardActor:
    """Args:
    make_reward: builds the reward in the actor's process.
    """

    def __init__(self, make_reward: Callable[[], Reward]) -> None:
        self.reward = make_reward()

    def score(self, video: EncodedVideo) -> Scored:
        return self.score_all([video])[0]

    def score_all(self, videos: list[EncodedVideo]) -> list[Scored]:
        started = time.perf_counter()
        scores = self.reward.score(videos)
        seconds = (time.perf_counter() - started) / len(videos)
        return [Scored(scores=one, seconds=seconds) for one in scores]


class RewardDeployment:
    """The same, for Ray Serve, which gathers the groups that arrive together."""

    def __init__(self, make_reward: Callable[[], Reward]) -> None:
        self.actor = RewardActor(make_reward)

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def score(self, videos: list[EncodedVideo]) -> list[Scored]:
        return self.actor.score_all(videos)
