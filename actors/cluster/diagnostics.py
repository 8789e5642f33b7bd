"""What an actor is busy with, found out from outside while it does not answer: for messages of waits."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import ray

from actors.cluster import compat
from actors.cluster.lifecycle import Handle
from actors.cluster.placement import on_node
from rlir_ray.run.watchdog import STACK_SIGNAL, innermost_frame

# A stuck process answers the signal at once; the node must first start a worker that sends it.
ANSWER_S, TIMEOUT_S = 2.0, 20.0
MAX_ASKED = 4


def _stacks(process: int) -> str:
    """Signal a process of this node to log its stacks; return what it has logged."""
    found = next(iter(compat.worker_logs().glob(f"worker-*-{process}.err")), None)
    if found is None:
        return ""
    before, deadline = found.stat().st_size, time.monotonic() + ANSWER_S
    os.kill(process, STACK_SIGNAL)
    while found.stat().st_size == before and time.monotonic() < deadline:
        time.sleep(0.05)
    # The process writes the rest at once, but not in one piece.
    time.sleep(0.1)
    with found.open("rb") as log:
        log.seek(before)
        return log.read().decode(errors="replace")


def activity(actor_ids: Sequence[str]) -> str:
    """Say in a line where each of a few actors is; empty where no actor can be asked."""
    return "; ".join(text for actor_id in actor_ids[:MAX_ASKED] if (text := _one(actor_id)))


def ids(actors: Sequence[Handle]) -> list[str]:
    return [compat.actor_id(actor) for actor in actors]


def _one(actor_id: str) -> str:
    try:
        # Fault tolerance: the caller is about to report a failure, which an error here must not hide.
        info = compat.actor_info(actor_id)
        name = f"{info.class_name.split('.')[-1]} (process {info.process_id})"
        if info.state != "ALIVE":
            return f"{name} is {info.state.lower()}"
        ask = ray.remote(num_cpus=0, scheduling_strategy=on_node(info.node_id))(_stacks)
        stacks = ray.get(ask.remote(info.process_id), timeout=TIMEOUT_S)
        if not stacks:
            return ""
        where = innermost_frame(stacks)
        return f"{name} is at {where}" if where else f"{name} waits for work"
    except Exception:
        return ""
