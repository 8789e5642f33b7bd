"""What the framework adds to a synchronous step of one second: through the pools, and in one process (local.py).

Overhead is the step's time minus the sum of its stages, which sleep. Writes JSON with the versions and the load.
Run: `python -m benchmarks.overhead`.
"""

from __future__ import annotations

import argparse
import os
import statistics
from dataclasses import asdict
from pathlib import Path

import ray

from actors.cluster.start import start_ray
from benchmarks.overlap import PROMPTS_PER_STEP, WARM_UP, WIND_DOWN, measure
from benchmarks.stages import SleepLearner, SleepReward, SleepSampler, random_prompts
from rlir_ray.config.load import load_config
from rlir_ray.data.files import write_json
from rlir_ray.local import train_local
from rlir_ray.run.environment import versions

STAGES_S = (0.4, 0.2, 0.4)
TARGET = 0.05


def measure_local(num_steps: int) -> float:
    """Median seconds of a step of the loop in one process."""
    config = load_config(
        "doom_tiny_ar",
        [
            f"train.num_steps={num_steps}",
            "train.max_minutes=0",
            f"train.prompts_per_step={PROMPTS_PER_STEP}",
            f"rollout.prompts_per_call={PROMPTS_PER_STEP}",
            "prompts.num_train=64",
            "prompts.num_heldout=8",
        ],
    )
    sample_s, score_s, learn_s = STAGES_S
    metrics = train_local(
        config,
        random_prompts(config, "train").prompts,
        SleepSampler(sample_s / PROMPTS_PER_STEP),
        SleepReward(score_s / PROMPTS_PER_STEP),
        SleepLearner(learn_s),  # type: ignore[arg-type]
    )
    return statistics.median(step["time/step_s"] for step in metrics)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/overhead.json"))
    options = parser.parse_args()
    load = os.getloadavg()
    local_s = measure_local(options.steps)
    start_ray(num_cpus=4, object_store_memory=500 << 20)
    pools = measure(*STAGES_S, 0, options.steps + WARM_UP + WIND_DOWN)
    ray.shutdown()
    stages_s = sum(STAGES_S)
    found = {
        "stages_s": stages_s,
        "local_step_s": local_s,
        "pools": asdict(pools),
        "target": TARGET,
        "local_overhead": local_s / stages_s - 1,
        "pools_overhead": pools.step_s / stages_s - 1,
        "pools_over_local": pools.step_s / local_s,
    }
    print(f"overhead at 1 s steps: local {found['local_overhead']:.2%}, pools {found['pools_overhead']:.2%}")
    write_json(options.out, {"found": found, "versions": versions(), "load_average": load})


if __name__ == "__main__":
    main()
