"""The reward pool: throughput by the number of replicas, how fast it grows, and what a call costs.

Throughput and growth with a scorer that sleeps 20 ms a group, so that replicas do not compete for cores and what is
left to measure is the pool itself; a closed loop keeps more groups in flight than the replicas hold. A call beside the
same call of a plain actor, in turn in one run, with a scorer that does nothing. At last the shipped tokenizer and
inverse dynamics model. Writes JSON with the versions and the load average.
Run: `python benchmarks/reward_scaling.py`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.cluster.start import start_ray
from actors.reward.pool import RewardPool
from rlir_ray.config import Config
from rlir_ray.config.load import load_config
from rlir_ray.data.files import write_json
from rlir_ray.rewards.base import Reward
from rlir_ray.run.environment import versions
from rlir_ray.testing import sample_actions
from rlir_ray.trajectory import EncodedVideo, RewardScores

TARGETS = {2: 0.95, 4: 0.9, 8: 0.8}
TARGET_RISE_S, LEVEL = 3.0, 0.9
# Over which a rate is taken while the pool grows, and how finely it is looked at.
WINDOW_S, STEP_S = 0.5, 0.05
TIMEOUT_S = 300.0


class SleepScorer:
    """A scorer that takes as long for each group, whatever is in it.

    Args:
        seconds: for each group.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def score(self, videos: list[EncodedVideo]) -> list[RewardScores]:
        time.sleep(self.seconds * len(videos))
        return [RewardScores(group_id=each.group_id, frame_rewards=np.ones((8, 8), np.float32)) for each in videos]

    def score_one(self, video: EncodedVideo) -> RewardScores:
        """As a method of a plain actor, which Ray gives the video of a reference."""
        return self.score([video])[0]


def random_videos(config: Config, number: int) -> list[EncodedVideo]:
    """Groups of the configured size with random tokens and actions."""
    random, world = np.random.default_rng(0), config.world
    shape = (config.train.group_size, world.num_context + world.num_frames, 48)
    num_actions = shape[1] - 1
    return [
        EncodedVideo(
            group_id=group_id,
            codes=random.integers(0, 512, shape, dtype=np.uint16),
            num_context=world.num_context,
            actions=sample_actions(num_actions, group_id),
        )
        for group_id in range(number)
    ]


class Load:
    """A closed loop: whenever a group is scored, the next one goes out.

    Args:
        pool: started.
        refs: of the groups, taken in turn.
        in_flight: groups.
    """

    def __init__(self, pool: RewardPool, refs: Sequence[ray.ObjectRef], in_flight: int) -> None:
        self.pool, self.refs = pool, refs
        self.stamps: list[float] = []
        self.errors: list[BaseException] = []
        self._sent = 0
        self._open = in_flight
        self._is_over = threading.Event()
        self._drained = threading.Event()
        for _ in range(in_flight):
            self._send()

    def _send(self) -> None:
        ref = self.refs[self._sent % len(self.refs)]
        self._sent += 1
        self.pool.score(ref).add_done_callback(self._receive)

    def _receive(self, future: Any) -> None:
        """On the pool's thread, so that one counter needs no lock."""
        if error := future.exception():
            self.errors.append(error)
        self.stamps.append(time.perf_counter())
        if not self._is_over.is_set():
            self._send()
            return
        self._open -= 1
        if not self._open:
            self._drained.set()

    def rate(self, start: float, stop: float) -> float:
        """Groups per second between two times."""
        return sum(start < stamp <= stop for stamp in self.stamps[:]) / (stop - start)

    def stop(self) -> None:
        self._is_over.set()
        if not self._drained.wait(TIMEOUT_S) or self.errors:
            raise RuntimeError(f"{len(self.errors)} groups failed, first {self.errors[:1]}; mend the pool first")


def start_pool(config: Config, make_reward: Callable[[], Reward] | None, ref: ray.ObjectRef) -> RewardPool:
    """A pool that has scored a group."""
    pool = RewardPool.from_config(config, make_reward=make_reward)
    pool.start()
    pool.score(ref).result(TIMEOUT_S)
    return pool


def with_reward(config: Config, **settings: Any) -> Config:
    return replace(config, reward=replace(config.reward, **settings))


def all_serving(pool: RewardPool, load: Load, seconds: float) -> float:
    """Waits until the rate is steady: two windows in a row that differ by less than 3 %; returns the rate."""
    deadline = time.perf_counter() + TIMEOUT_S
    before = 0.0
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        time.sleep(seconds)
        now = load.rate(start, time.perf_counter())
        if before and abs(now / before - 1) < 0.03:
            return now
        before = now
    raise TimeoutError(f"waited {TIMEOUT_S:.0f} s for a steady rate; free the machine's cores")


def measure_throughput(
    config: Config, counts: Sequence[int], refs: Sequence[ray.ObjectRef], options: argparse.Namespace
) -> dict[str, Any]:
    """Steady groups per second at each number of replicas, and their shares of linear."""
    rates = {}
    for count in counts:
        pool = start_pool(with_reward(config, num_replicas=count), lambda: SleepScorer(options.sleep_s), refs[0])
        load = Load(pool, refs, options.in_flight * count)
        all_serving(pool, load, 1.0)
        start = time.perf_counter()
        time.sleep(options.seconds)
        rates[count] = load.rate(start, time.perf_counter())
        load.stop()
        pool.stop()
        print(count, "replicas:", f"{rates[count]:.1f} groups/s", flush=True)
    shares = {count: rates[count] / (count * rates[counts[0]] / counts[0]) for count in counts}
    return {
        "groups_per_s": {str(count): round(rate, 1) for count, rate in rates.items()},
        "share_of_linear": {str(count): round(share, 3) for count, share in shares.items()},
        "share_of_ideal": {str(count): round(rate * options.sleep_s / count, 3) for count, rate in rates.items()},
        "meets": {str(count): shares[count] >= TARGETS[count] for count in counts if count in TARGETS},
    }


def measure_rise(
    config: Config, before: int, after: int, refs: Sequence[ray.ObjectRef], options: argparse.Namespace
) -> dict[str, Any]:
    """Seconds from the call that scales up until the rate has risen by 90 % of what it rises by in the end."""
    pool = start_pool(with_reward(config, num_replicas=before), lambda: SleepScorer(options.sleep_s), refs[0])
    load = Load(pool, refs, options.in_flight * after)
    all_serving(pool, load, 1.0)
    called = time.perf_counter()
    pool.scale(after)
    returned = time.perf_counter()
    time.sleep(WINDOW_S)
    target = LEVEL * after / options.sleep_s
    deadline = called + TIMEOUT_S
    now = called + WINDOW_S
    while load.rate(now - WINDOW_S, now) < target * 0.9 and time.perf_counter() < deadline:
        now += STEP_S
        time.sleep(max(0.0, now - time.perf_counter()))
    level = all_serving(pool, load, 1.0)
    load.stop()
    pool.stop()
    # The first window that ends at 90 % of the new level, on a fine grid.
    grid = np.arange(called + WINDOW_S, load.stamps[-1], STEP_S)
    reached = next((t for t in grid if load.rate(t - WINDOW_S, t) >= LEVEL * level), float("nan"))
    found = {
        "from": before,
        "to": after,
        "new_level_groups_per_s": round(level, 1),
        "call_s": round(returned - called, 3),
        "seconds_to_90_percent": round(float(reached - called), 2),
        "meets": bool(reached - called <= TARGET_RISE_S),
    }
    print(found, flush=True)
    return found


def measure_real(config: Config, refs: Sequence[ray.ObjectRef], seconds: float) -> dict[str, float]:
    """The shipped reward in one replica: groups per second under load, and seconds for a group that comes alone."""
    pool = start_pool(with_reward(config, num_replicas=1), None, refs[0])
    alone = []
    for ref in refs[:16]:
        started = time.perf_counter()
        pool.score(ref).result(TIMEOUT_S)
        alone.append(time.perf_counter() - started)
    load = Load(pool, refs, 32)
    time.sleep(2.0)
    start = time.perf_counter()
    time.sleep(seconds)
    rate = load.rate(start, time.perf_counter())
    load.stop()
    pool.stop()
    found = {"groups_per_s": round(rate, 2), "alone_median_s": round(statistics.median(alone), 4)}
    print(found, flush=True)
    return found


def measure_latency(config: Config, refs: Sequence[ray.ObjectRef], repeats: int) -> dict[str, Any]:
    """Seconds of a group that comes alone, and of each of 64 that come at once: of the pool, and of a plain actor."""
    pool = start_pool(with_reward(config, num_replicas=1), lambda: SleepScorer(0.0), refs[0])
    actor = ray.remote(num_cpus=0)(SleepScorer).remote(0.0)

    def pooled(asked: Sequence[ray.ObjectRef]) -> None:
        futures.wait([pool.score(ref) for ref in asked], TIMEOUT_S)

    def direct(asked: Sequence[ray.ObjectRef]) -> None:
        ray.get([actor.score_one.remote(ref) for ref in asked], timeout=TIMEOUT_S)

    found: dict[str, Any] = {}
    for name, asked in (("alone", refs[:1]), ("at_once", refs)):
        seconds: dict[str, list[float]] = {"pool": [], "actor": []}
        for _ in range(repeats):
            for way, call in (("pool", pooled), ("actor", direct)):
                started = time.perf_counter()
                call(asked)
                seconds[way].append((time.perf_counter() - started) / len(asked))
        medians = {way: statistics.median(values) for way, values in seconds.items()}
        found[name] = {f"{way}_s": round(value, 5) for way, value in medians.items()}
        found[name]["pool_over_actor"] = round(medians["pool"] / medians["actor"], 2)
    pool.stop()
    ray.kill(actor)
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--sleep-s", type=float, default=0.02, help="of the scorer, for each group")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--in-flight", type=int, default=32, help="groups a replica that the loop keeps out")
    parser.add_argument("--repeats", type=int, default=100, help="calls of the measurement of latency")
    parser.add_argument("--parts", nargs="+", default=["throughput", "rise", "latency", "real"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reward_scaling.json"))
    options = parser.parse_args()
    config = load_config("doom_tiny_ar", ["reward.num_cpus=0.25"])
    found: dict[str, Any] = {
        "versions": versions(),
        "load_average": os.getloadavg(),
        "sleep_s": options.sleep_s,
        "frames_a_group": config.train.group_size * (config.world.num_context + config.world.num_frames),
        "targets": {"share_of_linear": {str(key): value for key, value in TARGETS.items()}, "rise_s": TARGET_RISE_S},
    }
    start_ray(num_cpus=16, object_store_memory=300 << 20)
    refs = [ray.put(video) for video in random_videos(config, 64)]
    if "throughput" in options.parts:
        found["throughput"] = measure_throughput(config, options.replicas, refs, options)
    if "rise" in options.parts:
        found["rise"] = [measure_rise(config, *step, refs, options) for step in ((1, 2), (2, 4), (4, 8))]
    if "latency" in options.parts:
        found["latency"] = measure_latency(config, refs, options.repeats)
    if "real" in options.parts:
        found["shipped_reward"] = measure_real(config, refs, options.seconds)
    ray.shutdown()
    found["load_average_after"] = os.getloadavg()
    write_json(options.out, found)


if __name__ == "__main__":
    main()
