"""Transfers of weights that are cut in the middle: the old version goes on serving, and the next one is loaded."""

import time

import numpy as np
import pytest
import ray

from actors.cluster.placement import as_actor, stop_actors
from actors.rollout.pool import RolloutPool
from actors.weights.sync import MAX_FAILED_VERSIONS, WeightSync
from tests.chaos.victims import kill_process
from tests.fakes import tiny_prompts
from tests.light_world import LightSampler, Publisher, light_tokens
from tests.world import tiny_config

DEADLINE_S, SEED = 60, 7
PROMPT = tiny_prompts(1, num_frames=3)[0]


class Run:
    """A pool with its weight sync, and whoever publishes. Versions go on from test to test."""

    def __init__(self, config):
        self.pool = RolloutPool.from_config(config, LightSampler)
        self.pool.start()
        self.pool.wait_ready()
        self.publisher = self.start_publisher()
        self.num_calls, self.version = 0, 0

    def begin(self):
        """A weight sync of a test's own; the actors hold a new version."""
        self.lines = []
        self.sync = WeightSync(self.pool, DEADLINE_S, self.lines.append)
        return self.publish()

    def stop(self):
        self.pool.stop()
        stop_actors([self.publisher])

    def start_publisher(self):
        return as_actor(Publisher).remote()

    def made(self, **options):
        """The report of the next version."""
        self.version += 1
        return ray.get(self.publisher.publish.remote(self.version, **options), timeout=DEADLINE_S)

    def publish(self, **options):
        """Returns the version."""
        self.sync.publish(self.made(**options))
        return self.version

    def sampled(self):
        """The versions that the next call of each actor is sampled with; its clips are those of that version alone."""
        calls = []
        for _ in self.pool.actors:
            calls += self.pool.sample([self.num_calls], [SEED], ray.put([PROMPT]))
            self.num_calls += 1
        reports = ray.get([call.report_ref for call in calls], timeout=DEADLINE_S)
        groups = ray.get([call.group_ref for call in calls], timeout=DEADLINE_S)
        for report, group in zip(reports, groups, strict=True):
            expected = light_tokens(report.policy_version, SEED, PROMPT, self.pool.group_size)
            np.testing.assert_array_equal(group.record.tokens, expected)
        return [report.policy_version for report in reports]


@pytest.fixture(scope="module")
def two_actors(ray_cluster, checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    run = Run(tiny_config(checkpoints, folder, "rollout.num_actors=2", "train.max_staleness=1"))
    yield run
    run.stop()


@pytest.fixture
def run(two_actors):
    two_actors.begin()
    return two_actors


def kill_publisher(run):
    report = run.made()
    kill_process(run.publisher)
    run.publisher = run.start_publisher()
    ray.get(run.publisher.__ray_ready__.remote(), timeout=DEADLINE_S)
    wait_lost(report.weights_refs[0])
    run.sync.publish(report)


def wait_lost(reference):
    """Block until Ray knows that the owner of an object is dead; until then actors may still read the object."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            ray.get(reference, timeout=DEADLINE_S)
        except ray.exceptions.ObjectLostError:
            return
        time.sleep(0.1)
    raise AssertionError("the object outlived its owner")


def spoil(run):
    run.publish(spoilt=True)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("cut", [kill_publisher, spoil])
def test_after_a_cut_transfer_the_old_version_samples_whole_and_the_next_one_is_loaded(run, cut):
    first = run.version
    assert run.sampled() == [first] * 2
    cut(run)
    assert run.sampled() == [first] * 2
    run.publish()
    assert run.sampled() == [first + 2] * 2
    (line,) = run.lines
    assert line.startswith(f"weights of version {first + 1}: 2 of 2 rollout actors could not load them: ")
    assert line.endswith("; they keep the version before") and "\n" not in line


@pytest.mark.timeout(180)
def test_a_publisher_that_dies_while_others_read_leaves_each_with_one_whole_version(run):
    first = run.version
    run.publish()
    kill_process(run.publisher)
    versions = run.sampled()
    assert set(versions) <= {first, first + 1}
    run.publisher = run.start_publisher()
    run.publish()
    assert run.sampled() == [first + 2] * 2


@pytest.mark.timeout(180)
def test_versions_that_never_arrive_end_the_run_in_one_line(run):
    for _ in range(MAX_FAILED_VERSIONS):
        run.publish(spoilt=True)
    with pytest.raises(
        RuntimeError, match=f"the weights of {MAX_FAILED_VERSIONS} versions in a row did not reach the rollout pool"
    ):
        run.sync.wait()
    assert len(run.lines) == MAX_FAILED_VERSIONS


@pytest.mark.timeout(180)
def test_a_call_fails_where_the_version_before_is_too_old(ray_cluster, make_config):
    run = Run(make_config("rollout.num_actors=1"))
    run.begin()
    assert run.sampled() == [1]
    run.publish(spoilt=True)
    with pytest.raises(ValueError, match="must have the published checksum"):
        run.sampled()
    run.stop()
