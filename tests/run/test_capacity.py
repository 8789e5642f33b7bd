"""Whether nodes hold the pools, and what is said when they do not."""

from __future__ import annotations

import pytest

from rlir_ray.config.load import load_config
from rlir_ray.run.capacity import Node, bundle, check_capacity, fits, pools_of

GPUS = ["rollout.num_gpus=1", "learner.use_gpu=true"]


def refusal(nodes: list[Node], *overrides: str) -> str:
    with pytest.raises(ValueError) as refused:
        check_capacity(pools_of(load_config("", list(overrides))), nodes)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def proposed(text: str) -> list[str]:
    """The overrides that a refusal proposes."""
    return text.split("set ")[-1].split()


def idle(*totals: dict[str, float]) -> list[Node]:
    return [Node.idle(total) for total in totals]


def test_a_bundle_is_what_one_actor_takes_of_one_node() -> None:
    config = load_config("", ["learner.use_gpu=true", "learner.resources={learner_node: 0.01, unused: 0}"])
    assert bundle(config.learner) == {"CPU": 0.5, "GPU": 1.0, "learner_node": 0.01}
    assert bundle(config.evaluation) == {}
    assert [pool.name for pool in pools_of(config)] == ["rollout", "reward", "learner"]


def test_too_few_cpus_name_the_smallest_change() -> None:
    # 4 * 0.5 + 0.25 + 0.5 = 2.75 CPUs; two rollout actors less need 1.75.
    text = refusal(idle({"CPU": 2}), "rollout.num_actors=4")
    assert text.startswith("the plan must fit 2 CPUs, got 2.75 (rollout.num_actors=4 x 0.5, reward.num_replicas=1")
    assert proposed(text) == ["rollout.num_actors=2"]
    check_capacity(pools_of(load_config("", ["rollout.num_actors=2"])), idle({"CPU": 2}))


def test_cpus_that_no_count_can_save_lead_to_smaller_shares_that_fit() -> None:
    text = refusal(idle({"CPU": 0.5}))
    assert proposed(text) == ["rollout.num_cpus=0.2", "reward.num_cpus=0.1", "learner.num_cpus=0.2"]
    check_capacity(pools_of(load_config("", proposed(text))), idle({"CPU": 0.5}))


def test_a_rank_of_two_cpus_does_not_fit_two_nodes_of_one_though_the_sum_does() -> None:
    small = ["rollout.num_cpus=0.1", "reward.num_cpus=0.1", "learner.num_cpus=2"]
    nodes = idle({"CPU": 1.5}, {"CPU": 1})
    text = refusal(nodes, *small)
    assert text.startswith("every actor of the plan must fit a node, got rollout.num_actors=1 x (0.1 CPU), ")
    assert "for nodes with 1 x (1.5 CPU), 1 x (1 CPU) free" in text
    assert proposed(text) == ["learner.num_cpus=1.5"]
    check_capacity(pools_of(load_config("", [*small, *proposed(text)])), nodes)


def test_large_actors_find_room_whatever_the_order_of_nodes_and_pools() -> None:
    pools = pools_of(load_config("", ["learner.num_cpus=2", "rollout.num_actors=4"]))
    for nodes in (idle({"CPU": 2}, {"CPU": 3}), idle({"CPU": 3}, {"CPU": 2})):
        assert fits(pools, nodes)
    assert not fits(pools, idle({"CPU": 1.9}, {"CPU": 1.9}, {"CPU": 1.9}))


def test_cpu_actors_leave_the_cpus_beside_gpus_to_those_that_need_both() -> None:
    pools = pools_of(load_config("", [*GPUS, "learner.num_cpus=4", "rollout.num_cpus=4", "reward.num_cpus=2"]))
    assert fits(pools, idle({"CPU": 8, "GPU": 2}, {"CPU": 2}))


def test_what_other_jobs_hold_is_not_there_and_waiting_for_them_is_an_answer() -> None:
    nodes = [Node(total={"CPU": 4}, free={"CPU": 1}), Node(total={"CPU": 4}, free={})]
    text = refusal(nodes, "rollout.num_cpus=1")
    assert text.startswith("the plan must fit the 1 of 8 CPUs that are free, got 1.75")
    assert "wait for the other jobs, or set rollout.num_cpus=0.25" in text


def test_a_label_that_no_node_has_is_named_with_those_that_are_there() -> None:
    nodes = idle({"CPU": 4, "node:10.0.0.1": 1, "object_store_memory": 1e9}, {"CPU": 4, "rollout_node": 1})
    text = refusal(nodes, "rollout.resources={rollout: 0.01}")
    assert "got 'rollout' (nodes have rollout_node); start nodes with --resources='{\"rollout\": 1}'" in text
    assert text.endswith("or set rollout.resources.rollout=0")


def test_a_label_is_counted_node_by_node() -> None:
    nodes = idle({"CPU": 4, "reward_node": 1}, {"CPU": 4, "reward_node": 1})
    asked = "reward.resources={reward_node: 0.6}"
    assert fits(pools_of(load_config("", [asked, "reward.num_replicas=2"])), nodes)
    # 3 * 0.6 = 1.8 of 2, but one node holds one.
    text = refusal(nodes, asked, "reward.num_replicas=3")
    assert proposed(text) == ["reward.num_replicas=2"]


def test_without_gpus_the_change_takes_them_out_of_every_pool_that_asks() -> None:
    text = refusal(idle({"CPU": 8}), *GPUS, "evaluation.num_gpus=0.5")
    assert text.startswith("the plan must fit 0 GPUs, got 2.5")
    assert proposed(text) == ["rollout.num_gpus=0", "learner.use_gpu=false", "evaluation.num_gpus=0"]


def test_too_few_gpus_lower_a_count_or_a_share() -> None:
    node = idle({"CPU": 64, "GPU": 8})
    assert proposed(refusal(node, *GPUS, "rollout.num_actors=5", "learner.num_workers=4")) == ["rollout.num_actors=4"]
    only = idle({"CPU": 64, "GPU": 1})
    assert proposed(refusal(only, "rollout.num_gpus=0.75", "reward.num_gpus=0.5")) == ["rollout.num_gpus=0.5"]


def test_what_no_single_change_saves_asks_for_nodes() -> None:
    text = refusal(idle({"CPU": 64, "GPU": 1}), "rollout.num_gpus=1", "learner.use_gpu=true", "evaluation.num_gpus=1")
    assert text.endswith("start more nodes, or ask for less")
