"""The collector with scores that are already there: no actor is started."""

import threading
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest
import ray

from actors.collector import Collector
from actors.pools import GroupRefs
from actors.reward import Scored
from actors.rollout import CallReport
from actors.waiting import Stopped
from rlir_ray.ledger import Ledger
from rlir_ray.staleness import Admission
from rlir_ray.trajectory import RewardScores

VARIED = np.array([[0.0], [1.0], [0.0], [1.0]], np.float32)
EQUAL = np.ones((4, 1), np.float32)


class Pools:
    """Answers every group at once with the rewards that `rewards` gives, sampled at `version`."""

    def __init__(self, rewards: Callable[[int], np.ndarray]) -> None:
        self.rewards, self.version, self.calls = rewards, 0, []

    def submit(self, group_ids, seeds, indices):
        self.calls.append(list(group_ids))
        report_ref = ray.put(CallReport(call_id=group_ids[0], policy_version=self.version, seconds=0.1))
        return [(GroupRefs(f"group {i}", f"video {i}", report_ref), self.answer(i)) for i in group_ids]

    def answer(self, group_id):
        future = Future()
        try:
            scores = RewardScores(group_id=group_id, frame_rewards=self.rewards(group_id))
            future.set_result(Scored(scores=scores, seconds=0.1))
        except RuntimeError as error:
            future.set_exception(error)
        return future


def make_collector(config, pools, budget_bytes=10_000):
    train = config.train
    admission = Admission(train.max_staleness, train.prompts_per_step, budget_bytes)
    return Collector(
        config, Ledger(), admission, pools.submit, prompt_ids=[f"p{i}" for i in range(12)], group_bytes=100,
        stop=threading.Event(),
    )  # fmt: skip


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


def test_too_many_failures_stop_the_run_in_one_line(ray_cluster, make_config):
    with pytest.raises(RuntimeError, match=r"^11 of the last .* no clip for") as stop:
        make_collector(make_config(), Pools(failing)).collect(version=0, num_steps_left=2)
    assert "\n" not in str(stop.value)


def test_a_group_older_than_max_staleness_is_never_handed_out(ray_cluster, make_config):
    pools = Pools(lambda group_id: VARIED)
    collector = make_collector(make_config("train.max_staleness=1"), pools)
    collector.trained(collector.collect(version=0, num_steps_left=9))
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


def test_nothing_is_sampled_for_steps_that_will_not_come(ray_cluster, make_config):
    pools = Pools(lambda group_id: VARIED)
    make_collector(make_config("train.max_staleness=3"), pools).collect(version=0, num_steps_left=1)
    assert sum(map(len, pools.calls)) == 4


def test_bytes_in_flight_stay_under_the_budget(ray_cluster, make_config):
    pools = Pools(lambda group_id: VARIED)
    collector = make_collector(make_config("train.max_staleness=3"), pools, budget_bytes=950)
    for version in range(3):
        collector.trained(collector.collect(version=version, num_steps_left=9))
    assert 0 < collector.admission.peak_bytes <= 950


def test_what_a_checkpoint_had_ahead_of_the_learner_is_ready_or_sampled_again_under_its_number(
    ray_cluster, make_config
):
    config, pools = make_config("train.max_staleness=2"), Pools(lambda group_id: VARIED)
    first = make_collector(config, pools)
    first.trained(first.collect(version=0, num_steps_left=9))
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


def test_what_no_longer_fits_the_budget_after_a_resume_has_failed_with_its_cause(ray_cluster, make_config):
    config, pools = make_config("train.max_staleness=2"), Pools(lambda group_id: VARIED)
    collector = make_collector(config, pools, budget_bytes=450)
    for group_id in range(6):
        collector.ledger.admit(group_id, "p")
    collector.restore([])
    assert pools.calls == [[0, 1], [2, 3]]
    assert [collector.ledger[group_id].state for group_id in (4, 5)] == ["failed", "failed"]
    assert collector.ledger[4].cause.startswith("the run went on with less room")


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
