"""Before any work: starting or joining Ray, and whether the plan fits the checkpoints and the cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from safetensors import safe_open

from actors.cluster.placement import cluster_nodes
from actors.cluster.waiting import Stopped
from rlir_ray.config import Config, asset_path
from rlir_ray.data.prompts import heldout_bytes
from rlir_ray.data.sources import find_recordings
from rlir_ray.families import family_of
from rlir_ray.run.capacity import Node, Pool, bundle, check_capacity, fits, pools_of
from rlir_ray.run.folder import JOB_VARIABLE
from rlir_ray.trajectory import FrameShape

# Of the object store, for prompts, copies of videos that are read, and what other programs put.
STORE_MARGIN = 0.1
START_ATTEMPTS = 3
CONNECT_TIMEOUT_S = 10.0
# What a run that has just ended held comes free in this time.
GIVING_BACK_S = 10.0
# A step and the saving of a policy take longer than Ray's three seconds.
LEAST_GRACE_S = 60
# Videos, clips, events and the report of a run, with room to spare.
REPORT_BYTES = 50_000_000
SYSTEM_CONFIG = {
    # Above it Ray keeps a result in shared memory; below, it would travel through the driver's own memory.
    "max_direct_call_object_size": 2048,
    # Ray gives its agent 15 s to start, too little on two cores that are busy with something else.
    "agent_register_timeout_ms": 120_000,
}


@contextlib.contextmanager
def ray_session() -> Iterator[str]:
    """Ray for the time inside: the caller's own if there is one, the cluster of RAY_ADDRESS, or one started here.

    A Ray of this machine that RAY_ADDRESS does not name is left alone.

    Yields:
        Which of them it is, for a person.

    Raises:
        ValueError: RAY_ADDRESS is not the address of a Ray that a program can join.
        RuntimeError: Ray did not start, or does not answer.
    """
    if ray.is_initialized():
        yield f"{ray.__version__}, started by this program"
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # In Ray's processes libraries read their own files in the encoding of the locale.
    os.environ.setdefault("PYTHONUTF8", "1")
    if not sys.stdout.isatty():
        # Ray prints its warnings in yellow whatever stands behind standard output.
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        start_ray()
        found = f"{ray.__version__} starts on this machine; to join one that is there set RAY_ADDRESS=HOST:6379"
    else:
        join_ray(address)
        found = f"{ray.__version__} at {address} answers, {len(cluster_nodes())} nodes"
    try:
        yield found
    finally:
        ray.shutdown()


def start_ray(**options: Any) -> None:
    """Starts Ray on this machine, without its dashboard; `options` are those of `ray.init`.

    Raises:
        RuntimeError: it did not come up.
    """
    for attempt in range(START_ATTEMPTS):
        try:
            with _hangups_ignored():
                # `local`: without it Ray joins one that `ray start` has left here, which does not take these settings.
                ray.init(
                    address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
                    _system_config=SYSTEM_CONFIG, **options,
                )  # fmt: skip
            return
        except Exception as error:
            # Ray bounds its own start at half a minute, which a machine that is busy with something else may need.
            ray.shutdown()
            if attempt == START_ATTEMPTS - 1 or _is_of_folder(error):
                raise RuntimeError(f"Ray did not start: {_first_line(error)}; {_start_remedy(error)}") from error


@contextlib.contextmanager
def _hangups_ignored() -> Iterator[None]:
    """What starts inside outlives a terminal that is closed: the driver must be able to save with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _is_of_folder(error: Exception) -> bool:
    """Whether Ray could not use its temporary folder, now and in the next attempt."""
    return isinstance(error, OSError) and not isinstance(error, TimeoutError | ConnectionError)


def _start_remedy(error: Exception) -> str:
    if "AF_UNIX path" in str(error):
        return "set RAY_TMPDIR to a folder with a shorter path, for example RAY_TMPDIR=/tmp"
    if _is_of_folder(error):
        return "set RAY_TMPDIR to a folder that this user can write and that has space"
    return "free the machine's cores, or join a cluster"


def join_ray(address: str) -> None:
    """Joins the cluster of RAY_ADDRESS, as `ray job submit` sets it.

    Raises:
        ValueError: it is the address of a dashboard or of a Ray Client server.
        RuntimeError: it does not answer, or does not take this process.
    """
    host = re.sub(r":\d+$", "", address.rpartition("://")[2].partition("/")[0]) or "HOST"
    if "://" in address:
        whose = "a Ray Client server's" if address.startswith("ray://") else "a dashboard's, for `ray job submit`"
        raise ValueError(
            f"RAY_ADDRESS must be host:port of a Ray's head, got {address}, which is {whose}; set "
            f"RAY_ADDRESS={host}:6379, or unset it to start Ray on this machine"
        )
    try:
        check_answers(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        port = f" (8265 is the dashboard's port: set RAY_ADDRESS={host}:6379)" if address.endswith(":8265") else ""
        raise RuntimeError(
            f"RAY_ADDRESS must name a Ray that answers, got {address} ({_first_line(error)}); check it{port}, set "
            "RAY_AUTH_MODE=token if it asks for a token, or unset it to start Ray on this machine"
        ) from error


def check_answers(address: str) -> None:
    """Whether somebody listens at host:port; other forms of addresses are for Ray to resolve.

    Raises:
        OSError: nobody does. Ray itself would try for a minute.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()


def stop_notice() -> str:
    """What the user of a submitted job that `ray job stop` would end too soon should know; empty: nothing."""
    grace_s = os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", "3")
    if JOB_VARIABLE not in os.environ or (grace_s.isdigit() and int(grace_s) >= LEAST_GRACE_S):
        return ""
    return (
        f"`ray job stop` would end this job after {grace_s} s, before its policy is saved; submit it with "
        "--runtime-env deploy/runtime_env.yaml, which sets RAY_JOB_STOP_WAIT_TIME_S"
    )


def absolute_paths(config: Config) -> Config:
    """The same configuration with checkpoint and data folders that hold in any working directory; they must exist.

    Ray Train's workers run in a folder of their own. `asset:` paths stay: every node resolves them in its package.
    """
    models: dict[str, Any] = {}
    for entry in dataclasses.fields(config.models):
        path = getattr(config.models, entry.name)
        if not path:
            continue
        folder = asset_path(path)
        models[entry.name] = path if path.startswith("asset:") else str(folder.absolute())
    folders = {key: getattr(config.prompts, key) for key in ("path", "heldout_path")}
    for path in folders.values() if config.prompts.source == "recordings" else ():
        # Raises for a folder that is missing, empty or without pairs, before any pool starts.
        source = find_recordings(Path(path))
        if config.data.strict and source.left_out:
            raise ValueError(source.left_out[0])
    prompts: dict[str, Any] = {key: str(Path(path).absolute()) if path else "" for key, path in folders.items()}
    return dataclasses.replace(
        config,
        models=dataclasses.replace(config.models, **models),
        prompts=dataclasses.replace(config.prompts, **prompts),
    )


def check_plan(config: Config, frame_shape: FrameShape, progress: Callable[[str], None], stop: threading.Event) -> int:
    """Whether the cluster holds the pools, each actor on a node, and the groups in flight.

    Waits `run.wait_for_nodes_s` for nodes that are still joining.

    Returns:
        Bytes that the groups in flight may hold.

    Raises:
        ValueError: what is asked for, what there is, and the smallest change that fits.
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
    # Held as soon as it fits and given back to the pools; until then it is what an autoscaler sees as missing.
    demand = placement_group([pool.bundle for pool in pools for _ in range(pool.count)], strategy="SPREAD")
    try:
        while time.monotonic() < deadline:
            # In whole seconds: Ray takes a part of one for none.
            if demand.wait(1):
                return
            if stop.is_set():
                raise Stopped
    finally:
        remove_placement_group(demand)
    check_capacity(pools, cluster_nodes())


def free_store(config: Config) -> int:
    """Bytes free in the object store of the nodes where rollout actors fit: of the smallest, which may get them all."""
    asked, nodes = bundle(config.rollout), cluster_nodes()
    holding = [node for node in nodes if all(node.total.get(name, 0) >= each for name, each in asked.items())]
    return int(min(node.free.get("object_store_memory", 0) for node in holding or nodes))


def check_store(config: Config, frame_shape: FrameShape, have: int) -> int:
    """Whether an object store with so many bytes free holds groups in flight, weights and held-out clips.

    Returns:
        The budget of the groups in flight: the configured one, or what is left of the store.

    Raises:
        ValueError: it does not hold them, or not those of one step.
    """
    budget = config.object_store_budget_bytes
    step_bytes = config.train.prompts_per_step * family_of(config).group_bytes(config, frame_shape)
    # Samplers use the arrays in the store themselves: the latest version, those that waiting calls carry or that are
    # still sampled with, the one being put, and the one that was evaluated last.
    num_versions = config.train.max_staleness + 3
    weights = num_versions * _weight_bytes(asset_path(config.models.policy))
    # Training clips lie there too while the reward is checked, before any group does.
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
    """Whether the run's folder can hold what the run leaves: two policies, checkpoints, videos and events.

    Returns:
        What is free.

    Raises:
        ValueError: it cannot.
    """
    policy = asset_path(config.models.policy)
    needed = 2 * _weight_bytes(policy) + REPORT_BYTES
    if not (config.lora.rank or config.models.adapter):
        # Weights, two moments, nft's moving average; one checkpoint more while it is written. An adapter's are small.
        copies = 4 if config.train.objective == "nft" else 3
        needed += copies * (config.checkpoint.keep + 1) * _trained_bytes(policy)
    if (free := shutil.disk_usage(folder).free) < needed:
        raise ValueError(
            f"run.dir must have {needed} bytes free, got {free} at {folder}; make room, set run.dir or lower "
            f"checkpoint.keep={config.checkpoint.keep}"
        )
    return f"{free / 1e9:.1f} GB free at {folder}"


def _trained_bytes(policy: Path) -> int:
    """Of a checkpoint's weights as float32, by the headers of its files."""
    total = 0
    for path in policy.glob("*.safetensors"):
        with safe_open(str(path), framework="np") as file:
            total += sum(4 * math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def _weight_bytes(folder: Path) -> int:
    """Of a checkpoint as float32, twice the file where it was saved in half precision."""
    return 2 * sum(path.stat().st_size for path in folder.glob("*.safetensors"))
