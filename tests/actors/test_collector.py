"""The collector with scores that are already there: no actor is started."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
import ray

from actors.checkpointing import _from_json, _to_json
from actors.cluster.waiting import Stopped
from actors.collector import Collector
from actors.reward.replica import ScoreReport
from actors.rollout.actor import CallReport
from actors.rollout.pool import GroupRefs
from rlir_ray.algorithm.admission import Admission
from rlir_ray.algorithm.ledger import Ledger
from rlir_ray.run.tracing import Span
from rlir_ray.trajectory import RewardScores

VARIED = np.array([[0.0], [1.0], [0.0], [1.0]], np.float32)
SPAN = Span(start_s=0.0, end_s=0.1, host="here", process=1)
EQUAL = np.ones((4, 1), np.float32)


class Pools:
    """Answers every group at once with the rewards that `rewards` gives, sampled at `version`."""

    def __init__(self, rewards: Callable[[int], np.ndarray]) -> None:
        self.rewards, self.version, self.calls = rewards, 0, []
        self.failures = {}

    def submit(self, group_ids, seeds, indices):
        self.calls.append(list(group_ids))
        report_ref = ray.put(
            CallReport(
                call_id=group_ids[0],
                policy_version=self.version,
                span=SPAN,
                column_bytes=dict.fromkeys(group_ids, 60),
                failures=self.failures,
            )
        )
        return [(GroupRefs(f"group {i}", f"video {i}", report_ref), self.answer(i)) for i in group_ids]

    def answer(self, group_id):
        future = Future()
        try:
            scores = RewardScores(group_id=group_id, frame_rewards=self.rewards(group_id))
            future.set_result(ScoreReport(scores=scores, seconds=0.1, span=SPAN))
        except RuntimeError as error:
            future.set_exception(error)
        return future


def make_collector(config, pools, budget_bytes=10_000):
    train = config.train
    admission = Admission(train.max_staleness, train.prompts_per_step, budget_bytes)
    return Collector(
        config,
        Ledger(),
        admission,
        pools.submit,
        prompt_ids=[f"p{i}" for i in range(12)],
        group_bytes=100,
        stop=threading.Event(),
    )


def failing(group_id):
    raise RuntimeError(f"no clip for {group_id}")


def test_groups_go_out_in_order_and_calls_hold_prompts_per_call(ray_cluster, make_config):
    pools = Pools(lambda group_id: VARIED)
    groups = make_collector(make_config(), pools).collect(version=0, num_steps_left=2)
    assert [group.group_id for group in groups] == [0, 1, 2, 3]
    assert pools.calls == [[0, 1], [2, 3]]


def test_a_group_with_equal_rewards_is_dropped_and_replaced(ray_cluster, make_config):
    pools = Pools(lambda group_id: EQUAL if group_id == 1 else VARIED)
    collector = make_collector(make_config(), pools)
    assert [group.group_id for group in collector.collect(version=0, num_steps_left=2)] == [0, 2, 3, 4]
    assert pools.calls[-1] == [4]
    assert collector.ledger[1].state == "no_signal"


def test_a_failed_group_is_written_down_with_its_cause_and_replaced(ray_cluster, make_config):
    pools = Pools(lambda group_id: failing(group_id) if group_id == 2 else VARIED)
    collector = make_collector(make_config(), pools)
    assert [group.group_id for group in collector.collect(version=0, num_steps_left=2)] == [0, 1, 3, 4]
    assert (collector.ledger[2].state, collector.ledger[2].cause) == ("failed", "RuntimeError: no clip for 2")


def test_a_group_whose_numbers_are_not_finite_has_failed_whatever_its_reward_says(ray_cluster, make_config):
    pools = Pools(lambda group_id: VARIED)
    pools.failures = {1: "behavior log-probabilities must be finite"}
    collector = make_collector(make_config(), pools)
    assert [group.group_id for group in collector.collect(version=0, num_steps_left=2)] == [0, 2, 3, 4]
    assert (collector.ledger[1].state, collector.ledger[1].cause) == ("failed", pools.failures[1])


@pytest.mark.parametrize(("overrides", "number"), [((), 11), (("train.max_failed_fraction=0",), 1)])
def test_too_many_failures_stop_the_run_in_one_line(ray_cluster, make_config, overrides, number):
    with pytest.raises(RuntimeError, match=rf"^{number} of the last .* no clip for") as stop:
        make_collector(make_config(*overrides), Pools(failing)).collect(version=0, num_steps_left=2)
    assert "\n" not in str(stop.value)


def test_a_group_older_than_max_staleness_is_never_trained(ray_cluster, make_config):
    pools = Pools(lambda group_id: VARIED)
    collector = make_collector(make_config("train.max_staleness=1"), pools)
    collector.finish(collector.collect(version=0, num_steps_left=9))
    # Groups 4..7 were admitted together with the first ones, at version 0: too old at version 2.
    pools.version = 2
    groups = collector.collect(version=2, num_steps_left=8)
    assert all(group.report.policy_version == 2 for group in groups)
    assert [collector.ledger[i].state for i in range(8)] == ["trained"] * 4 + ["stale"] * 4


def test_one_step_ahead_is_admitted_with_max_staleness_1_and_none_with_0(ray_cluster, make_config):
    for max_staleness, num_groups in ((0, 4), (1, 8)):
        pools = Pools(lambda group_id: VARIED)
        make_collector(make_config(f"train.max_staleness={max_staleness}"), pools).collect(version=0, num_steps_left=9)
        assert sum(map(len, pools.calls)) == num_groups


def test_no_group_is_sampled_beyond_the_last_step(ray_cluster, make_config):
    pools = Pools(lambda group_id: VARIED)
    make_collector(make_config("train.max_staleness=3"), pools).collect(version=0, num_steps_left=1)
    assert sum(map(len, pools.calls)) == 4


def test_bytes_in_flight_stay_under_the_budget(ray_cluster, make_config):
    pools = Pools(lambda group_id: VARIED)
    collector = make_collector(make_config("train.max_staleness=3"), pools, budget_bytes=950)
    for version in range(3):
        collector.finish(collector.collect(version=version, num_steps_left=9))
    assert 0 < collector.admission.peak_bytes <= 950


def test_groups_of_a_checkpoint_are_ready_or_sampled_again_with_their_ids(ray_cluster, make_config):
    config, pools = make_config("train.max_staleness=2"), Pools(lambda group_id: VARIED)
    first = make_collector(config, pools)
    first.finish(first.collect(version=0, num_steps_left=9))
    ready = first.ready()
    ahead = first.ledger.in_flight
    assert len(ahead) == 8 and {group.group_id for group in ready} <= set(ahead)
    ledger, kept = Ledger.from_json(first.ledger.to_json()), ready[:1]
    pools.calls.clear()
    second = make_collector(config, pools)
    second.ledger = ledger
    second.restore(kept)
    again = [group_id for call in pools.calls for group_id in call]
    assert sorted([*again, *(group.group_id for group in kept)]) == ahead
    assert second.admission.in_flight == 8
    groups = [*second.collect(version=1, num_steps_left=2), *second.collect(version=1, num_steps_left=1)]
    assert [group.group_id for group in groups] == ahead
    assert groups[0] is kept[0]


def test_a_group_beyond_the_budget_after_a_resume_fails_with_its_cause(ray_cluster, make_config):
    config, pools = make_config("train.max_staleness=2"), Pools(lambda group_id: VARIED)
    collector = make_collector(config, pools, budget_bytes=450)
    for group_id in range(6):
        collector.ledger.admit(group_id, "p")
    collector.restore([])
    assert pools.calls == [[0, 1], [2, 3]]
    assert [collector.ledger[group_id].state for group_id in (4, 5)] == ["failed", "failed"]
    assert collector.ledger[4].cause.startswith("the run resumed with less room")


def test_a_stop_ends_the_wait(ray_cluster, make_config):
    pools = Pools(lambda group_id: VARIED)
    pools.answer = lambda group_id: Future()
    collector = make_collector(make_config(), pools)
    collector.stop.set()
    with pytest.raises(Stopped):
        collector.collect(version=0, num_steps_left=1)


def test_a_wait_is_bounded_and_says_for_what_how_long_and_what_to_do(ray_cluster, make_config):
    pools = Pools(lambda group_id: VARIED)
    pools.answer = lambda group_id: Future()
    collector = make_collector(make_config("train.wait_timeout_s=0.3"), pools)
    with pytest.raises(TimeoutError, match=r"waited 0 s for the scores of 4 groups .* raise train.wait_timeout_s"):
        collector.collect(version=0, num_steps_left=1)


class LatePools(Pools):
    """Answers every group a little later."""

    def answer(self, group_id):
        late, ready = Future(), super().answer(group_id)
        threading.Timer(0.1, lambda: late.set_result(ready.result(0))).start()
        return late


class SlowPools(Pools):
    """Answers only the groups that are let out; the others are still being sampled."""

    def __init__(self, rewards: Callable[[int], np.ndarray]) -> None:
        super().__init__(rewards)
        self.futures = {}

    def answer(self, group_id):
        self.futures[group_id] = Future()
        return self.futures[group_id]

    def let_out(self, *group_ids):
        for group_id in group_ids:
            self.futures[group_id].set_result(super().answer(group_id).result(0))


def collect_later(collector, pools, late):
    """Collects a step while all groups but one are there; that one comes a little later."""
    collector.admit(25)
    pools.let_out(*(group_id for group_id in pools.futures if group_id != late))
    timer = threading.Timer(0.5, pools.let_out, [late])
    timer.start()
    groups = [group.group_id for group in collector.collect(version=0, num_steps_left=9)]
    timer.join(10)
    return groups


def test_a_slow_group_is_waited_for_or_overtaken_by_stale_policy(ray_cluster, make_config):
    for policy, expected in (("wait", [0, 1, 2, 3]), ("drop", [0, 2, 3, 4])):
        pools = SlowPools(lambda group_id: VARIED)
        collector = make_collector(make_config("train.max_staleness=1", f"train.stale_policy={policy}"), pools)
        assert collect_later(collector, pools, late=1) == expected


def test_a_wait_for_room_is_reported_once_and_measured(ray_cluster, make_config):
    pools, said = LatePools(lambda group_id: VARIED), []
    # Room for five groups of at most 100 bytes where eight slots are free.
    collector = make_collector(make_config("train.max_staleness=1"), pools, budget_bytes=500)
    collector.progress = said.append
    for version in range(2):
        groups = collector.collect(version=version, num_steps_left=9 - version)
        collector.finish(groups)
        metrics = collector.metrics(groups, version)
    assert len(said) == 1 and said[0].startswith("sampling waits for room: ")
    assert "of object_store_budget_bytes=500" in said[0]
    assert metrics["time/room_s"] > 0 and metrics["object_store/peak_bytes"] <= 500


def test_a_scored_group_holds_its_columns_only(ray_cluster, make_config):
    pools = SlowPools(lambda group_id: VARIED)
    collector = make_collector(make_config(), pools)
    collector.admit(1)
    assert collector.admission.bytes_in_flight == 400
    pools.let_out(0, 1, 2, 3)
    collector.collect(version=0, num_steps_left=1)
    assert collector.admission.bytes_in_flight == 240


def finish(collector, groups, version):
    """What the driver does when a step has ended: slots come free, and are used."""
    collector.finish(groups)
    return collector.metrics(groups, version)


def test_a_search_for_signal_counts_no_groups_of_other_steps(ray_cluster, make_config):
    # One group in four has no signal, and the learner is slow: steps are collected, none ends.
    pools = Pools(lambda group_id: EQUAL if group_id % 4 == 3 else VARIED)
    collector = make_collector(make_config("train.max_staleness=31", "train.prompts_per_step=2"), pools)
    for _ in range(31):
        assert len(collector.collect(version=0, num_steps_left=99)) == 2
    assert collector.ledger.counts()["no_signal"] > 16


def test_ready_groups_beyond_a_step_show_that_there_is_signal(ray_cluster, make_config):
    # Group 0 comes last; 66 others are ready long before it, and one has no signal.
    pools = SlowPools(lambda group_id: EQUAL if group_id == 67 else VARIED)
    collector = make_collector(make_config("train.max_staleness=16"), pools)
    collector.admit(99)
    pools.let_out(*range(1, 68))
    timer = threading.Timer(0.5, pools.let_out, [0])
    timer.start()
    assert [group.group_id for group in collector.collect(version=0, num_steps_left=99)] == [0, 1, 2, 3]
    timer.join(10)


def test_a_step_that_finds_no_signal_in_16_times_its_groups_ends_the_run(ray_cluster, make_config):
    pools = Pools(lambda group_id: VARIED if group_id < 3 else EQUAL)
    collector = make_collector(make_config(), pools)
    with pytest.raises(ValueError, match=r"a step needs 4 groups .* got 64 groups and still lacks 1;"):
        collector.collect(version=0, num_steps_left=1)


def test_a_steps_rewards_are_those_of_its_groups_and_of_what_it_dropped_whenever_they_were_scored(
    ray_cluster, make_config
):
    # All groups but group 1 have signal; group 6's clips are worth twice as much.
    rewards = {1: EQUAL, 6: 2 * VARIED}
    pools = Pools(lambda group_id: rewards.get(group_id, VARIED))
    collector = make_collector(make_config("train.max_staleness=1"), pools)
    first = collector.collect(version=0, num_steps_left=2)
    second = collector.collect(version=1, num_steps_left=1)
    assert [[group.group_id for group in groups] for groups in (first, second)] == [[0, 2, 3, 4], [5, 6, 7, 8]]
    # (4 * 0.5 + 1) / 5, and (3 * 0.5 + 1) / 4 of groups that were scored before the first step ended.
    assert finish(collector, first, 0)["reward/mean"] == pytest.approx(0.6)
    assert finish(collector, second, 1)["reward/mean"] == pytest.approx(0.625)


def test_a_step_after_a_resume_has_the_rewards_of_the_groups_that_the_checkpoint_held(ray_cluster, make_config):
    config, pools = make_config("train.max_staleness=1"), Pools(lambda group_id: VARIED)
    collector = make_collector(config, pools)
    group = collector.collect(version=0, num_steps_left=1)[0]
    scores = replace(group.scores, rules={"exact": 0.25}, confusion={"jump": np.array([[2, 1], [0, 3]])})
    content = json.loads(json.dumps(_to_json(replace(group, scores=scores))))
    found = _from_json(content, group.group_ref).scores
    np.testing.assert_array_equal(found.frame_rewards, VARIED)
    assert (found.group_id, found.rules, found.confusion["jump"].tolist()) == (0, {"exact": 0.25}, [[2, 1], [0, 3]])
