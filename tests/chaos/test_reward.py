"""Reward replicas that are killed, and groups whose scoring never ends: no group is lost."""

import time
from functools import partial

import pytest
import ray

from actors.reward.pool import RewardPool
from tests.chaos.victims import kill_process
from tests.own_rewards import SleepReward, StuckReward, small_video

DEADLINE_S = 90


@pytest.fixture
def start_pool(ray_cluster, make_config):
    pools = []

    def start(make_reward, *overrides):
        pools.append(RewardPool.from_config(make_config(*overrides), make_reward=make_reward))
        pools[-1].start()
        return pools[-1]

    yield start
    for pool in pools:
        pool.stop()


def submit(pool, numbers):
    return [pool.score(ray.put(small_video(number))) for number in numbers]


def group_ids(futures):
    return [future.result(DEADLINE_S).scores.group_id for future in futures]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("state", [pytest.param("idle", marks=pytest.mark.slow), "computing"])
def test_groups_of_a_killed_replica_are_scored_by_its_successor(start_pool, state, tmp_path):
    """The only replica of the pool; while it computes one group, the others are queued behind."""
    pool = start_pool(partial(SleepReward, tmp_path, 0.3))
    assert group_ids(submit(pool, [0])) == [0]
    (victim,) = pool.deployment.actor_ids()
    if state == "idle":
        kill_process(victim)
    scored = submit(pool, range(1, 9))
    if state == "computing":
        time.sleep(0.5)
        kill_process(victim)
    assert group_ids(scored) == list(range(1, 9))
    # Those that the victim had finished were not read again.
    counted = sorted(int(line) for path in tmp_path.iterdir() for line in path.read_text().split())
    assert set(counted) == set(range(9)) and len(counted) <= 9 + 1


@pytest.mark.timeout(300)
def test_a_scoring_that_hangs_is_given_to_another_replica(start_pool, tmp_path):
    pool = start_pool(partial(StuckReward, tmp_path, 3), "reward.timeout_s=2")
    assert group_ids(submit(pool, range(6))) == list(range(6))
    assert len((tmp_path / "met").read_text().split()) == 1
