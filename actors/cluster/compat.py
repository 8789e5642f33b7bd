"""Uses of Ray's private API, each with the reason why the public API does not suffice.

setup.cfg bounds Ray's version because of this file. tests/actors/test_compat.py states what a new version must provide.
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
    """The entry of an actor in Ray's global control store (GCS)."""

    class_name: str
    state: str
    """`DEPENDENCIES_UNREADY`, `PENDING_CREATION`, `ALIVE`, `RESTARTING` or `DEAD`."""
    process_id: int
    node_id: str


def actor_info(actor_id: str) -> ActorInfo:
    """Look up an actor. The public `ray.util.state.get_actor` needs the dashboard, which our own Ray does not start."""
    found = state.actors(actor_id)
    return ActorInfo(
        class_name=found["ActorClassName"],
        state=found["State"],
        process_id=int(found["Pid"]),
        node_id=found["Address"]["NodeID"],
    )


def actor_id(actor: ActorHandle[object]) -> str:
    """Return the id of a handle's actor; a handle has no public attribute for the id."""
    return str(actor._actor_id.hex())


def worker_logs() -> Path:
    """Return the folder of this node's worker logs; the public state API needs the dashboard to read them."""
    node = ray._private.worker._global_node
    assert node is not None, "Ray runs here"
    return Path(node.get_logs_dir_path())


def free_resources() -> dict[str, dict[str, float]]:
    """Return the free resources of each living node, by its id; `ray.available_resources` only gives the total."""
    return dict(state.available_resources_per_node())


def pin_version(deployment: Deployment, version: str) -> None:
    """Fix the code version of a Serve deployment, so that scaling keeps its replicas.

    Serve restarts all replicas when the code version changes, and treats every deployment of code without a version as
    a change. Ray 2.60 has removed the public option of that name.
    """
    deployment._version = version


def start_deleting(application: str) -> None:
    """Let Serve delete an application, without waiting for the end: the public call looks for it once a second."""
    from ray import serve  # here: pools without Serve start without it

    serve.delete(application, _blocking=False)


def replica_ids(application: str) -> list[str]:
    """Return the actor ids of an application's replicas; Serve's public status only gives their number."""
    prefix, found = f"SERVE_REPLICA::{application}#", []
    for named in ray.util.list_named_actors(all_namespaces=True):
        if named["namespace"] == "serve" and named["name"].startswith(prefix):
            # Skip a replica that has ended since it was listed.
            with contextlib.suppress(ValueError):
                found.append(actor_id(ray.get_actor(named["name"], namespace="serve")))
    return found
