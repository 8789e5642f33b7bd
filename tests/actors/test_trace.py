"""Where the time of an overlapped run went: its Chrome trace and its metrics."""

import json

import pytest

from actors.pipeline import Pipeline
from rlir_ray.algorithm.ledger import Ledger
from tests.world import tiny_prompt_set

NUM_STEPS, PER_STEP, PER_CALL = 5, 4, 2


def number_in(name):
    """The number in `sample from 4 on`, `score 5` or `step 2`."""
    (number,) = (int(word) for word in name.split() if word.isdigit())
    return number


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_trace_shows_the_work_of_all_pools_and_every_step_where_its_time_went(ray_cluster, make_config, tmp_path):
    trace = tmp_path / "trace.json"
    config = make_config(f"train.num_steps={NUM_STEPS}", "train.max_staleness=1", "checkpoint.every=2")
    pipeline = Pipeline(config, prompts=tiny_prompt_set, trace=trace)
    result = pipeline.train(calibrate=False, evaluate=False)
    work = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    began = {
        pool: {number_in(event["name"]): event["ts"] for event in work if event["cat"] == pool}
        for pool in ("rollout", "reward", "learner", "driver")
    }
    assert {event["cat"] for event in work} == set(began)
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in work)
    # Every call and every step has its span, and every group that was scored. Groups that were read together share one,
    # named by the group whose scores arrived first, which may be any of them.
    num_groups = Ledger.from_json((result.folder / "ledger.json").read_text(encoding="utf-8")).next_group_id
    assert began["rollout"].keys() == set(range(0, num_groups, PER_CALL))
    assert len(began["reward"]) >= 2 and began["reward"].keys() <= set(range(num_groups))
    assert result.groups["trained"] == NUM_STEPS * PER_STEP
    assert began["learner"].keys() == began["driver"].keys() == set(range(1, NUM_STEPS + 1))
    for group_id, scored in began["reward"].items():
        call = max(first for first in began["rollout"] if first <= group_id)
        assert group_id - call < PER_CALL and scored > began["rollout"][call]
    logged = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [step["policy_version"] for step in logged] == list(range(1, NUM_STEPS + 1))
    # Sampling goes on while the loop waits for the step before a checkpoint: groups that were sampled after the
    # checkpoint only would be fresh.
    assert [step["staleness/max"] for step in logged] == [0, 1, 1, 1, 1]
    # The first command came after groups had been sampled and scored.
    assert logged[0]["time/learner_wait_s"] > 0
    for step in logged:
        assert {"time/sample_idle_s", "time/score_idle_s", "time/learn_idle_s"} <= step.keys()
        assert step["time/learner_wait_s"] >= 0
        # The groups that the step trained, whenever they were scored.
        assert 0 <= step["reward/mean"] <= 1
        assert step["overlap/ceiling"] >= 1 and step["overlap/reached"] > 0
