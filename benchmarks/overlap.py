"""How well the stages overlap: sampling, scoring and learning that sleep, through the real driver, pools and store.

One learner rank; with overlap two rollout and two reward actors, each of which takes twice its stage's time a group.
Ideal is the sum of the stages without overlap (train.max_staleness=0) and the longest one with it; efficiency is ideal
over the measured time of a step. What remains is what the framework costs. Writes JSON with the versions and the load.
Run: `python -m benchmarks.overlap`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import ray

from actors.cluster.start import start_ray
from actors.pipeline import Pipeline
from benchmarks.stages import SleepLearner, SleepReward, SleepSampler, random_prompts
from rlir_ray.config.load import load_config
from rlir_ray.data.files import write_json
from rlir_ray.run.environment import versions

PROMPTS_PER_STEP = 1
# Of rollout and reward each, with overlap: while one stores its results, the other works.
NUM_ACTORS = 2
# Steps before the pools are in step with each other, and after the last one was admitted.
WARM_UP, WIND_DOWN = 16, 12
# The slots must hold the groups of all that is under way: each stage's, what waits at it, and what goes between them.
MAX_STALENESS = 9
TARGETS = {100: 0.95, 20: 0.90}
SPEEDUPS = {2: 1.9, 3: 2.7}


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    step_s: float
    """Mean over the steps."""
    ideal_s: float
    efficiency: float


def measure(sample_s: float, score_s: float, learn_s: float, max_staleness: int, num_steps: int) -> Measured:
    """Runs the pipeline with stages that take so long a step."""
    num_actors = NUM_ACTORS if max_staleness else 1
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            "doom_tiny_ar",
            [
                f"run.dir={folder}",
                "run.name=stages",
                "learner.engine=torch",
                f"train.num_steps={num_steps}",
                "train.max_minutes=0",
                f"train.max_staleness={max_staleness}",
                f"train.prompts_per_step={PROMPTS_PER_STEP}",
                f"rollout.prompts_per_call={PROMPTS_PER_STEP}",
                "prompts.num_train=64",
                "prompts.num_heldout=8",
                f"rollout.num_actors={num_actors}",
                f"reward.num_replicas={num_actors}",
                "checkpoint.every=0",
            ],
        )
        result = Pipeline(
            config,
            prompts=partial(random_prompts, config),
            make_sampler=partial(SleepSampler, num_actors * sample_s / PROMPTS_PER_STEP),
            make_reward=partial(SleepReward, num_actors * score_s / PROMPTS_PER_STEP),
            make_learner=partial(SleepLearner, learn_s),
        ).train(calibrate=False, evaluate=False)
    assert result.groups["trained"] == num_steps * PROMPTS_PER_STEP, result.groups
    steps = [metrics["time/step_s"] for metrics in result.metrics[WARM_UP:-WIND_DOWN]]
    stages = (sample_s, score_s, learn_s)
    ideal, step_s = (max(stages) if max_staleness else sum(stages)), statistics.mean(steps)
    return Measured(step_s=step_s, ideal_s=ideal, efficiency=ideal / step_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="steps of 100 ms; three times as many of 20 ms")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/overlap.json"))
    options = parser.parse_args()
    start_ray(num_cpus=4, object_store_memory=500 << 20)
    found, load = {}, os.getloadavg()
    for stage_ms in TARGETS:
        stage, num_steps = stage_ms / 1000, options.steps * (3 if stage_ms < 100 else 1)
        for num_stages in SPEEDUPS:
            times = (stage, stage if num_stages == 3 else 0.0, stage)
            sync = measure(*times, 0, num_steps)
            overlapped = measure(*times, MAX_STALENESS, num_steps)
            speedup = sync.step_s / overlapped.step_s
            found[f"{num_stages} stages of {stage_ms} ms"] = {
                "synchronous": asdict(sync),
                "overlapped": asdict(overlapped),
                "speedup": speedup,
                "targets": {"efficiency": TARGETS[stage_ms], "speedup": SPEEDUPS[num_stages]},
            }
            print(
                f"{num_stages} stages of {stage_ms} ms: {sync.step_s * 1e3:.1f} ms and {overlapped.step_s * 1e3:.1f} "
                f"ms a step, efficiency {overlapped.efficiency:.3f}, {speedup:.2f}x",
                flush=True,
            )
    ray.shutdown()
    write_json(options.out, {"found": found, "versions": versions(), "load_average": load})
    print(f"written {options.out}")


if __name__ == "__main__":
    main()
