"""Where actors run: the resources that each pool takes, its nodes, and the driver's own node."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlir_ray.run.capacity import Node, PoolConfig, bundle

LEARNER_STRATEGY = "PACK"
"""Ranks talk to each other at every step: on as few nodes as hold them."""


def ray_options(pool_config: PoolConfig, **more: Any) -> dict[str, Any]:
    """Options of the pool's actors or Serve replicas: their resources, spread over the nodes.

    Args:
        pool_config: the pool's part of the configuration.
        more: options that win.
    """
    asked = bundle(pool_config)
    options: dict[str, Any] = {"num_cpus": asked.pop("CPU", 0), "num_gpus": asked.pop("GPU", 0), "resources": asked}
    # Serve spreads its replicas by itself and takes no strategy.
    if getattr(pool_config, "backend", "") != "serve":
        options["scheduling_strategy"] = "SPREAD"
    return options | more


def node_id() -> str:
    """Of the node that this process runs on."""
    return ray.get_runtime_context().get_node_id()


def own_host() -> str:
    """Where to listen for this cluster's processes: this node's address, or the loopback where it is the only node."""
    if sum(node["Alive"] for node in ray.nodes()) == 1:
        return "127.0.0.1"
    return str(ray.util.get_node_ip_address())


def node_cpus() -> int:
    """Of the node that this process runs on; one at least."""
    own = node_id()
    return max(1, int(sum(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["NodeID"] == own)))


def on_node(node: str) -> NodeAffinitySchedulingStrategy:
    """There and nowhere else.

    For what holds no resources, or writes into a folder of that node: an autoscaler takes a node away on which no
    resource is taken, whoever runs there.
    """
    return NodeAffinitySchedulingStrategy(node, soft=False)


def cluster_nodes() -> list[Node]:
    """The living nodes with what is free of them now."""
    free = ray._private.state.available_resources_per_node()
    return [
        Node(total=dict(node["Resources"]), free=dict(free.get(node["NodeID"], {})))
        for node in ray.nodes()
        if node["Alive"]
    ]
