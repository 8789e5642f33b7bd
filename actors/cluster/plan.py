"""Check before any work that the pools, the object store and the disk can hold the run."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ray.util.placement_group import placement_group, remove_placement_group
from safetensors import safe_open

from actors.cluster.placement import cluster_nodes
from actors.cluster.waiting import Stopped
from rlir_ray.config import LearnerConfig, RolloutConfig, TrainConfig
from rlir_ray.run.capacity import Node, Pool, bundle, check_capacity, fits, pools_of
from rlir_ray.run.resolved import ResolvedRun

# Share of the object store that stays free for prompts, copies of videos, and objects of other programs.
STORE_MARGIN = 0.1
# Ray frees the resources of a run that has just ended within this time.
RELEASE_S = 10.0
# Bound of the videos, clips, events and report of a run.
REPORT_BYTES = 50_000_000


def check_plan(run: ResolvedRun, progress: Callable[[str], None], stop: threading.Event) -> int:
    """Check that the nodes can hold the pools, and the object store the groups in flight.

    Wait up to `run.wait_for_nodes_s` for nodes that are still joining.

    Returns:
        Bytes that the groups in flight may take.

    Raises:
        ValueError: the plan does not fit; the message names the demand, the resources, and the smallest change that
            fits.
        Stopped: the user ended the run.
    """
    check_ranks(run.config.learner, run.config.train)
    _wait_for_room(pools_of(run.config), run.config.run.wait_for_nodes_s, progress, stop)
    return check_store(run, free_store(run.config.rollout))


def check_ranks(learner: LearnerConfig, train: TrainConfig) -> None:
    """Check that each learner rank has a group in every minibatch of a step.

    Raises:
        ValueError: a learner rank would have no group.
    """
    if learner.num_workers > (groups := train.prompts_per_step):
        raise ValueError(
            f"learner.num_workers must be at most train.prompts_per_step={groups}, got {learner.num_workers}; "
            f"set learner.num_workers={groups}"
        )
    if learner.num_workers * train.num_minibatches > groups:
        raise ValueError(
            f"train.num_minibatches must leave each of learner.num_workers={learner.num_workers} ranks a group of "
            f"train.prompts_per_step={groups}, got {train.num_minibatches}; set "
            f"train.num_minibatches={groups // learner.num_workers}"
        )


def _wait_for_room(pools: list[Pool], wait_s: float, progress: Callable[[str], None], stop: threading.Event) -> None:
    nodes = cluster_nodes()
    if fits(pools, nodes):
        return
    if fits(pools, [Node.idle(node.total) for node in nodes]):
        wait_s = max(wait_s, RELEASE_S)
    if wait_s > RELEASE_S:
        progress(f"waiting up to {wait_s:g} s for nodes that hold the pools")
    deadline = time.monotonic() + wait_s
    # An autoscaler counts the placement group as demand. Remove the group once it is placed: the pools need its room.
    demand = placement_group([pool.bundle for pool in pools for _ in range(pool.count)], strategy="SPREAD")
    try:
        while time.monotonic() < deadline:
            # Ray rounds the timeout down to whole seconds: less than 1 would not wait.
            if demand.wait(1):
                return
            if stop.is_set():
                raise Stopped
    finally:
        remove_placement_group(demand)
    check_capacity(pools, cluster_nodes())


def free_store(rollout: RolloutConfig) -> int:
    """Return the free bytes of the smallest object store on a node that fits a rollout actor.

    One such node may get all rollout actors, so the smallest store bounds the groups in flight.
    """
    demand, nodes = bundle(rollout), cluster_nodes()
    holding = [node for node in nodes if all(node.total.get(name, 0) >= each for name, each in demand.items())]
    return int(min(node.free.get("object_store_memory", 0) for node in holding or nodes))


def check_store(run: ResolvedRun, have: int) -> int:
    """Check that the object store can hold the groups in flight, the weights and the held-out clips.

    Args:
        run: the run.
        have: free bytes of the object store.

    Returns:
        The byte budget of the groups in flight: the configured one, or the rest of the store.

    Raises:
        ValueError: the store is too small, or the budget cannot hold the groups of one step.
    """
    config, budget = run.config, run.config.object_store_budget_bytes
    step_bytes = config.train.prompts_per_step * run.group_bytes
    # Samplers use the arrays in the store without a copy. The store holds the latest version, the versions of waiting
    # and running calls, the version that is being put, and the version that was evaluated last. Of moving averages, it
    # holds the latest, one of a report that waits for the driver, and the one that is being put.
    num_versions = config.train.max_staleness + 3 + 3 * (config.train.ema_decay > 0)
    weights = num_versions * run.weight_bytes
    # Training clips do not count: the store holds them only while the reward is checked, before any group.
    clips = run.heldout_bytes
    room = int(have * (1 - STORE_MARGIN)) - weights - clips
    if budget and step_bytes > budget:
        raise ValueError(
            f"object_store_budget_bytes must hold a step's {config.train.prompts_per_step} groups, got {budget}; "
            f"set object_store_budget_bytes={step_bytes} or lower train.prompts_per_step"
        )
    if max(budget, step_bytes) > room:
        needed = int((step_bytes + weights + clips) / (1 - STORE_MARGIN)) + 1
        way_out = "set object_store_budget_bytes=0, which takes what is free"
        if step_bytes > room:
            way_out = f"free it, start Ray with --object-store-memory={needed}, or lower train.prompts_per_step"
        raise ValueError(
            f"the object store must hold the groups in flight ({max(budget, step_bytes)} bytes), {num_versions} "
            f"versions of the weights ({weights} bytes) and {config.prompts.num_heldout} held-out clips ({clips} "
            f"bytes), got {have} bytes free; {way_out}"
        )
    return budget or room


def check_disk(run: ResolvedRun, folder: Path) -> str:
    """Check that the disk of the run's folder has room for two policies, checkpoints, videos and events.

    Returns:
        The free space, for a person.

    Raises:
        ValueError: the disk has too little free space.
    """
    config, needed = run.config, 2 * run.weight_bytes + REPORT_BYTES
    if not (config.lora.rank or config.models.adapter):
        # A checkpoint holds the weights, two moments, and one copy of the weights each with other objectives than grpo,
        # a moving average and a moving reference. During a write there is one checkpoint more. Adapters are small
        # enough to ignore.
        train = config.train
        copies = 3 + (train.objective != "grpo") + (train.ema_decay > 0) + (train.reference_every > 0)
        needed += copies * (config.checkpoint.keep + 1) * _trained_bytes(run.models["policy"])
    if (free := shutil.disk_usage(folder).free) < needed:
        raise ValueError(
            f"run.dir must have {needed} bytes free, got {free} at {folder}; make room, set run.dir or lower "
            f"checkpoint.keep={config.checkpoint.keep}"
        )
    return f"{free / 1e9:.1f} GB free at {folder}"


def _trained_bytes(policy: Path) -> int:
    """Count the bytes of a checkpoint's weights in float32; read only the headers of its files."""
    total = 0
    for path in policy.glob("*.safetensors"):
        with safe_open(str(path), framework="np") as file:
            total += sum(4 * math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total
