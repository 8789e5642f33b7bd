"""Transfers of weights that are cut in the middle: the old version goes on serving, and the next one is loaded."""

import numpy as np
import pytest
import ray

from actors.cluster.placement import as_actor
from actors.learner.command_queue import StepReport
from actors.rollout.actor import build_sampler
from actors.rollout.pool import RolloutPool
from actors.weights.sync import MAX_FAILED_VERSIONS, WeightSync
from rlir_ray.run.tracing import span_since
from rlir_ray.transfer.weights import checksum, weights_of
from tests.chaos.victims import kill_process
from tests.fakes import tiny_prompts, tiny_world_model

DEADLINE_S, SEED = 60, 7
PROMPT = tiny_prompts(1, num_frames=3)[0]


class Publisher:
    """What a learner rank does when a step is over. It owns what it puts."""

    def publish(self, version, *, spoilt=False):
        weights = weights_of(tiny_world_model(seed=version))
        published = checksum(weights)
        if spoilt:
            next(iter(weights.values())).reshape(-1).view(np.uint8)[17] ^= 4
        return StepReport(
            version=version, metrics={}, weights_refs=[ray.put(weights)], checksum=published, span=span_since(0.0)
        )


class Run:
    """A pool of two actors with its weight sync, and whoever publishes."""

    def __init__(self, config):
        self.config, self.pool, self.lines = config, RolloutPool.from_config(config), []
        self.pool.start()
        self.pool.wait_ready()
        self.sync = WeightSync(self.pool, DEADLINE_S, self.lines.append)
        self.num_calls = 0
        self.publisher = self.start_publisher()

    def start_publisher(self):
        return as_actor(Publisher).remote()

    def publish(self, version, **options):
        self.sync.publish(ray.get(self.publisher.publish.remote(version, **options), timeout=DEADLINE_S))

    def sampled(self):
        """The versions that the next call of each actor is sampled with; its clips are those of that version alone."""
        calls = []
        for _ in self.pool.actors:
            calls += self.pool.sample([self.num_calls], [SEED], ray.put([PROMPT]))
            self.num_calls += 1
        reports = ray.get([call.report_ref for call in calls], timeout=DEADLINE_S)
        groups = ray.get([call.group_ref for call in calls], timeout=DEADLINE_S)
        for report, group in zip(reports, groups, strict=True):
            np.testing.assert_array_equal(group.record.tokens, self.expected_tokens(report.policy_version))
        return [report.policy_version for report in reports]

    def expected_tokens(self, version):
        sampler = build_sampler(self.config)
        sampler.load_weights(weights_of(tiny_world_model(seed=version)), version)
        ((group, _),) = sampler.sample([PROMPT], [0], [SEED], self.config.train.group_size)
        return group.record.tokens


@pytest.fixture
def run(ray_cluster, make_config):
    run = Run(make_config("rollout.num_actors=2", "train.max_staleness=1"))
    run.publish(1)
    yield run
    run.pool.stop()


def kill_publisher(run):
    report = ray.get(run.publisher.publish.remote(2), timeout=DEADLINE_S)
    kill_process(run.publisher)
    run.publisher = run.start_publisher()
    ray.get(run.publisher.__ray_ready__.remote(), timeout=DEADLINE_S)
    run.sync.publish(report)


def spoil(run):
    run.publish(2, spoilt=True)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("cut", [kill_publisher, spoil])
def test_after_a_cut_transfer_the_old_version_samples_whole_and_the_next_one_is_loaded(run, cut):
    assert run.sampled() == [1, 1]
    cut(run)
    assert run.sampled() == [1, 1]
    run.publish(3)
    assert run.sampled() == [3, 3]
    (line,) = run.lines
    assert line.startswith("weights of version 2: 2 of 2 rollout actors could not load them: ") and "\n" not in line
    assert line.endswith("; they keep the version before")


@pytest.mark.timeout(180)
def test_a_publisher_that_dies_while_others_read_leaves_each_with_one_whole_version(run):
    run.publish(2)
    kill_process(run.publisher)
    versions = run.sampled()
    assert set(versions) <= {1, 2}
    run.publisher = run.start_publisher()
    run.publish(3)
    assert run.sampled() == [3, 3]


@pytest.mark.timeout(180)
def test_versions_that_never_arrive_end_the_run_in_one_line(run):
    for version in range(2, 2 + MAX_FAILED_VERSIONS):
        run.publish(version, spoilt=True)
    with pytest.raises(
        RuntimeError, match=f"the weights of {MAX_FAILED_VERSIONS} versions in a row did not reach the rollout pool"
    ):
        run.sync.wait()
    assert len(run.lines) == MAX_FAILED_VERSIONS


@pytest.mark.timeout(180)
def test_a_call_fails_where_the_version_before_is_too_old(ray_cluster, make_config):
    run = Run(make_config("rollout.num_actors=1"))
    run.publish(1)
    assert run.sampled() == [1]
    run.publish(2, spoilt=True)
    with pytest.raises(ValueError, match="must have the published checksum"):
        run.sampled()
    run.pool.stop()
