"""What an actor is doing, asked from outside while it answers nobody: for the message of a wait that was too long."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray._private import state

from actors.cluster.placement import on_node
from rlir_ray.run.watchdog import STACK_SIGNAL, innermost_frame

# A process that is stuck answers a signal at once; the node must still start a worker that asks.
ANSWER_S, TIMEOUT_S = 2.0, 20.0
MAX_ASKED = 4


def _stacks(process: int) -> str:
    """On the actor's node: the signal, and what it adds to the process's log."""
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    found = next(iter(logs.glob(f"worker-*-{process}.err")), None)
    if found is None:
        return ""
    before, deadline = found.stat().st_size, time.monotonic() + ANSWER_S
    os.kill(process, STACK_SIGNAL)
    while found.stat().st_size == before and time.monotonic() < deadline:
        time.sleep(0.05)
    # The rest of it is written at once, but not in one piece.
    time.sleep(0.1)
    with found.open("rb") as log:
        log.seek(before)
        return log.read().decode(errors="replace")


def doing(actor_ids: Sequence[str]) -> str:
    """Where each of a few actors stands, in a line; empty where nobody can be asked."""
    return "; ".join(text for actor_id in actor_ids[:MAX_ASKED] if (text := _one(actor_id)))


def ids(actors: Sequence[Any]) -> list[str]:
    return [actor._actor_id.hex() for actor in actors]


def _one(actor_id: str) -> str:
    try:
        # Fault tolerance: whoever asks is about to report a failure, which this must not hide.
        info = state.actors(actor_id)
        name = f"{info['ActorClassName'].split('.')[-1]} (process {info['Pid']})"
        if info["State"] != "ALIVE":
            return f"{name} is {info['State'].lower()}"
        ask = ray.remote(num_cpus=0, scheduling_strategy=on_node(info["Address"]["NodeID"]))(_stacks)
        stacks = ray.get(ask.remote(info["Pid"]), timeout=TIMEOUT_S)
        if not stacks:
            return ""
        where = innermost_frame(stacks)
        return f"{name} is at {where}" if where else f"{name} waits for work"
    except Exception:
        return ""
