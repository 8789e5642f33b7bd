"""Place actors: the resources that each pool takes, its nodes, and the driver's own node."""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster.compat import free_resources
from rlir_ray.config import RewardConfig
from rlir_ray.run.capacity import Node, PoolConfig, bundle

Options = dict[str, Any]
"""Options of `ray.remote` or of a Serve deployment: name -> value, each of a type of its own."""
LEARNER_STRATEGY = "PACK"
"""Ranks communicate at every step: place them on as few nodes as hold them."""


def ray_options(pool_config: PoolConfig, **more: object) -> Options:
    """Return the options of a pool's actors or Serve replicas: their resources, spread over the nodes.

    Args:
        pool_config: the pool's part of the configuration.
        more: options that override.
    """
    asked = bundle(pool_config)
    options: Options = {"num_cpus": asked.pop("CPU", 0), "num_gpus": asked.pop("GPU", 0), "resources": asked}
    # Serve spreads its replicas by itself and takes no strategy.
    if not isinstance(pool_config, RewardConfig):
        options["scheduling_strategy"] = "SPREAD"
    return options | more


def node_id() -> str:
    """Return the id of this process's node."""
    return ray.get_runtime_context().get_node_id()


def own_host() -> str:
    """Return the host to listen on for this cluster: this node's address, or the loopback in a cluster of one node."""
    if sum(node["Alive"] for node in ray.nodes()) == 1:
        return "127.0.0.1"
    return str(ray.util.get_node_ip_address())


def node_cpus() -> int:
    """Count the CPUs of this process's node; at least one."""
    own = node_id()
    return max(1, int(sum(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["NodeID"] == own)))


def on_node(node: str) -> Any:
    """Pin an actor or task to a node.

    For actors that take no resources, or write into a folder of that node: an autoscaler removes a node on which no
    resource is taken, even if actors run there. Any: Ray's types know no strategy but placement groups.
    """
    return NodeAffinitySchedulingStrategy(node, soft=False)


def cluster_nodes() -> list[Node]:
    """Return the living nodes with their free resources."""
    free = free_resources()
    return [
        Node(total=dict(node["Resources"]), free=dict(free.get(node["NodeID"], {})))
        for node in ray.nodes()
        if node["Alive"]
    ]
