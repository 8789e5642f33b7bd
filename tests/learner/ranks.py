"""A learner rank in a process of its own: `python -m tests.learner.ranks SETTINGS_JSON`, with RANK and the like set.

Every rank makes the same groups, trains its share for some steps and rank 0 writes losses and weights.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlir_ray.batching import split_groups
from rlir_ray.config import LearnerConfig, TrainConfig
from rlir_ray.learner.step import Engine, Learner, StepBatch
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.samplers.torch_sampler import TorchSampler
from rlir_ray.trajectory import TrajectoryGroup
from tests.fakes import tiny_prompts, tiny_world_model

NUM_GROUPS, GROUP_SIZE, NUM_FRAMES, NUM_STEPS = 5, 4, 3, 2
# A small learning rate: where a gradient is near 0, AdamW makes rounding as large as an update.
TRAIN = TrainConfig(group_size=GROUP_SIZE, learning_rate=2e-5, warmup_steps=2, max_grad_norm=0.5, kl_coefficient=0.05)


def sampled_groups() -> list[TrajectoryGroup]:
    sampler = TorchSampler(tiny_world_model(), temperature=0.9)
    prompts = tiny_prompts(NUM_GROUPS, num_frames=NUM_FRAMES)
    drawn = sampler.sample(prompts, range(NUM_GROUPS), range(100, 100 + NUM_GROUPS), GROUP_SIZE)
    return [group for group, _ in drawn]


def share_of(rank: int, num_ranks: int) -> StepBatch:
    """Five groups over two ranks: unequal shares, so that one rank is padded."""
    groups = sampled_groups()
    random = np.random.default_rng(0)
    advantages = [random.normal(size=(GROUP_SIZE, NUM_FRAMES)).astype(np.float32) for _ in groups]
    places = split_groups([group.num_decisions for group in groups], num_ranks)[rank]
    total = sum(group.num_decisions for group in groups)
    return StepBatch([groups[place] for place in places], [advantages[place] for place in places], total)


def run(settings: dict[str, Any], rank: int, num_ranks: int) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """Metrics of each step and the weights after the last one."""
    torch.set_num_threads(1)
    config = LearnerConfig(**settings)
    model, reference = tiny_world_model(), tiny_world_model(seed=1)
    engine: Engine
    if config.engine == "deepspeed":
        from rlir_ray.learner.deepspeed import DeepSpeedEngine

        engine = DeepSpeedEngine(model, TRAIN, config)
    else:
        engine = TorchEngine(model, TRAIN, config)
    learner = Learner(model, reference, engine, TRAIN, config, temperature=0.9)
    metrics = [learner.step(share_of(rank, num_ranks)) for _ in range(NUM_STEPS)]
    return metrics, learner.weights()


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    rank = int(os.environ["RANK"])
    metrics, weights = run(request["learner"], rank, int(os.environ["WORLD_SIZE"]))
    if rank == 0:
        np.savez(Path(request["folder"]) / "weights.npz", **weights)
        (Path(request["folder"]) / "metrics.json").write_text(json.dumps(metrics))
