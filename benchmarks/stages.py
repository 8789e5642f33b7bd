"""Stages that take a given wall-clock time: a sampler, a reward and a learner that sleep, with random payloads."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from rlir_ray.config import Config
from rlir_ray.data.prompts import PromptSet, PromptSplit
from rlir_ray.learner.batches import StepBatch
from rlir_ray.learner.state import State
from rlir_ray.spaces.mineworld import TOKENS_PER_ACTION
from rlir_ray.testing import sample_actions
from rlir_ray.trajectory import EncodedVideo, Prompt, RewardScores, TokenRecord, TrajectoryGroup
from rlir_ray.transfer.weights import Received

TOKENS, CODES = 48, 512
WEIGHTS = 25_000
"""Numbers that the learner publishes, 100 KB: what weights cost is measured apart."""


def random_prompts(config: Config, split: PromptSplit) -> PromptSet:
    random, world = np.random.default_rng(split == "train"), config.world
    num_prompts = config.prompts.num_train if split == "train" else config.prompts.num_heldout
    num_actions = world.num_context - 1 + world.num_frames
    prompts = [
        Prompt(
            prompt_id=f"random-{index}",
            context=random.integers(0, CODES, (world.num_context, TOKENS), dtype=np.uint16),
            actions=sample_actions(num_actions, index),
        )
        for index in range(num_prompts)
    ]
    frames = random.integers(0, 256, (num_prompts, num_actions + 1, world.height, world.width, 3), dtype=np.uint8)
    return PromptSet(prompts=tuple(prompts), frames=frames, recorded=tuple(prompt.actions for prompt in prompts))


class SleepSampler:
    """Groups of the shipped recipe's size, random tokens, after `seconds` for each group."""

    difference = None

    def __init__(self, seconds: float) -> None:
        self.seconds, self.policy_version = seconds, 0
        self.random = np.random.default_rng(0)

    def load_weights(self, weights: Received, version: int, published: str = "") -> None:
        self.weights, self.policy_version = weights, version

    def sample(
        self, prompts: Sequence[Prompt], group_ids: Sequence[int], seeds: Sequence[int], group_size: int
    ) -> list[tuple[TrajectoryGroup, EncodedVideo]]:
        time.sleep(self.seconds * len(prompts))
        return [self._group(*one, group_size) for one in zip(prompts, group_ids, seeds, strict=True)]

    def _group(self, prompt: Prompt, group_id: int, seed: int, group_size: int) -> tuple[TrajectoryGroup, EncodedVideo]:
        num_frames = prompt.num_frames + len(prompt.context)
        length = num_frames * TOKENS + (num_frames - 1) * TOKENS_PER_ACTION
        decisions = (group_size, prompt.num_frames * TOKENS)
        codes = self.random.integers(1, CODES, (group_size, num_frames, TOKENS), dtype=np.uint16)
        group = TrajectoryGroup(
            prompt_id=prompt.prompt_id,
            group_id=group_id,
            seed=seed,
            policy_version=self.policy_version,
            record=TokenRecord(self.random.integers(1, CODES, (group_size, length), dtype=np.int32)),
            behavior_logprobs=-self.random.random(decisions, dtype=np.float32),
            loss_mask=np.ones(decisions, np.bool_),
        )
        video = EncodedVideo(group_id=group_id, codes=codes, num_context=len(prompt.context), actions=prompt.actions)
        return group, video


class SleepReward:
    """Random rewards after `seconds` for each group."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def score(self, videos: Sequence[EncodedVideo]) -> list[RewardScores]:
        time.sleep(self.seconds * len(videos))
        return [
            RewardScores(
                group_id=video.group_id,
                frame_rewards=np.random.default_rng(video.group_id).random(
                    (len(video.codes), video.num_frames), dtype=np.float32
                ),
            )
            for video in videos
        ]


class _Engine:
    rank, device = 0, torch.device("cpu")

    def reduce(self, values: torch.Tensor, maximum: bool) -> torch.Tensor:
        return values


class SleepLearner:
    """A step of `seconds`; other weights each time."""

    skipped = ""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.num_steps, self.engine = seconds, 0, _Engine()
        random = np.random.default_rng(0)
        self.versions = [{"w": random.random(WEIGHTS, dtype=np.float32)} for _ in range(2)]

    def step(self, batch: StepBatch) -> dict[str, float]:
        time.sleep(self.seconds)
        self.num_steps += 1
        return {"decisions": float(batch.num_decisions)}

    def weights(self) -> dict[str, npt.NDArray[np.generic]]:
        return self.versions[self.num_steps % 2]

    def average_weights(self) -> dict[str, npt.NDArray[np.generic]]:
        return {}

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        return {"num_steps": np.array([self.num_steps])}

    def load_state(self, state: State) -> None:
        self.num_steps = int(state["num_steps"][0])

    def save(self, folder: str | Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
