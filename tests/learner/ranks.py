"""Learner ranks in processes of their own, which are forked from a process that has loaded the libraries.

Every rank makes the same groups and trains its share for some steps; rank 0 writes metrics, weights and states.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import socket
import time
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.algorithm.batching import minibatch_sizes, split_groups
from rlir_ray.config import GrpoConfig, LearnerConfig, TrainConfig
from rlir_ray.learner.batches import StepBatch, trained_decisions
from rlir_ray.learner.engine import Engine
from rlir_ray.learner.objectives import PolicyGradient
from rlir_ray.learner.reference import FollowingReference
from rlir_ray.learner.step import Learner
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.models.clip_losses import TokenClipLoss
from rlir_ray.models.rescoring import TokenRescorer
from rlir_ray.samplers.torch_sampler import TorchSampler
from rlir_ray.trajectory import TrajectoryGroup
from tests.fakes import tiny_prompts, tiny_world_model, with_recorded

NUM_GROUPS, GROUP_SIZE, NUM_FRAMES, NUM_STEPS = 5, 4, 3, 2
# A small learning rate: where a gradient is near 0, AdamW makes rounding as large as an update.
TRAIN = TrainConfig(
    group_size=GROUP_SIZE,
    learning_rate=2e-5,
    warmup_steps=2,
    max_grad_norm=0.5,
    kl_coefficient=0.05,
    ema_decay=0.5,
    supervised_coefficient=0.5,
)
# Two passes over two minibatches, the second with one group for each of two ranks.
SEVERAL = replace(TRAIN, updates_per_step=2, num_minibatches=2, grpo=GrpoConfig(loss="gspo"))


@functools.cache
def sampled_groups() -> list[TrajectoryGroup]:
    sampler = TorchSampler(tiny_world_model(), temperature=0.9)
    prompts = with_recorded(tiny_prompts(NUM_GROUPS, num_frames=NUM_FRAMES))
    drawn = sampler.sample(prompts, range(NUM_GROUPS), range(100, 100 + NUM_GROUPS), GROUP_SIZE)
    return [group for group, _ in drawn]


def all_advantages() -> list[GroupAdvantages]:
    groups = sampled_groups()
    random = np.random.default_rng(0)
    values = [random.normal(size=(GROUP_SIZE, NUM_FRAMES)).astype(np.float32) for _ in groups]
    # Of one group only some clips train.
    advantages = [GroupAdvantages.of_all(each) for each in values[1:]]
    advantages.append(GroupAdvantages(values[0][1:3], np.array([0, 3])))
    return advantages


def shares_of(rank: int, num_ranks: int, num_minibatches: int = 1) -> list[StepBatch]:
    """Five groups over two ranks: unequal shares, so that one rank is padded."""
    groups, advantages, shares, first = sampled_groups(), all_advantages(), [], 0
    for size in minibatch_sizes(NUM_GROUPS, num_minibatches):
        part = slice(first, first + size)
        own = split_groups([group.num_decisions for group in groups[part]], num_ranks)[rank]
        places = [first + place for place in own]
        total = trained_decisions(groups[part], advantages[part])
        shares.append(StepBatch([groups[place] for place in places], [advantages[place] for place in places], total))
        first += size
    return shares


def make(settings: dict[str, Any], train: TrainConfig = TRAIN) -> Learner:
    torch.set_num_threads(1)
    config = LearnerConfig(**settings)
    model, reference = tiny_world_model(), tiny_world_model(seed=1)
    engine: Engine
    if config.engine == "deepspeed":
        from rlir_ray.learner.deepspeed import DeepSpeedEngine

        engine = DeepSpeedEngine(model, train, config)
    else:
        engine = TorchEngine(model, train, config)
    clip_loss = TokenClipLoss(model, NUM_FRAMES)
    objective = PolicyGradient(model, TokenRescorer(0.9), train, reference)
    return Learner(
        engine, FollowingReference(objective, model, reference, every=1, decay=0.5), train, config, clip_loss
    )


def run(
    settings: dict[str, Any], rank: int, num_ranks: int, train: TrainConfig = TRAIN
) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """Metrics of each step, and the weights and the moving average after the last one."""
    learner = make(settings, train)
    shares = shares_of(rank, num_ranks, train.num_minibatches)
    metrics = [learner.step(*shares) for _ in range(NUM_STEPS)]
    return metrics, all_weights(learner)


def all_weights(learner: Learner) -> dict[str, np.ndarray]:
    """Return the weights and the moving average; every rank calls."""
    average = {f"average/{name}": value for name, value in learner.average_weights().items()}
    return learner.weights() | average


def poisoned(share: StepBatch) -> StepBatch:
    """A share whose last group has a log-probability that is no number."""
    group = share.groups[-1]
    logprobs = np.where(np.arange(group.loss_mask.shape[1]) == 0, np.nan, group.behavior_logprobs)
    groups = [*share.groups[:-1], replace(group, behavior_logprobs=logprobs.astype(np.float32))]
    return StepBatch(groups, share.advantages, share.num_decisions)


def summed_gradient(settings: dict[str, Any]) -> float:
    """The norm of four weights whose gradients are 1 and 512 times 2^-10, each of a micro-batch."""
    from rlir_ray.learner.deepspeed import DeepSpeedEngine

    engine = DeepSpeedEngine(torch.nn.Linear(4, 1, bias=False), TRAIN, LearnerConfig(**settings))
    sizes = [1.0] + [2.0**-10] * 512
    for number, size in enumerate(sizes, start=1):
        value = engine.forward(torch.full((1, 4), size, dtype=torch.bfloat16))
        engine.backward(value.sum() / engine.reduce(torch.ones(()), maximum=False), last=number == len(sizes))
    return engine.optimizer_step(1e-4)


def run_and_write(settings: dict[str, Any], rank: int, num_ranks: int, port: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if settings.pop("adds_up", False):
        (folder / f"sum{rank}.json").write_text(json.dumps(summed_gradient(settings)))
        return
    num_steps, poisoned_step = settings.pop("num_steps", NUM_STEPS), settings.pop("poisoned_step", None)
    source, train = settings.pop("source", None), SEVERAL if settings.pop("several", False) else TRAIN
    learner = make(settings, train)
    if source is not None:
        with np.load(source) as state:
            learner.load_state(state)
    metrics, causes = [], []
    for step in range(num_steps):
        is_poisoned = step == poisoned_step and rank == num_ranks - 1
        shares = shares_of(rank, num_ranks, train.num_minibatches)
        metrics.append(learner.step(*(poisoned(share) if is_poisoned else share for share in shares)))
        causes.append(learner.skipped)
        # Gathered by all ranks.
        state = learner.state()
        if rank == 0:
            np.savez(folder / f"state{step + 1}.npz", **state)
    (folder / f"causes{rank}.json").write_text(json.dumps(causes))
    weights = all_weights(learner)
    if rank == 0:
        np.savez(folder / "weights.npz", **weights)
        (folder / "metrics.json").write_text(json.dumps(metrics))


class Runs:
    """Runs of learner ranks; a run that was asked for before is not repeated.

    Args:
        folder: gets a folder for each run.
        timeout_s: bound of a run, with the loading of the libraries.
    """

    def __init__(self, folder: Path, timeout_s: float) -> None:
        self.folder, self.timeout_s = folder, timeout_s
        self._done: dict[str, Path] = {}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.learner.preload", "tests.learner.ranks"])
        forkserver.ensure_running()

    def __call__(self, **settings: Any) -> Path:
        """Train with the learner's settings; return the run's folder.

        Args:
            settings: of the learner, and `num_steps`, `several` (updates a step), `poisoned_step`, `source` (the file
                of a state), `adds_up`.
        """
        settings = {"engine": "deepspeed", "decision_budget": 160, "num_workers": 2} | settings
        name = json.dumps(settings, sort_keys=True, default=str)
        if name not in self._done:
            folder = self.folder / str(len(self._done))
            folder.mkdir()
            self._run(settings, folder)
            self._done[name] = folder
        return self._done[name]

    def _run(self, settings: dict[str, Any], folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        num_ranks = settings["num_workers"]
        shares = [(settings, rank, num_ranks, port, folder) for rank in range(num_ranks)]
        processes = [self._context.Process(target=run_and_write, args=share, daemon=True) for share in shares]
        deadline = time.monotonic() + self.timeout_s
        for process in processes:
            process.start()
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
        # What a failed rank raised is in the output of the test.
        assert not any(codes) and None not in codes, f"{settings}: exit codes {codes}"
