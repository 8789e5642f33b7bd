"""The reward pool alone: under load, while it grows and shrinks, and when replicas die."""

import asyncio
import os
import time
from collections import Counter
from concurrent import futures
from functools import partial

import numpy as np
import pytest
import ray

from actors.cluster.diagnostics import one_line
from actors.reward import deployment
from actors.reward.calls import HandleCalls
from actors.reward.deployment import count_options, serve_options
from actors.reward.pool import RewardPool
from actors.reward.replica import RewardReplica, build_reward
from actors.rollout.actor import build_sampler
from tests.fakes import tiny_prompts
from tests.own_rewards import (
    BrokenReward,
    DeadlyReward,
    FastidiousReward,
    MoodyReward,
    SickeningReward,
    SleepReward,
    small_video,
    wait_for_video,
)
from tests.world import tiny_config

TIMEOUT_S = 250


@pytest.fixture
def start_pool(ray_cluster, make_config):
    """Starts pools and ends them after the test."""
    pools = []

    def start(make_reward, *overrides):
        pools.append(RewardPool.from_config(make_config(*overrides), make_reward=make_reward))
        pools[-1].start()
        return pools[-1]

    yield start
    for pool in pools:
        pool.stop()


@pytest.fixture(scope="module")
def shared_pool(ray_cluster, checkpoints, tmp_path_factory):
    """One replica for the tests that end none: group 3 cannot be read, group 20 only at the second try."""
    folder = tmp_path_factory.mktemp("moody")
    pool = RewardPool.from_config(
        tiny_config(checkpoints, folder), make_reward=partial(MoodyReward, folder, 20, never=3)
    )
    pool.start()
    yield pool
    pool.stop()


def answers(scored):
    return [future.result(TIMEOUT_S).scores.group_id for future in scored]


def scored_by_process(folder):
    """Process -> the groups that it scored, in order."""
    return {path.name: list(map(int, path.read_text().split())) for path in folder.iterdir()}


class Load:
    """Keeps groups in flight, each with the next number."""

    def __init__(self, pool, in_flight=24):
        self.pool, self.in_flight, self.scored = pool, in_flight, []

    def more(self, number):
        wanted = len(self.scored) + number
        self.until(lambda: len(self.scored) >= wanted)

    def until(self, condition):
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, "the pool did not come to it"
            waiting = [future for future in self.scored if not future.done()]
            if len(waiting) >= self.in_flight:
                futures.wait(waiting, timeout=0.05, return_when=futures.FIRST_COMPLETED)
                continue
            self.scored.append(self.pool.score(ray.put(small_video(len(self.scored)))))


@pytest.mark.slow
def test_no_group_is_lost_and_none_scored_twice_while_the_pool_grows_and_shrinks(start_pool, tmp_path):
    pool = start_pool(partial(SleepReward, tmp_path))
    load = Load(pool)
    load.more(30)
    pool.scale(3)
    load.until(lambda: len(scored_by_process(tmp_path)) == 3)
    pool.scale(1)
    # 24 groups are in flight, some of them at the removed replicas.
    load.until(lambda: len(pool.deployment.actor_ids()) == 1)
    assert pool.num_replicas() == 1
    load.more(30)
    assert answers(load.scored) == list(range(len(load.scored)))
    counted = Counter(group for groups in scored_by_process(tmp_path).values() for group in groups)
    assert counted == Counter(range(len(load.scored)))
    # The removed replicas have ended: one process scores all new groups.
    before = {process: len(groups) for process, groups in scored_by_process(tmp_path).items()}
    load.more(30)
    answers(load.scored)
    after = scored_by_process(tmp_path)
    assert sum(len(after[process]) > number for process, number in before.items()) == len(after) - 2


def test_groups_whose_replica_dies_are_scored_by_another(start_pool, tmp_path):
    pool = start_pool(partial(DeadlyReward, tmp_path, 5), "reward.num_replicas=2")
    scored = [pool.score(ray.put(small_video(number))) for number in range(40)]
    assert answers(scored) == list(range(40))
    assert len((tmp_path / "met").read_text().split()) == 1
    assert pool.num_replicas() == 2


@pytest.mark.slow
def test_a_group_that_kills_every_replica_is_given_up_and_the_others_are_scored(start_pool, tmp_path):
    pool = start_pool(partial(DeadlyReward, tmp_path, 3, always=True))
    scored = [pool.score(ray.put(small_video(number))) for number in range(8)]
    error = scored.pop(3).exception(TIMEOUT_S)
    assert one_line(error).startswith("RuntimeError: 4 reward replicas in a row died over this group, or took ")
    assert len(set((tmp_path / "met").read_text().split())) == 4
    # They shared its first replica and none of those after it.
    assert answers(scored) == [0, 1, 2, 4, 5, 6, 7]
    assert pool.score(ray.put(small_video(9))).result(TIMEOUT_S).scores.group_id == 9


@pytest.mark.slow
def test_a_broken_replica_is_replaced_and_the_new_one_scores_its_groups(start_pool, tmp_path):
    pool = start_pool(partial(SickeningReward, tmp_path, 3))
    assert answers([pool.score(ray.put(small_video(number))) for number in range(8)]) == list(range(8))


def test_a_group_that_cannot_be_read_fails_alone_with_its_cause_and_costs_no_replica(shared_pool):
    scored = [shared_pool.score(ray.put(small_video(number))) for number in range(8)]
    replicas = shared_pool.deployment.actor_ids()
    error = scored.pop(3).exception(TIMEOUT_S)
    assert one_line(error) == "ValueError: group 3 cannot be read"
    assert answers(scored) == [0, 1, 2, 4, 5, 6, 7]
    assert shared_pool.deployment.actor_ids() == replicas


def test_a_scoring_that_raises_is_tried_once_more(shared_pool):
    assert answers([shared_pool.score(ray.put(small_video(20)))]) == [20]


def test_groups_of_a_batch_fail_one_by_one_and_a_broken_replica_ends_its_process(tmp_path, monkeypatch, capsys):
    exits = []
    monkeypatch.setattr(os, "_exit", exits.append)
    videos = [small_video(number) for number in range(4)]
    replica = RewardReplica(partial(FastidiousReward, 2), max_frames=100)
    one, two, three, four = replica.read(videos)
    assert [each.scores.group_id for each in (one, two, four)] == [0, 1, 3]
    assert str(three) == "group 2 cannot be read"
    # It still reads what it could read before.
    assert not exits
    sick = RewardReplica(partial(SickeningReward, tmp_path, 2), max_frames=100)
    assert [type(each).__name__ for each in sick.read(videos[:2])] == ["ScoreReport", "ScoreReport"]
    assert not exits
    (error,) = sick.read(videos[2:3])
    assert str(error) == "the device is lost"
    assert exits == [1] and "the device is lost" in capsys.readouterr().err


def test_a_process_that_breaks_in_its_first_batch_ends_and_fails_no_other_group(tmp_path, monkeypatch):
    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    replica = RewardReplica(partial(SickeningReward, tmp_path, 2), max_frames=100)
    with pytest.raises(SystemExit):
        replica.read([small_video(number) for number in range(4)])


def test_a_replica_without_a_scored_group_does_not_count_as_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "_exit", pytest.fail)
    (error,) = RewardReplica(partial(SickeningReward, tmp_path, 0), max_frames=100).read([small_video(0)])
    assert str(error) == "the device is lost"


def test_a_reward_that_forgets_a_group_says_so():
    class Forgetful:
        def score(self, videos):
            return []

    (error,) = RewardReplica(Forgetful, max_frames=100).read([small_video(0)])
    assert str(error).startswith("a reward must score every video, got 0 scores of 1 videos")


def test_a_reward_that_cannot_be_built_says_why(start_pool):
    with pytest.raises(RuntimeError, match=r"the reward pool did not start: ValueError: no such network; check models"):
        start_pool(BrokenReward)


class FakeHandle:
    """A handle whose replica answers nothing; remembers what it was asked."""

    def __init__(self):
        self.score, self.asked = self, []

    def remote(self, video_refs, is_alone):
        self.asked.append((video_refs, is_alone))
        return asyncio.get_running_loop().create_future()


def test_a_single_group_tells_the_replica_not_to_wait_for_a_burst():
    async def asked(*bursts):
        handle = FakeHandle()
        calls = HandleCalls(handle)
        for burst in bursts:
            tasks = [asyncio.create_task(calls.score(video)) for video in burst]
            for _ in range(3):
                await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        return handle.asked

    assert asyncio.run(asked("a")) == [(["a"], True)]
    assert asyncio.run(asked("ab")) == [(["a"], False), (["b"], False)]
    assert asyncio.run(asked("a", "b")) == [(["a"], True), (["b"], False)]


def test_a_group_that_is_still_sampled_takes_no_place_in_the_queue(shared_pool, tmp_path):
    pool = shared_pool
    video_when_there_is = ray.remote(num_cpus=0)(wait_for_video)
    late = pool.score(video_when_there_is.remote(tmp_path / "sampled"))
    # More than the pool has replicas.
    late_too = [pool.score(video_when_there_is.remote(tmp_path / "sampled")) for _ in range(4)]
    assert answers([pool.score(ray.put(small_video(number))) for number in range(10, 14)]) == [10, 11, 12, 13]
    assert not late.done()
    (tmp_path / "sampled").touch()
    assert answers([late, *late_too]) == [7] * 5


def test_a_lost_video_fails_its_group_with_the_cause_and_costs_no_replica(shared_pool):
    @ray.remote(num_cpus=0)
    def lost():
        raise OSError("the disk is gone")

    @ray.remote(num_cpus=0)
    class Sampler:
        def sample(self):
            os._exit(1)

    pool = shared_pool
    assert one_line(pool.score(lost.remote()).exception(TIMEOUT_S)) == "OSError: the disk is gone"
    assert pool.score(Sampler.remote().sample.remote()).exception(TIMEOUT_S) is not None
    assert answers([pool.score(ray.put(small_video(1)))]) == [1]
    assert pool.num_replicas() == 1


@pytest.mark.slow
def test_a_served_pool_follows_its_queue_between_its_bounds(start_pool, tmp_path, monkeypatch):
    monkeypatch.setattr(deployment, "DOWNSCALE_DELAY_S", 0.5)
    pool = start_pool(partial(SleepReward, tmp_path, 0.02), "reward.max_replicas=2", "reward.target_queue=4")
    assert pool.num_replicas() == 1
    load = Load(pool, in_flight=16)
    load.until(lambda: len(scored_by_process(tmp_path)) == 2)
    assert answers(load.scored) == list(range(len(load.scored)))
    deadline = time.monotonic() + TIMEOUT_S
    while pool.num_replicas() > 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_recipe_sets_the_number_of_replicas_or_the_bounds_of_the_autoscaler(make_config):
    fixed = serve_options(make_config("reward.num_replicas=3", "reward.num_cpus=0.5").reward, wait_timeout_s=250.0)
    assert (fixed["num_replicas"], fixed["autoscaling_config"]) == (3, None)
    assert fixed["ray_actor_options"] == {"num_cpus": 0.5, "num_gpus": 0, "resources": {}}
    scaled = make_config(
        "reward.num_replicas=2",
        "reward.min_replicas=1",
        "reward.max_replicas=5",
        "reward.target_queue=3",
    ).reward
    scaling = count_options(scaled)["autoscaling_config"]
    found = (scaling.min_replicas, scaling.initial_replicas, scaling.max_replicas, scaling.target_ongoing_requests)
    assert found == (1, 2, 5, 3)
    # A number that was set by hand no longer follows the queue.
    assert count_options(scaled, 4) == {"num_replicas": 4, "autoscaling_config": None}


def test_the_pool_gives_the_scores_that_the_reward_gives_in_this_process(start_pool, make_config):
    config = make_config()
    sampler = build_sampler(config)
    videos = [video for _, video in sampler.sample(tiny_prompts(3, num_frames=3), [0, 1, 2], [0, 1, 2], 4)]
    pool = start_pool(None)
    served = [future.result(TIMEOUT_S).scores for future in [pool.score(ray.put(video)) for video in videos]]
    for here, there in zip(build_reward(config, None).score(videos), served, strict=True):
        assert here.group_id == there.group_id
        np.testing.assert_allclose(here.frame_rewards, there.frame_rewards, atol=1e-6)
        assert here.rules == pytest.approx(there.rules, abs=1e-6)
