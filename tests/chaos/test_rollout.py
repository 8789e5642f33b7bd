"""Rollout actors that are killed: their groups come all the same, sampled with the version that they were meant for."""

import time
from functools import partial

import numpy as np
import pytest
import ray

from actors.rollout.pool import RolloutPool
from tests.chaos.victims import kill_process, process_id
from tests.fakes import tiny_prompts
from tests.light_world import DeadlySampler, LightSampler, light_checksum, light_tokens, light_weights

DEADLINE_S = 60
VERSION = 3


@pytest.fixture
def pool(ray_cluster, make_config):
    # At this pace a call can be hit in its middle.
    pool = RolloutPool.from_config(make_config(), partial(LightSampler, sample_s=0.5))
    pool.start()
    weights = light_weights(VERSION)
    ray.get(pool.load_weights(ray.put(weights), VERSION, light_checksum(weights)), timeout=DEADLINE_S)
    yield pool
    pool.stop()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("state", ["idle", "queued", "computing"])
def test_a_killed_rollout_actor_gives_the_groups_that_it_would_have_given(pool, state):
    """Idle: the next call finds it dead. Computing: in the first call's middle. Queued: the later calls wait behind."""
    prompts = tiny_prompts(4, num_frames=3)
    refs = [ray.put([prompt]) for prompt in prompts]
    first = process_id(pool.actors[0])
    if state == "idle":
        kill_process(pool.actors[0])
    calls = [pool.sample([index], [7 + index], refs[index]) for index in range(4)]
    if state == "computing":
        time.sleep(0.2)
        kill_process(pool.actors[0])
    if state == "queued":
        ray.get(calls[0][0].report_ref, timeout=DEADLINE_S)
        kill_process(pool.actors[0])
    reports = ray.get([call[0].report_ref for call in calls], timeout=DEADLINE_S)
    assert [report.policy_version for report in reports] == [VERSION] * 4
    groups = ray.get([call[0].group_ref for call in calls], timeout=DEADLINE_S)
    assert [group.group_id for group in groups] == [0, 1, 2, 3]
    for index, group in enumerate(groups):
        expected = light_tokens(VERSION, 7 + index, prompts[index], pool.group_size)
        np.testing.assert_array_equal(group.record.tokens, expected)
    assert process_id(pool.actors[0]) != first


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_group_that_ends_every_actor_fails_and_no_other_group_fails(ray_cluster, make_config):
    pool = RolloutPool.from_config(make_config(), partial(DeadlySampler, 13))
    pool.start()
    prompt = ray.put(tiny_prompts(1))
    (deadly,) = pool.sample([13], [0], prompt)
    others = [pool.sample([group_id], [0], prompt)[0] for group_id in (14, 15, 16)]
    groups = ray.get([other.group_ref for other in others], timeout=4 * DEADLINE_S)
    assert [group.group_id for group in groups] == [14, 15, 16]
    with pytest.raises(RuntimeError, match="sampling group 13 ended its process 4 times"):
        ray.get(deadly.group_ref, timeout=DEADLINE_S)
    pool.stop()
