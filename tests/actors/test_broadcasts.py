"""Weights by broadcast from a learner rank to rollout actors, over gloo."""

import threading
from functools import partial

import numpy as np
import pytest
import ray

from actors.learner.group import LearnerGroup
from actors.rollout.pool import RolloutPool
from actors.weights.sync import WeightSync
from benchmarks.stages import SleepLearner
from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.transfer.weights import checksum
from tests.chaos.victims import kill_process
from tests.fakes import tiny_prompts
from tests.light_world import LightSampler

TIMEOUT_S = 120


class Run:
    """A learner that steps on one group, and two rollout actors with their weight sync."""

    def __init__(self, config, folder):
        self.lines = []
        sampler = partial(LightSampler, checksum=checksum)
        self.learner = LearnerGroup.from_config(config, folder, partial(SleepLearner, 0.0))
        self.pool = RolloutPool.from_config(config, sampler)
        self.prompts_ref = ray.put(tiny_prompts(1, num_frames=3))
        ((group, _),) = sampler().sample(tiny_prompts(1, num_frames=3), [0], [0], 4)
        self.group_ref, self.num_calls = ray.put(group), 0
        self.pool.start()
        self.learner.start()
        self.sync = WeightSync.from_config(config, self.pool, self.lines.append)
        self.report = self.learner.wait_ready()
        self.pool.wait_ready()
        self.publish()

    def publish(self):
        self.sync.publish(self.report, self.learner.sender)

    def step(self):
        """One more version, published; what is sampled then is sampled with it."""
        values = np.linspace(-1, 1, 4, dtype=np.float32).reshape(4, 1)
        self.report = self.learner.step([self.group_ref], [GroupAdvantages.of_all(values)])
        self.publish()
        calls = []
        for _ in self.pool.actors:
            calls += self.pool.sample([self.num_calls], [7], self.prompts_ref)
            self.num_calls += 1
        return {each.policy_version for each in ray.get([call.report_ref for call in calls], timeout=TIMEOUT_S)}

    def held(self):
        """Checksums of what the actors' samplers hold."""
        self.sync.wait()
        asked = [each.__ray_call__.remote(lambda shell: checksum(shell.sampler.weights)) for each in self.pool.actors]
        return set(ray.get(asked, timeout=TIMEOUT_S))

    def stop(self):
        self.learner.stop()
        self.pool.stop()


@pytest.fixture
def start(ray_cluster, make_config, tmp_path):
    started = []

    def make(*overrides):
        config = make_config("rollout.num_actors=2", "learner.engine=torch", "train.max_staleness=1", *overrides)
        started.append(Run(config, tmp_path / "train"))
        return started[-1]

    yield make
    for each in started:
        each.stop()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_two_actors_hold_each_version_by_broadcast_and_a_third_that_joins_the_next(start):
    run = start("weights.transfer=broadcast", "weights.bucket_bytes=10000")
    for version in (1, 2):
        assert run.step() == {version}
        assert run.held() == {run.report.checksum}
    assert run.sync.broadcasts.num_complete == 3 and run.lines == []
    new = run.pool.grow(1)
    run.sync.join(new, threading.Event())
    assert run.step() == {3}
    assert run.held() == {run.report.checksum} and len(run.pool.actors) == 3
    assert run.sync.broadcasts.num_complete == 4 and run.lines == []


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_after_the_loss_of_an_actor_the_store_serves_one_version_and_the_next_is_broadcast(start):
    run = start("weights.transfer=broadcast")
    assert run.step() == {1} and run.held() == {run.report.checksum}
    kill_process(run.pool.actors[0])
    assert run.step() == {2} and run.held() == {run.report.checksum}
    assert run.sync.broadcasts.num_complete == 2
    (line,) = run.lines
    assert line.startswith("weights of version 2: 2 of 2 rollout actors loaded them from the object store: ")
    assert run.step() == {3} and run.held() == {run.report.checksum}
    assert run.sync.broadcasts.num_complete == 3 and len(run.lines) == 1
