"""A step of DeepSpeed's ZeRO 1, 2 and 3 beside plain torch on the same model and batch, and the memory of a rank.

All engines live in the same processes and take turns, so that they meet the same load; medians are compared. With two
ranks plain torch is DistributedDataParallel. Memory is what a rank's resident memory has grown by, from before its
model was made until its optimiser is about to update; the batch is small, and a small model went before it. Writes
JSON with the versions and the load. Run: `python -m benchmarks.learner`.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.stages import SleepSampler, random_prompts
from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.config import LearnerConfig, TrainConfig
from rlir_ray.config.load import load_config
from rlir_ray.data.files import write_json
from rlir_ray.learner.batches import StepBatch
from rlir_ray.learner.engine import Engine
from rlir_ray.learner.objectives import PolicyGradient
from rlir_ray.learner.step import Learner
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.rescoring import TokenRescorer
from rlir_ray.run.environment import versions

STAGES = (1, 2, 3)
TARGETS = {1: 1.15, 2: 1.25, 3: 1.5}
MEMORY_TARGET = 0.1
WARM_UP, TIMEOUT_S = 2, 900
# Freed memory goes back at once, or the resident memory would be that of the worst moment.
os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
FLOAT_BYTES = 4
TRAIN = TrainConfig(group_size=2, prompts_per_step=2, learning_rate=1e-5)


class DataParallelEngine(TorchEngine):
    """Plain torch over the ranks of a process group."""

    def __init__(self, model: torch.nn.Module, train: TrainConfig, learner: LearnerConfig) -> None:
        super().__init__(model, train, learner)
        self._parallel = DistributedDataParallel(model)
        self.rank = torch.distributed.get_rank()

    def forward(self, *inputs: Any) -> Tensor:
        return self._parallel(*inputs)

    def backward(self, loss: Tensor, last: bool) -> None:
        with nullcontext() if last else self._parallel.no_sync():
            # It averages over ranks; the loss is a rank's part of a sum.
            (loss * torch.distributed.get_world_size()).backward()

    def reduce(self, values: Tensor, maximum: bool) -> Tensor:
        total = values.detach().clone()
        torch.distributed.all_reduce(
            total, torch.distributed.ReduceOp.MAX if maximum else torch.distributed.ReduceOp.SUM
        )
        return total


def model_state_bytes(num_weights: int, zero_stage: int, num_ranks: int) -> float:
    """Of a rank of DeepSpeed in float32 whose optimiser is about to update.

    ZeRO 1 and 2: the weights, and a share of a second copy, of the gradients and of AdamW's two moments. ZeRO 3: a
    share of the weights as well and a second one of the gradients, and a bucket of whole ones.
    """
    from rlir_ray.learner.deepspeed import MAX_BUCKET_ELEMENTS

    share = num_weights / num_ranks
    numbers = 6 * share + min(num_weights, MAX_BUCKET_ELEMENTS) if zero_stage == 3 else num_weights + 4 * share
    return FLOAT_BYTES * numbers


def make_model(hidden_size: int, num_layers: int) -> WorldModel:
    torch.manual_seed(0)
    return WorldModel.create(
        num_codes=512,
        tokens_per_frame=48,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_layers=num_layers,
        num_heads=8,
        num_key_value_heads=4,
        max_positions=512,
    )


def make_learner(zero_stage: int, hidden_size: int = 512, num_layers: int = 8) -> Learner:
    """With `zero_stage` -1: plain torch."""
    model, learner = (
        make_model(hidden_size, num_layers),
        LearnerConfig(engine="deepspeed", zero_stage=max(zero_stage, 0)),
    )
    engine: Engine
    if zero_stage < 0:
        kind = DataParallelEngine if torch.distributed.get_world_size() > 1 else TorchEngine
        engine = kind(model, TRAIN, learner)
    else:
        from rlir_ray.learner.deepspeed import DeepSpeedEngine

        engine = DeepSpeedEngine(model, TRAIN, learner)
    return Learner(engine, PolicyGradient(model, TokenRescorer(1.0), TRAIN, None), TRAIN, learner)


def make_batch(num_frames: int, rank: int) -> StepBatch:
    """Two groups of random tokens."""
    config = load_config("doom_tiny_ar", [f"world.num_frames={num_frames}", "prompts.num_train=2"])
    prompts = random_prompts(config, "train").prompts
    sampled = SleepSampler(0.0).sample(prompts, [0, 1], [rank, rank], TRAIN.group_size)
    groups = [group for group, _ in sampled]
    values = np.random.default_rng(rank).normal(size=(TRAIN.group_size, num_frames)).astype(np.float32)
    num_ranks = torch.distributed.get_world_size()
    total = num_ranks * sum(group.num_decisions for group in groups)
    return StepBatch(groups, [GroupAdvantages.of_all(values)] * 2, total)


def measure_steps(rank: int, num_ranks: int, repeats: int, num_frames: int) -> dict[str, Any]:
    """Seconds of a step of each engine, in turn."""
    learners = {stage: make_learner(stage) for stage in (-1, *STAGES)}
    batch = make_batch(num_frames, rank)
    seconds: dict[int, list[float]] = {stage: [] for stage in learners}
    for _ in range(WARM_UP + repeats):
        for stage, learner in learners.items():
            torch.distributed.barrier()
            started = time.perf_counter()
            learner.step(batch)
            seconds[stage].append(time.perf_counter() - started)
    medians = {stage: statistics.median(times[WARM_UP:]) for stage, times in seconds.items()}
    parts = {
        f"zero {stage}, {num_ranks} ranks": {
            "torch_s": medians[-1],
            "step_s": medians[stage],
            "over_torch": medians[stage] / medians[-1],
            "target": TARGETS[stage],
        }
        for stage in STAGES
    }
    return parts


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_memory(rank: int, num_ranks: int, zero_stage: int, num_frames: int) -> dict[str, Any]:
    """Growth of this process until the second update begins."""
    batch = make_batch(num_frames, rank)
    make_learner(zero_stage, hidden_size=64, num_layers=1).step(batch)
    before = resident_bytes()
    learner = make_learner(zero_stage, hidden_size=768, num_layers=12)
    num_weights = sum(getattr(weight, "ds_numel", weight.numel()) for weight in learner.engine.module.parameters())
    learner.step(batch)
    grown: list[int] = []
    optimizer = learner.engine._optimizer  # type: ignore[attr-defined]
    optimizer.register_step_pre_hook(lambda *_: grown.append(resident_bytes() - before))
    learner.step(batch)
    expected = model_state_bytes(num_weights, zero_stage, num_ranks)
    return {
        f"zero {zero_stage}, {num_ranks} ranks": {
            "num_weights": num_weights,
            "measured_bytes": grown[0],
            "formula_bytes": expected,
            "over_formula": grown[0] / expected,
        }
    }


def run_rank(
    task: Callable[..., dict[str, Any]], rank: int, num_ranks: int, port: int, out: str, *options: Any
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from rlir_ray.learner.deepspeed import init_distributed

    torch.set_num_threads(1)
    init_distributed("gloo")
    found = task(rank, num_ranks, *options)
    if rank == 0:
        Path(out).write_text(json.dumps(found, allow_nan=False))


def run_ranks(task: Callable[..., dict[str, Any]], num_ranks: int, *options: Any) -> dict[str, Any]:
    """What rank 0 found, in fresh processes."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port, out = probe.getsockname()[1], f"{folder}/found.json"
        probe.close()
        spawn = multiprocessing.get_context("spawn")
        ranks = [
            spawn.Process(target=run_rank, args=(task, rank, num_ranks, port, out, *options))
            for rank in range(num_ranks)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(TIMEOUT_S)
            if process.exitcode != 0:
                for each in ranks:
                    each.kill()
                raise SystemExit(f"a rank ended with {process.exitcode}")
        found: dict[str, Any] = json.loads(Path(out).read_text())
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/learner.json"))
    options = parser.parse_args()
    load, step, memory = os.getloadavg(), {}, {}
    for num_ranks in (1, 2):
        step |= run_ranks(measure_steps, num_ranks, options.repeats, options.frames)
        for stage in STAGES:
            memory |= run_ranks(measure_memory, num_ranks, stage, 1)
    for name, one in step.items():
        print(f"{name}: {one['over_torch']:.3f} of torch's {one['torch_s']:.2f} s (target {one['target']})")
    for name, one in memory.items():
        print(f"{name}: {one['measured_bytes'] / 1e6:.0f} MB, {one['over_formula']:.3f} of the formula")
    write_json(
        options.out,
        {
            "step": step,
            "memory": memory,
            "memory_target": MEMORY_TARGET,
            "frames": options.frames,
            "versions": versions(),
            "load_average": load,
            "load_average_after": os.getloadavg(),
        },
    )
    print(f"written {options.out}")


if __name__ == "__main__":
    main()
