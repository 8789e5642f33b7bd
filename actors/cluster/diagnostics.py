"""Describe other processes in one line for a person: the cause of an error, and the current work of an actor."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence

import ray

from actors.cluster import compat
from actors.cluster.placement import Handle, on_node
from rlir_ray.run.watchdog import STACK_SIGNAL, innermost_frame

# A process answers the signal at once, even a stuck one. The longer bound covers the start of the worker that sends it.
ANSWER_TIMEOUT_S, TIMEOUT_S = 2.0, 20.0
# A message with more actors would not fit a line.
MAX_ACTORS = 4


def _read_stacks(process: int) -> str:
    """Signal a process of this node to log its stacks; return the logged text."""
    found = next(iter(compat.worker_logs().glob(f"worker-*-{process}.err")), None)
    if found is None:
        return ""
    before, deadline = found.stat().st_size, time.monotonic() + ANSWER_TIMEOUT_S
    os.kill(process, STACK_SIGNAL)
    while found.stat().st_size == before and time.monotonic() < deadline:
        time.sleep(0.05)
    # Wait for the rest: the process writes its stacks in several pieces.
    time.sleep(0.1)
    with found.open("rb") as log:
        log.seek(before)
        return log.read().decode(errors="replace")


def activity(actor_ids: Sequence[str]) -> str:
    """Describe in one line what each of the first few actors is doing; empty if no actor answers."""
    return "; ".join(text for actor_id in actor_ids[:MAX_ACTORS] if (text := _actor_activity(actor_id)))


def actor_ids(actors: Sequence[Handle]) -> list[str]:
    """Return the ids of the actors of these handles."""
    return [compat.actor_id(actor) for actor in actors]


def _actor_activity(actor_id: str) -> str:
    try:
        # Fault tolerance: the caller reports a failure, and an error here must not hide that failure.
        info = compat.actor_info(actor_id)
        name = f"{info.class_name.split('.')[-1]} (process {info.process_id})"
        if info.state != "ALIVE":
            return f"{name} is {info.state.lower()}"
        ask = ray.remote(num_cpus=0, scheduling_strategy=on_node(info.node_id))(_read_stacks)
        stacks = ray.get(ask.remote(info.process_id), timeout=TIMEOUT_S)
        if not stacks:
            return ""
        where = innermost_frame(stacks)
        return f"{name} is at {where}" if where else f"{name} waits for work"
    except Exception:
        return ""


MISSING_MODULE = re.compile(r"No module named '([^']+)'")


def one_line(error: BaseException) -> str:
    """Return the innermost cause of an error in another process, in one line."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[-1] if lines else type(cause).__name__
    return text if text.startswith(type(cause).__name__) or len(lines) > 1 else f"{type(cause).__name__}: {text}"


def import_hint(cause: str) -> str:
    """Return the remedy for a module that a worker cannot import; empty if the cause is another one.

    Args:
        cause: the cause of an error, from `one_line`.
    """
    if (found := MISSING_MODULE.search(cause)) is None:
        return ""
    return (
        f"make {found[1]} importable in Ray's workers, not in the driver alone: put it into the folder that `train` "
        "starts in (of a job: its working_dir) or on PYTHONPATH, or install it on every node"
    )
