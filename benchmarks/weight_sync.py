"""How fast a version of the weights reaches the rollout pool, as a share of copying its bytes in memory once.

The real path: a learner rank puts the arrays and their checksum, reports through its queue, the driver publishes,
every rollout actor proves what it holds and serves it. From the moment at which the rank has the arrays until the
driver knows that the last actor serves. Before each publication the rank copies the same bytes once, from warm memory
to warm memory: Ray's workers run at nice 15, so that both are measured inside one. The share is that of the median
times. Writes JSON with the versions and the load. Run: `python -m benchmarks.weight_sync`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from actors.cluster.start import start_ray
from actors.learner.group import LearnerGroup
from actors.rollout.pool import RolloutPool
from actors.weights.sync import WeightSync
from benchmarks.stages import SleepLearner, SleepSampler, random_prompts
from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.config import FlowConfig
from rlir_ray.config.load import load_config
from rlir_ray.data.files import write_json
from rlir_ray.learner.batches import StepBatch
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.flow import FlowWorldModel
from rlir_ray.run.environment import versions
from rlir_ray.samplers import Sampler
from rlir_ray.samplers.flow import FlowSampler
from rlir_ray.samplers.torch_sampler import TorchSampler
from rlir_ray.transfer.weights import Weights, checksum, weights_of

TARGET = 0.5
TIMEOUT_S = 120.0
# The first publications fill the store's memory, which the later ones use again.
WARM_UP = 4


def flow_sampler() -> Sampler:
    """64 million weights, 255 MB."""
    model = FlowWorldModel(hidden_size=768, num_layers=6, num_heads=12)
    return FlowSampler(model.eval(), FlowConfig(), explore=True)


def torch_sampler() -> Sampler:
    """As many; this engine computes a layout of its own from each version."""
    model = WorldModel.create(
        num_codes=512,
        tokens_per_frame=48,
        hidden_size=1024,
        intermediate_size=4096,
        num_layers=4,
        num_heads=8,
        num_key_value_heads=4,
        max_positions=512,
    )
    return TorchSampler(model.eval(), temperature=1.0)


class Publisher(SleepLearner):
    """A learner without a step: it has two versions of random weights, and publishes them in turn."""

    def __init__(self, make_sampler: Callable[[], Sampler]) -> None:
        super().__init__(0.0)
        torch.set_num_threads(1)
        random = np.random.default_rng(0)
        shapes = {name: array.shape for name, array in weights_of(make_sampler().policy).items()}  # type: ignore[attr-defined]
        self.versions = [
            {name: random.random(shape, dtype=np.float32) + 0.5 for name, shape in shapes.items()} for _ in range(2)
        ]
        self.copy = {name: array.copy() for name, array in self.versions[0].items()}

    def step(self, batch: StepBatch) -> dict[str, float]:
        self.num_steps += 1
        weights: Weights = self.weights()
        started = time.perf_counter()
        for name, array in weights.items():
            np.copyto(self.copy[name], array)
        return {"memcpy_s": time.perf_counter() - started, "ready_at": time.time()}


def measure(make_sampler: Callable[[], Sampler], num_readers: int, repeats: int) -> dict[str, Any]:
    """One number of readers."""
    config = load_config("doom_tiny_ar", [f"rollout.num_actors={num_readers}", "learner.engine=torch"])
    (prompt,) = random_prompts(config, "train").prompts[:1]
    ((group, _),) = SleepSampler(0.0).sample([prompt], [0], [0], 2)
    advantages = GroupAdvantages.of_all(np.ones((2, prompt.num_frames), np.float32))
    pool = RolloutPool.from_config(config, make_sampler)
    pool.start()
    seconds, copies = [], []
    with tempfile.TemporaryDirectory() as folder:
        learner = LearnerGroup.from_config(config, Path(folder), partial(Publisher, make_sampler))
        learner.start()
        report = learner.wait_ready()
        pool.wait_ready()
        sync = WeightSync(pool, TIMEOUT_S)
        group_ref = ray.put(group)
        num_bytes = sum(array.nbytes for array in ray.get(report.weights_refs[0], timeout=TIMEOUT_S).values())
        for number in range(WARM_UP + repeats):
            report = learner.step([group_ref], [advantages])
            sync.publish(report)
            sync.wait()
            served_at = time.time()
            held = ray.get([actor.version.remote() for actor in pool.actors], timeout=TIMEOUT_S)
            assert held == [report.version] * num_readers, (held, report.version)
            if number >= WARM_UP:
                seconds.append(served_at - report.metrics["ready_at"])
                copies.append(report.metrics["memcpy_s"])
        learner.stop()
    pool.stop()
    memcpy_s, publish_s = statistics.median(copies), statistics.median(seconds)
    return {
        "num_bytes": num_bytes,
        "memcpy_s": round(memcpy_s, 5),
        "publish_s": round(publish_s, 5),
        "publish_s_range": [round(min(seconds), 5), round(max(seconds), 5)],
        "memcpy_gb_per_s": round(num_bytes / memcpy_s / 1e9, 2),
        "gb_per_s": round(num_bytes / publish_s / 1e9, 2),
        "delivered_gb_per_s": round(num_readers * num_bytes / publish_s / 1e9, 2),
        "share_of_memcpy": round(memcpy_s / publish_s, 3),
        "load_average": os.getloadavg(),
    }


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure_checksums(num_bytes: int) -> dict[str, float]:
    """GB/s of the checksum, and of blake2b on the same bytes; in this process."""
    weights = {"w": np.random.default_rng(0).random(num_bytes // 4, dtype=np.float32)}
    found = {
        "xxh3_128": _seconds(lambda: checksum(weights), 7),
        "blake2b": _seconds(lambda: hashlib.blake2b(weights["w"].data, digest_size=16).digest(), 3),
    }
    return {name: round(num_bytes / seconds / 1e9, 2) for name, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--engines", nargs="+", default=["flow", "torch"], choices=("flow", "torch"))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/weight_sync.json"))
    options = parser.parse_args()
    found: dict[str, Any] = {
        "versions": versions(),
        "load_average": os.getloadavg(),
        "target": TARGET,
        "checksum_gb_per_s": measure_checksums(256 << 20),
        "engines": {},
    }
    start_ray(num_cpus=8, object_store_memory=2 << 30)
    for engine in options.engines:
        part = found["engines"][engine] = {}
        for num_readers in options.readers:
            make_sampler = flow_sampler if engine == "flow" else torch_sampler
            part[str(num_readers)] = measure(make_sampler, num_readers, options.repeats)
            print(engine, num_readers, part[str(num_readers)], flush=True)
    ray.shutdown()
    found["load_average_after"] = os.getloadavg()
    write_json(options.out, found)
    print(f"written {options.out}")


if __name__ == "__main__":
    main()
