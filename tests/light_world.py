"""Weights, samplers and learners of a few numbers, for tests of the pools.

Nothing heavy is imported here: an actor starts as fast as its sampler does, and torch alone takes two seconds.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import ray

from actors.learner.command_queue import StepReport
from rlir_ray.run.tracing import span_since
from rlir_ray.trajectory import EncodedVideo, Prompt, TokenRecord, TrajectoryGroup

Weights = Mapping[str, np.ndarray]


def light_weights(version: int) -> dict[str, np.ndarray]:
    """Other numbers for each version."""
    return {"w": np.full(300, version, np.float32)}


def light_checksum(weights: Weights) -> str:
    """In place of the project's, which needs torch."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode() + np.ascontiguousarray(weights[name]).tobytes())
    return found.hexdigest()[:32]


class LightSampler:
    """Draws a group's tokens from its seed and the weights: other weights give other tokens.

    Args:
        load_s, sample_s: how long a load and a call take.
        checksum: what a load compares with the published one.
    """

    difference = None

    def __init__(
        self, load_s: float = 0.0, sample_s: float = 0.0, checksum: Callable[[Weights], str] = light_checksum
    ) -> None:
        self.load_s, self.sample_s, self.checksum = load_s, sample_s, checksum
        self.policy_version, self.weights = -1, light_weights(-1)

    def load_weights(self, weights: Weights, version: int, published: str = "") -> None:
        time.sleep(self.load_s)
        if published and (found := self.checksum(weights)) != published:
            raise ValueError(f"weights must have the published checksum {published}, got {found}")
        self.weights, self.policy_version = weights, version

    def sample(
        self, prompts: Sequence[Prompt], group_ids: Sequence[int], seeds: Sequence[int], group_size: int
    ) -> list[tuple[TrajectoryGroup, EncodedVideo]]:
        time.sleep(self.sample_s)
        return [self._group(*one, group_size) for one in zip(prompts, group_ids, seeds, strict=True)]

    def _group(self, prompt: Prompt, group_id: int, seed: int, group_size: int) -> tuple[TrajectoryGroup, EncodedVideo]:
        held = int(light_checksum(self.weights), 16)
        tokens = np.random.default_rng([seed, held]).integers(0, 1000, (group_size, 8), dtype=np.int32)
        group = TrajectoryGroup(
            prompt_id=prompt.prompt_id,
            group_id=group_id,
            seed=seed,
            policy_version=self.policy_version,
            record=TokenRecord(tokens),
            behavior_logprobs=None,
            loss_mask=np.ones((group_size, 1), np.bool_),
        )
        codes = np.zeros((group_size, 4, 1), np.uint16)
        return group, EncodedVideo(group_id=group_id, codes=codes, num_context=1, actions=prompt.actions)


def light_tokens(version: int, seed: int, prompt: Prompt, group_size: int) -> np.ndarray:
    """The tokens that a `LightSampler` draws with the weights of a version."""
    sampler = LightSampler()
    sampler.load_weights(light_weights(version), version)
    ((group, _),) = sampler.sample([prompt], [0], [seed], group_size)
    assert isinstance(group.record, TokenRecord)
    return group.record.tokens


class DeadlySampler(LightSampler):
    """Ends its process when it samples a group of this number."""

    def __init__(self, group_id: int) -> None:
        super().__init__()
        self.deadly = group_id

    def _group(self, prompt: Prompt, group_id: int, seed: int, group_size: int) -> tuple[TrajectoryGroup, EncodedVideo]:
        if group_id == self.deadly:
            os.abort()
        return super()._group(prompt, group_id, seed, group_size)


class StuckSampler(LightSampler):
    """Never comes back from a call."""

    def sample(self, *arguments: object) -> list[tuple[TrajectoryGroup, EncodedVideo]]:
        time.sleep(3600)
        raise AssertionError


class Publisher:
    """What a learner rank does when a step is over. It owns what it puts."""

    def publish(self, version: int, *, spoilt: bool = False) -> StepReport:
        weights = light_weights(version)
        published = light_checksum(weights)
        if spoilt:
            weights["w"].view(np.uint8)[17] ^= 4
        return StepReport(
            version=version, metrics={}, weights_refs=[ray.put(weights)], checksum=published, span=span_since(0.0)
        )
