"""From the SIGKILL of the only actor of a pool to its next good result: new process, model and weights included.

The shipped Doom models. A call is submitted right after the kill; the actor is chosen by its handle. Beside it, the
start of the pool to its first result. Writes JSON with the versions and the load. Run: `python -m benchmarks.recovery`.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from actors.cluster.compat import actor_info
from actors.cluster.diagnostics import actor_ids
from actors.cluster.start import start_ray
from actors.reward.pool import RewardPool
from actors.rollout.pool import RolloutPool
from benchmarks.stages import SleepSampler, random_prompts
from rlir_ray.config import Config
from rlir_ray.config.load import load_config
from rlir_ray.data.files import write_json
from rlir_ray.families import open_policy
from rlir_ray.run.environment import versions
from rlir_ray.transfer.weights import checksum, weights_of

TARGET_S, TIMEOUT_S = 5.0, 120.0
VERSION = 3


def kill(actor_id: str) -> None:
    os.kill(actor_info(actor_id).process_id, signal.SIGKILL)


def seconds_of(
    repeats: int, started: float, victims: Callable[[], list[str]], result: Callable[[], Any]
) -> dict[str, Any]:
    """Of `result`: in a pool whose start has begun at `started`, with its actor there, and after a kill."""
    result()
    start_s = time.perf_counter() - started
    started = time.perf_counter()
    result()
    healthy_s, seconds = time.perf_counter() - started, []
    for _ in range(repeats):
        (victim,) = victims()
        kill(victim)
        started = time.perf_counter()
        result()
        seconds.append(time.perf_counter() - started)
    median_s = statistics.median(seconds)
    return {
        "median_s": median_s,
        "seconds": seconds,
        "without_kill_s": healthy_s,
        "start_s": start_s,
        "over_start": median_s / start_s,
    }


def measure_rollout(config: Config, repeats: int) -> dict[str, Any]:
    pool, started = RolloutPool.from_config(config), time.perf_counter()
    pool.start()
    pool.wait_ready()
    weights = weights_of(open_policy(config))
    ray.get(pool.load_weights(ray.put(weights), VERSION, checksum(weights)), timeout=TIMEOUT_S)
    prompts_ref = ray.put(list(random_prompts(config, "train").prompts[:1]))

    def result() -> None:
        (call,) = pool.sample([0], [7], prompts_ref)
        assert ray.get(call.report_ref, timeout=TIMEOUT_S).policy_version == VERSION

    found = seconds_of(repeats, started, lambda: actor_ids(pool.actors), result)
    pool.stop()
    return found


def measure_reward(config: Config, repeats: int) -> dict[str, Any]:
    pool, started = RewardPool.from_config(config), time.perf_counter()
    pool.start()
    prompt = random_prompts(config, "train").prompts[0]
    ((_, video),) = SleepSampler(0.0).sample([prompt], [0], [0], config.train.group_size)
    video_ref = ray.put(video)
    assert pool.deployment is not None
    found = seconds_of(repeats, started, pool.deployment.actor_ids, lambda: pool.score(video_ref).result(TIMEOUT_S))
    pool.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/recovery.json"))
    options = parser.parse_args()
    load, found = os.getloadavg(), {}
    start_ray(num_cpus=4, object_store_memory=500 << 20)
    for name, measure in (("rollout", measure_rollout), ("reward", measure_reward)):
        found[name] = one = measure(load_config("doom_tiny_ar"), options.repeats)
        print(f"{name}: {one['median_s']:.2f} s from the kill, {one['without_kill_s']:.2f} s without", flush=True)
    ray.shutdown()
    write_json(options.out, {"found": found, "target_s": TARGET_S, "versions": versions(), "load_average": load})
    print(f"written {options.out}")


if __name__ == "__main__":
    main()
