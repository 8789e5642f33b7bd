"""What this project uses of Ray that Ray does not promise to keep, each with the reason why nothing public will do.

setup.cfg bounds Ray's version because of this file; tests/actors/test_compat.py says what must hold in another one.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray._private import state

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.serve import Deployment


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorInfo:
    """What Ray's GCS knows of an actor."""

    class_name: str
    state: str
    """`DEPENDENCIES_UNREADY`, `PENDING_CREATION`, `ALIVE`, `RESTARTING` or `DEAD`."""
    process_id: int
    node_id: str


def actor_info(actor_id: str) -> ActorInfo:
    """Look an actor up. The public `ray.util.state.get_actor` asks the dashboard, which our own Ray starts without."""
    found = state.actors(actor_id)
    return ActorInfo(
        class_name=found["ActorClassName"],
        state=found["State"],
        process_id=int(found["Pid"]),
        node_id=found["Address"]["NodeID"],
    )


def actor_id(actor: ActorHandle[object]) -> str:
    """Return the id of a handle's actor, which a handle does not give away in public."""
    return str(actor._actor_id.hex())


def worker_logs() -> Path:
    """Return the folder of the logs of this node's workers; the public state API reads them through the dashboard."""
    node = ray._private.worker._global_node
    assert node is not None, "Ray runs here"
    return Path(node.get_logs_dir_path())


def free_resources() -> dict[str, dict[str, float]]:
    """Return what is free of each living node, by its id; `ray.available_resources` has the sum of all nodes alone."""
    return dict(state.available_resources_per_node())


def keep_version(deployment: Deployment, version: str) -> None:
    """Give a Serve deployment's code a version that stays.

    Serve starts all replicas anew when the version changes, and takes every deployment of code without a version for a
    change. Ray 2.60 has removed the public option of that name.
    """
    deployment._version = version


def replica_ids(application: str) -> list[str]:
    """Return the actor ids of an application's replicas; Serve's public status gives their number alone."""
    prefix, found = f"SERVE_REPLICA::{application}#", []
    for named in ray.util.list_named_actors(all_namespaces=True):
        if named["namespace"] == "serve" and named["name"].startswith(prefix):
            # A replica that has just ended has no name any more.
            with contextlib.suppress(ValueError):
                found.append(actor_id(ray.get_actor(named["name"], namespace="serve")))
    return found
