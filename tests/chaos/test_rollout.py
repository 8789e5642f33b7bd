"""Rollout actors that are killed: their groups come all the same, sampled with the version that they were meant for."""

import os
import time

import numpy as np
import pytest
import ray

from actors.rollout.actor import build_sampler
from actors.rollout.pool import RolloutPool
from rlir_ray.transfer.weights import checksum, weights_of
from tests.chaos.victims import kill_process, process_id
from tests.fakes import tiny_prompts, tiny_world_model

DEADLINE_S = 60
VERSION = 3


class Unhurried:
    """The configured sampler, at a pace at which a call can be hit in its middle."""

    def __init__(self, config):
        self.sampler = build_sampler(config)

    def __getattr__(self, name):
        return getattr(self.sampler, name)

    def sample(self, *arguments):
        drawn = self.sampler.sample(*arguments)
        time.sleep(0.5)
        return drawn


@pytest.fixture
def pool(ray_cluster, make_config):
    config = make_config()
    pool = RolloutPool.from_config(config, lambda: Unhurried(config))
    pool.start()
    weights = weights_of(tiny_world_model(seed=5))
    ray.get(pool.load_weights(ray.put(weights), VERSION, checksum(weights)), timeout=DEADLINE_S)
    yield pool
    pool.stop()


def expected_tokens(config, seed, prompt, group_id):
    sampler = build_sampler(config)
    sampler.load_weights(weights_of(tiny_world_model(seed=5)), VERSION)
    ((group, _),) = sampler.sample([prompt], [group_id], [seed], config.train.group_size)
    return group.record.tokens


@pytest.mark.timeout(180)
@pytest.mark.parametrize("state", ["idle", "queued", "computing"])
def test_a_killed_rollout_actor_gives_the_groups_that_it_would_have_given(pool, make_config, state):
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
        expected = expected_tokens(make_config(), 7 + index, prompts[index], index)
        np.testing.assert_array_equal(group.record.tokens, expected)
    assert process_id(pool.actors[0]) != first


class Deadly:
    """The configured sampler; the process aborts when it samples group 13."""

    def __init__(self, config):
        self.sampler = build_sampler(config)

    def __getattr__(self, name):
        return getattr(self.sampler, name)

    def sample(self, prompts, group_ids, seeds, group_size):
        if 13 in group_ids:
            os.abort()
        return self.sampler.sample(prompts, group_ids, seeds, group_size)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_group_that_ends_every_actor_fails_and_no_other_group_fails(ray_cluster, make_config):
    config = make_config()
    pool = RolloutPool.from_config(config, lambda: Deadly(config))
    pool.start()
    prompt = ray.put(tiny_prompts(1))
    (deadly,) = pool.sample([13], [0], prompt)
    (other,) = pool.sample([14], [0], prompt)
    assert ray.get(other.group_ref, timeout=4 * DEADLINE_S).group_id == 14
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(deadly.group_ref, timeout=DEADLINE_S)
    pool.stop()
