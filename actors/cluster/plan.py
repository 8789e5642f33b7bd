"""Check before any work whether the plan fits the checkpoints, the disk and the cluster."""

from __future__ import annotations

import dataclasses
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
from rlir_ray.config import Config, asset_path
from rlir_ray.data.content import models_read
from rlir_ray.data.prompts import heldout_bytes
from rlir_ray.data.sources import find_recordings
from rlir_ray.families import family_of
from rlir_ray.run.capacity import Node, Pool, bundle, check_capacity, fits, pools_of
from rlir_ray.trajectory import FrameShape

# Share of the object store for prompts, copies of videos, and objects of other programs.
STORE_MARGIN = 0.1
# The resources of a run that has just ended are free after this time.
GIVING_BACK_S = 10.0
# Videos, clips, events and the report of a run, rounded up.
REPORT_BYTES = 50_000_000


def absolute_paths(config: Config) -> Config:
    """Make the paths of checkpoints and data absolute; they must exist.

    Ray Train's workers have another working directory. `asset:` paths stay: every node resolves them in its package.
    """
    models: dict[str, str] = {}
    for name, path in models_read(config).items():
        folder = asset_path(path)
        models[name] = path if path.startswith("asset:") else str(folder.absolute())
    folders = {key: getattr(config.prompts, key) for key in ("path", "heldout_path")}
    for path in folders.values() if config.prompts.source == "recordings" else ():
        # This raises for a folder that is missing, empty or without pairs, before any pool starts.
        source = find_recordings(Path(path))
        if config.data.strict and source.left_out:
            raise ValueError(source.left_out[0])
    prompts = {key: str(Path(path).absolute()) if path else "" for key, path in folders.items()}
    return dataclasses.replace(
        config,
        models=dataclasses.replace(config.models, **models),
        prompts=dataclasses.replace(config.prompts, path=prompts["path"], heldout_path=prompts["heldout_path"]),
    )


def check_plan(config: Config, frame_shape: FrameShape, progress: Callable[[str], None], stop: threading.Event) -> int:
    """Check that the cluster holds the pools, each actor on one node, and the groups in flight.

    Wait up to `run.wait_for_nodes_s` for nodes that are still joining.

    Returns:
        Bytes that the groups in flight may hold.

    Raises:
        ValueError: with the demand, the resources, and the smallest change that fits.
        Stopped: the user ended the run.
    """
    check_ranks(config)
    _wait_for_room(pools_of(config), config.run.wait_for_nodes_s, progress, stop)
    return check_store(config, frame_shape, free_store(config))


def check_ranks(config: Config) -> None:
    """Raises:
    ValueError: a learner rank would have no group.
    """
    if config.learner.num_workers > (groups := config.train.prompts_per_step):
        raise ValueError(
            f"learner.num_workers must be at most train.prompts_per_step={groups}, got {config.learner.num_workers}; "
            f"set learner.num_workers={groups}"
        )


def _wait_for_room(pools: list[Pool], wait_s: float, progress: Callable[[str], None], stop: threading.Event) -> None:
    nodes = cluster_nodes()
    if fits(pools, nodes):
        return
    if fits(pools, [Node.idle(node.total) for node in nodes]):
        wait_s = max(wait_s, GIVING_BACK_S)
    if wait_s > GIVING_BACK_S:
        progress(f"waiting up to {wait_s:g} s for nodes that hold the pools")
    deadline = time.monotonic() + wait_s
    # An autoscaler sees the placement group as demand; once placed it is removed, and its room goes to the pools.
    demand = placement_group([pool.bundle for pool in pools for _ in range(pool.count)], strategy="SPREAD")
    try:
        while time.monotonic() < deadline:
            # Ray rounds the seconds down: a part of a second would not wait.
            if demand.wait(1):
                return
            if stop.is_set():
                raise Stopped
    finally:
        remove_placement_group(demand)
    check_capacity(pools, cluster_nodes())


def free_store(config: Config) -> int:
    """Return the free object store of the smallest node where rollout actors fit: it may get all of them."""
    asked, nodes = bundle(config.rollout), cluster_nodes()
    holding = [node for node in nodes if all(node.total.get(name, 0) >= each for name, each in asked.items())]
    return int(min(node.free.get("object_store_memory", 0) for node in holding or nodes))


def check_store(config: Config, frame_shape: FrameShape, have: int) -> int:
    """Check that an object store with `have` free bytes holds groups in flight, weights and held-out clips.

    Returns:
        The budget of the groups in flight: the configured one, or what is left of the store.

    Raises:
        ValueError: it does not, or the budget does not hold the groups of one step.
    """
    budget = config.object_store_budget_bytes
    step_bytes = config.train.prompts_per_step * family_of(config).group_bytes(config, frame_shape)
    # Samplers use the arrays in the store itself. It holds the latest version, the versions of waiting and running
    # calls, the version that is being put, and the version that was evaluated last.
    num_versions = config.train.max_staleness + 3
    weights = num_versions * _weight_bytes(asset_path(config.models.policy))
    # Training clips are there only while the reward is checked, before any group.
    clips = heldout_bytes(config)
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


def check_disk(config: Config, folder: Path) -> str:
    """Check that the run's folder holds what the run writes: two policies, checkpoints, videos and events.

    Returns:
        The free space, for a person.

    Raises:
        ValueError: it does not.
    """
    policy = asset_path(config.models.policy)
    needed = 2 * _weight_bytes(policy) + REPORT_BYTES
    if not (config.lora.rank or config.models.adapter):
        # Weights, two moments, an objective's copy; one checkpoint more during a write. Adapters are small.
        copies = 3 if config.train.objective == "grpo" else 4
        needed += copies * (config.checkpoint.keep + 1) * _trained_bytes(policy)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise ValueError(
            f"run.dir must have {needed} bytes free, got {free} at {folder}; make room, set run.dir or lower "
            f"checkpoint.keep={config.checkpoint.keep}"
        )
    return f"{free / 1e9:.1f} GB free at {folder}"


def _trained_bytes(policy: Path) -> int:
    """Count the bytes of a checkpoint's weights as float32, by the headers of its files."""
    total = 0
    for path in policy.glob("*.safetensors"):
        with safe_open(str(path), framework="np") as file:
            total += sum(4 * math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def _weight_bytes(folder: Path) -> int:
    """Bound the bytes of a checkpoint as float32: twice its files, which may be in half precision."""
    return 2 * sum(path.stat().st_size for path in folder.glob("*.safetensors"))
