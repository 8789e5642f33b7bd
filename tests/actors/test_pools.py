"""Each pool alone, and the shells in this process."""

import asyncio
import dataclasses
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from actors.cluster.placement import as_actor
from actors.learner.actor import _execute
from actors.learner.command_queue import CommandQueue, SaveCommand, StepReport, split_step
from actors.learner.group import LearnerGroup
from actors.learner.rank_queue import FetchedCommand
from actors.rollout.actor import RolloutActor, build_sampler
from actors.rollout.pool import RolloutPool
from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.families import make_objective
from rlir_ray.learner.batches import step_batches
from rlir_ray.learner.step import Learner
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.run.tracing import span_since
from rlir_ray.transfer.weights import checksum, weights_of
from tests.fakes import tiny_prompts, tiny_world_model
from tests.learner.test_step import TRAIN, make, sample
from tests.light_world import LightSampler

TIMEOUT_S = 250


def test_the_same_seeds_give_the_same_groups_with_one_and_two_rollout_actors(ray_cluster, make_config):
    prompts = tiny_prompts(4, num_frames=3)
    found = []
    for num_actors in (1, 2):
        pool = RolloutPool.from_config(make_config(f"rollout.num_actors={num_actors}"), LightSampler)
        pool.start()
        refs = []
        for ids in ([0, 1], [2, 3]):
            refs += pool.sample(ids, [7 + i for i in ids], ray.put([prompts[i] for i in ids]))
        found.append([ray.get(each.group_ref, timeout=TIMEOUT_S) for each in refs])
        pool.stop()
    for one, two in zip(*found, strict=True):
        assert (one.group_id, one.seed, one.prompt_id) == (two.group_id, two.seed, two.prompt_id)
        np.testing.assert_array_equal(one.record.tokens, two.record.tokens)


def test_vllm_gives_the_same_groups_in_whichever_actor(needs_vllm, ray_cluster, make_config, checkpoints):
    policy = f"models.policy={checkpoints / 'vllm_policy'}"
    pool = RolloutPool.from_config(
        make_config(policy, "rollout.engine=vllm", "rollout.num_actors=2", "vllm.kv_cache_bytes=16777216")
    )
    pool.start()
    prompts, calls = tiny_prompts(4, num_frames=3), ([0, 1], [2, 3], [4, 5])
    # Calls go round: the second time each is the other actor's.
    refs = [
        each
        for ids in (*calls, *calls)
        for each in pool.sample(ids, [7 + i for i in ids], ray.put([prompts[i % 4] for i in ids]))
    ]
    groups = ray.get([each.group_ref for each in refs], timeout=TIMEOUT_S)
    pool.stop()
    for one, two in zip(groups[:6], groups[6:], strict=True):
        assert (one.group_id, one.seed, one.prompt_id) == (two.group_id, two.seed, two.prompt_id)
        np.testing.assert_array_equal(one.record.tokens, two.record.tokens)
        np.testing.assert_array_equal(one.behavior_logprobs, two.behavior_logprobs)


def test_a_sampler_serves_exactly_the_published_bytes(make_config):
    config = make_config()
    actor = RolloutActor(partial(build_sampler, config))
    weights = weights_of(tiny_world_model(seed=5))
    published = checksum(weights)
    assert actor.load_weights(weights, 3, published) == actor.version() == 3
    assert checksum(weights_of(actor.sampler.policy)) == published
    name = next(iter(weights))
    changed = weights | {name: weights[name] + 1}
    with pytest.raises(ValueError, match=f"weights must have the published checksum {published}, got"):
        actor.load_weights(changed, 4, published)
    assert actor.version() == 3


def test_every_group_goes_to_one_rank():
    orders = split_step(list("abcde"), [GroupAdvantages.of_all(np.zeros((4, 3), np.float32))] * 5, 2)
    assert sorted(orders[0].group_refs + orders[1].group_refs) == list("abcde")
    assert [len(order.group_refs) for order in orders] == [3, 2]


def test_each_rank_gets_groups_of_every_minibatch_in_their_order():
    values = [GroupAdvantages.of_all(np.full((4, 3), number, np.float32)) for number in range(5)]
    orders = split_step(list("abcde"), values, 2, 2)
    # Minibatches abc and de: as many updates on every rank.
    assert [order.group_refs for order in orders] == [["a", "c", "d"], ["b", "e"]]
    assert [order.minibatch_sizes for order in orders] == [[2, 1], [1, 1]]
    assert [[each.values[0, 0] for each in order.advantages] for order in orders] == [[0, 2, 3], [1, 4]]


def test_a_rank_makes_the_updates_of_its_command_as_the_local_loop_does():
    train = dataclasses.replace(TRAIN, num_minibatches=2, updates_per_step=2)
    rank, local, batch = make(train=train), make(train=train), sample()
    (command,) = split_step(batch.groups, batch.advantages, 1, 2)
    reports = []

    def report(version, metrics, *_, skipped, average):
        reports.append((version, metrics, skipped))

    queue = SimpleNamespace(report=report)
    _execute(FetchedCommand(command, batch.groups, wait_s=0.5), rank, queue)
    metrics = local.step(*step_batches(batch.groups, batch.advantages, [2, 1], local.engine))
    assert reports == [(1, metrics | {"time/learner_wait_s": 0.5}, "")]
    assert int(rank.state()["num_updates"]) == 4 and checksum(rank.weights()) == checksum(local.weights())


def test_commands_and_reports_keep_their_order_whichever_call_ray_starts_first():
    def order(number):
        return SaveCommand(folder=str(number), node="")

    def report(number):
        return StepReport(version=number, metrics={}, weights_refs=[], checksum="", span=span_since(0.0))

    async def exchange():
        command_queue = CommandQueue(1)
        ready = asyncio.create_task(command_queue.next_report())
        second = asyncio.create_task(command_queue.execute(2, [order(2)]))
        await asyncio.sleep(0)
        first = asyncio.create_task(command_queue.execute(1, [order(1)]))
        taken = []
        for number in range(3):
            await command_queue.report(report(number))
            taken += [await command_queue.next_command(0)] if number else []
        return [each.folder for each in taken], [(await each).version for each in (ready, first, second)]

    assert asyncio.run(exchange()) == (["1", "2"], [0, 1, 2])


class FailingLearner(Learner):
    """Its second step raises."""

    def step(self, batch):
        if self.num_steps:
            raise FloatingPointError(f"loss of {len(batch.groups)} groups is not finite")
        return super().step(batch)


def build_failing_learner(config):
    policy = tiny_world_model()
    engine = TorchEngine(policy, config.train, config.learner)
    return FailingLearner(engine, make_objective(config, policy), config.train, config.learner)


VALUES = GroupAdvantages.of_all(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3))


@pytest.fixture
def group_ref(ray_cluster, make_config):
    """Of a group that the configured sampler drew."""
    group, _ = build_sampler(make_config()).sample(tiny_prompts(1, num_frames=3), [0], [0], 4)[0]
    return ray.put(group)


def test_a_learner_group_alone_publishes_new_weights_once_saves_them_and_says_in_one_line_why_a_step_failed(
    group_ref, make_config, tmp_path
):
    config = make_config()
    learner = LearnerGroup.from_config(config, tmp_path / "train", partial(build_failing_learner, config))
    learner.start()
    before = learner.wait_ready()
    # Without GPUs weights go through the object store.
    assert learner.sender is None
    after = learner.step([group_ref], [VALUES])
    # The learner owns what it published: read it while there is one.
    weights = ray.get(after.weights_refs[0])
    learner.save(tmp_path / "policy")
    # The error itself, not a timeout.
    cause = "learner rank 0: FloatingPointError: loss of 1 groups is not finite"
    with pytest.raises(RuntimeError, match=cause) as failure:
        learner.step([group_ref], [VALUES])
    assert "\n" not in str(failure.value)
    learner.stop()
    assert (before.version, after.version, len(after.weights_refs)) == (0, 1, 1)
    assert checksum(weights) == after.checksum != before.checksum
    assert after.metrics["ratio/max_abs_log"] < 1e-5
    from rlir_ray.models.autoregressive import WorldModel

    saved = weights_of(WorldModel.from_pretrained(tmp_path / "policy"))
    assert checksum(saved) == after.checksum


def test_a_learner_is_placed_when_its_own_ranks_are_and_not_when_another_group_of_that_size_is(
    ray_cluster, make_config, tmp_path
):
    learner = LearnerGroup.from_config(
        make_config("train.wait_timeout_s=2", "learner.engine=deepspeed", "learner.num_workers=2"), tmp_path
    )
    # In place of Ray Train's controller, which has not found room for its ranks yet.
    ended = threading.Event()
    learner._thread = threading.Thread(target=ended.wait, daemon=True)
    learner._thread.start()
    learner.queue = as_actor(CommandQueue).remote(2)
    others = placement_group([{"CPU": 0.1}] * 2)
    try:
        assert others.wait(60)
        with pytest.raises(TimeoutError, match="waited 2 s for places of 2 learner ranks"):
            learner.wait_placed()
        ray.get([learner.queue.register.remote(rank, f"actor {rank}") for rank in range(2)], timeout=60)
        learner.wait_placed()
    finally:
        remove_placement_group(others)
        ended.set()
        learner.stop()
