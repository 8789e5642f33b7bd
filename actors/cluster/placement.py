"""Actors of plain classes: their resources, their nodes, and how to stop them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.cluster.compat import free_resources
from rlir_ray.config import RewardConfig
from rlir_ray.run.capacity import Node, PoolConfig, bundle

Options = dict[str, Any]
"""Options of `ray.remote` or of a Serve deployment: name -> value, each of a type of its own."""
Handle = Any
"""A handle of an actor or a deployment, or an actor class. Ray's types for these do not know the methods of a shell."""
LEARNER_STRATEGY = "PACK"
"""Placement of learner ranks: on as few nodes as possible, because ranks communicate at every step."""


def ray_options(pool_config: PoolConfig, **more: object) -> Options:
    """Return the options of a pool's actors or Serve replicas: their resources, spread over the nodes.

    Args:
        pool_config: the pool's section of the configuration.
        more: options that override the pool's.
    """
    custom = bundle(pool_config)
    options: Options = {"num_cpus": custom.pop("CPU", 0), "num_gpus": custom.pop("GPU", 0), "resources": custom}
    # Serve spreads its replicas by itself and accepts no scheduling strategy.
    if not isinstance(pool_config, RewardConfig):
        options["scheduling_strategy"] = "SPREAD"
    return options | more


def node_id() -> str:
    """Return the id of this process's node."""
    return ray.get_runtime_context().get_node_id()


def own_host() -> str:
    """Return the host to listen on for this cluster: this node's address, or loopback in a cluster of one node."""
    if sum(node["Alive"] for node in ray.nodes()) == 1:
        return "127.0.0.1"
    return str(ray.util.get_node_ip_address())


def node_cpus() -> int:
    """Count the CPUs of this process's node; at least one."""
    own = node_id()
    return max(1, int(sum(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["NodeID"] == own)))


def on_node(node: str) -> Any:
    """Return the strategy that pins an actor or task to a node.

    Pin actors that write into a folder of that node. Also pin actors that take no resources to the driver's node: an
    autoscaler removes nodes without taken resources, even if actors run on them. The type is Any because
    Ray's types know no strategy but placement groups.
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


def as_actor(shell: type, *, num_cpus: float = 0, num_gpus: float = 0, **options: Any) -> Any:
    """Return the Ray actor class of a plain class."""
    return ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, **options)(shell)


def stop_actors(actors: Sequence[Any]) -> None:
    """End the processes of actors."""
    for actor in actors:
        ray.kill(actor)
