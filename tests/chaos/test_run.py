"""Whole runs under faults: every group is accounted for, the byte bound holds, nothing spills."""

import random
import subprocess
import sys
from functools import partial
from itertools import accumulate, takewhile
from pathlib import Path

import pytest

from actors.cluster.compat import actor_info
from actors.cluster.diagnostics import actor_ids
from actors.pipeline import Pipeline
from benchmarks.stages import SleepLearner, SleepReward, SleepSampler, random_prompts
from rlir_ray.algorithm.ledger import Ledger
from rlir_ray.local import train_local
from tests.chaos.victims import kill_process
from tests.in_process import PER_STEP, run_in_process, stage_config

ROOT = Path(__file__).parents[2]


def make_pipeline(folder, *overrides, sample_s=0.01, score_s=0.005, learn_s=0.02, **options):
    """The real driver, pools, ledger and store around stages that sleep."""
    config = stage_config(folder, *overrides)
    stages = {
        "make_sampler": partial(SleepSampler, sample_s),
        "make_reward": partial(SleepReward, score_s),
        "make_learner": partial(SleepLearner, learn_s),
    }
    return Pipeline(config, prompts=partial(random_prompts, config), **stages | options)


def run(pipeline):
    return pipeline.train(calibrate=False, evaluate=False)


def ledger_of(result):
    return Ledger.from_json((result.folder / "ledger.json").read_text())


def kill_steps(chance, num_steps):
    """Every four to ten steps, and not after the last one: nothing would come to notice it."""
    steps = accumulate(chance.randint(4, 10) for _ in range(num_steps))
    return list(takewhile(lambda step: step < num_steps, steps))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_steps_with_kills_account_for_the_groups_of_a_run_without_any(ray_cluster, tmp_path):
    chance, kills = random.Random(0), []
    due = kill_steps(chance, 100)

    def kill(metrics):
        if metrics["step"] not in due:
            return
        actors = [
            *actor_ids(pipeline.driver.session.rollout.actors),
            *pipeline.driver.session.reward.deployment.actor_ids(),
        ]
        alive = [actor for actor in actors if actor_info(actor).state == "ALIVE"]
        kill_process(chance.choice(alive))
        kills.append(metrics["step"])

    pools = ["train.num_steps=100", "rollout.num_actors=2", "reward.num_replicas=2"]
    pipeline = make_pipeline(tmp_path / "killed", *pools, callbacks=[kill])
    killed = run(pipeline)
    assert kills == due and len(kills) >= 10
    assert [step["policy_version"] for step in killed.metrics] == list(range(1, 101))
    ledger, quiet = ledger_of(killed), Ledger()
    ledger.check()
    assert ledger.counts()["trained"] == ledger.next_group_id == 100 * PER_STEP
    config = pipeline.config
    stages = SleepSampler(0), SleepReward(0), SleepLearner(0)
    train_local(config, random_prompts(config, "train").prompts, *stages, ledger=quiet)
    assert ledger.to_json() == quiet.to_json()


@pytest.mark.timeout(120)
def test_a_reward_pool_that_is_ten_times_slower_holds_up_sampling_at_the_byte_bound(ray_cluster, tmp_path):
    said = []
    # Room for six groups of at most 54 KB where sixteen slots are free.
    config = stage_config(tmp_path, "train.num_steps=6", "train.max_staleness=3", "object_store_budget_bytes=330000")
    state = run_in_process(config, tmp_path, partial(SleepReward, 0.05), progress=said.append)
    counts = state.ledger.counts()
    assert counts["trained"] == 24 and counts["failed"] == 0
    assert max(metrics["object_store/peak_bytes"] for metrics in state.metrics) <= 330_000
    assert sum(metrics["time/room_s"] for metrics in state.metrics) > 0
    assert any(line.startswith("sampling waits for room: ") for line in said)


SMALL_STORE = """
import sys
import numpy as np
import ray
from ray._private import internal_api
from actors.cluster.start import SYSTEM_CONFIG, start_ray
from tests.chaos.test_run import make_pipeline, run

SYSTEM_CONFIG["automatic_object_spilling_enabled"] = sys.argv[3] == "spills"
start_ray(num_cpus=4, object_store_memory=100_000_000)
taken = ray.put(np.random.default_rng(0).random(int(sys.argv[2]) // 8))
# Groups of 2.5 MB; the slots would take twelve of them, more than the store has beside the weights.
pipeline = make_pipeline(
    sys.argv[1], "train.num_steps=25", "train.group_size=512", "train.max_staleness=2", "object_store_budget_bytes=0",
)
result = run(pipeline)
print("budget", pipeline.driver._budget_bytes, "peak", int(result.metrics[-1]["object_store/peak_bytes"]))
print("trained", result.groups["trained"])
print(internal_api.memory_summary(ray.get_runtime_context().gcs_address, stats_only=True))
ray.shutdown()
"""


def run_in_small_store(folder, taken_bytes, spilling="spills"):
    return subprocess.run(
        [sys.executable, "-c", SMALL_STORE, str(folder), str(taken_bytes), spilling],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nothing_spills_from_a_small_store_that_others_have_half_filled(tmp_path):
    done = run_in_small_store(tmp_path, 30_000_000)
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert int(words[words.index("trained") + 1]) == 100
    assert 0 < int(words[words.index("peak") + 1]) <= int(words[words.index("budget") + 1]) < 70_000_000
    assert "Plasma memory usage" in done.stdout and "Spilled" not in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_store_that_is_almost_full_is_refused_before_anything_starts(tmp_path):
    # Ray would spill the object that fills the store, at a moment of its own choice.
    done = run_in_small_store(tmp_path, 95_000_000, "keeps")
    assert done.returncode == 1
    assert "the object store must hold the groups in flight" in done.stderr
    assert "free it, start Ray with --object-store-memory=" in done.stderr
