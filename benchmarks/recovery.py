"""From the SIGKILL of the only actor of a pool to its next good result: new process, model and weights included.

The shipped Doom models. A call is submitted right after the kill; the actor is chosen by its handle. Writes JSON with
the versions and the load. Run: `python -m benchmarks.recovery`.
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
from ray._private import state

from actors.plan import start_ray
from actors.pools import RolloutPool
from actors.reward_pool import RewardPool
from benchmarks.stages import SleepSampler, random_prompts
from rlir_ray.config import Config
from rlir_ray.config_files import load_config
from rlir_ray.families import open_policy
from rlir_ray.run import versions, write_json
from rlir_ray.weights import checksum, weights_of

TARGET_S, TIMEOUT_S = 5.0, 120.0
VERSION = 3


def kill(actor: Any) -> None:
    os.kill(int(state.actors(actor._actor_id.hex())["Pid"]), signal.SIGKILL)


def seconds_of(repeats: int, victim: Callable[[], Any], result: Callable[[], Any]) -> dict[str, Any]:
    """Of `result`, with its actor there and after a kill."""
    result()
    started = time.perf_counter()
    result()
    healthy_s, seconds = time.perf_counter() - started, []
    for _ in range(repeats):
        kill(victim())
        started = time.perf_counter()
        result()
        seconds.append(time.perf_counter() - started)
    return {"median_s": statistics.median(seconds), "seconds": seconds, "without_kill_s": healthy_s}


def measure_rollout(config: Config, repeats: int) -> dict[str, Any]:
    pool = RolloutPool(config)
    pool.start()
    pool.wait_ready()
    weights = weights_of(open_policy(config))
    ray.get(pool.load_weights(ray.put(weights), VERSION, checksum(weights)), timeout=TIMEOUT_S)
    prompts_ref = ray.put(list(random_prompts(config, "train").prompts[:1]))

    def result() -> None:
        (call,) = pool.sample([0], [7], prompts_ref)
        assert ray.get(call.report_ref, timeout=TIMEOUT_S).policy_version == VERSION

    found = seconds_of(repeats, lambda: pool.actors[0], result)
    pool.stop()
    return found


def measure_reward(config: Config, repeats: int) -> dict[str, Any]:
    pool = RewardPool(config)
    pool.start()
    prompt = random_prompts(config, "train").prompts[0]
    ((_, video),) = SleepSampler(0.0).sample([prompt], [0], [0], config.train.group_size)
    video_ref = ray.put(video)

    def victim() -> Any:
        if config.reward.backend == "actors":
            return pool.backend.members[0].actor  # type: ignore[attr-defined]
        prefix = f"SERVE_REPLICA::{pool.backend.name}#"  # type: ignore[attr-defined]
        names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
        (own,) = (name for name in names if name.startswith(prefix))
        return ray.get_actor(own, namespace="serve")

    found = seconds_of(repeats, victim, lambda: pool.score(video_ref).result(TIMEOUT_S))
    pool.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/recovery.json"))
    options = parser.parse_args()
    load, found = os.getloadavg(), {}
    start_ray(num_cpus=4, object_store_memory=500 << 20)
    for name, measure, overrides in (
        ("rollout", measure_rollout, []),
        ("reward, plain actors", measure_reward, ["reward.backend=actors"]),
        ("reward, Ray Serve", measure_reward, ["reward.backend=serve"]),
    ):
        found[name] = one = measure(load_config("doom_tiny_ar", overrides), options.repeats)
        print(f"{name}: {one['median_s']:.2f} s from the kill, {one['without_kill_s']:.2f} s without", flush=True)
    ray.shutdown()
    write_json(options.out, {"found": found, "target_s": TARGET_S, "versions": versions(), "load_average": load})
    print(f"written {options.out}")


if __name__ == "__main__":
    main()
