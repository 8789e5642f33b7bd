"""Before any work: starting or joining Ray, and whether the plan fits the checkpoints and the cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from rlir_ray.config import Config, asset_path
from rlir_ray.data.sources import find_recordings
from rlir_ray.families import family_of
from rlir_ray.trajectory import FrameShape

# The learner's latest version, the one before it that a slow reader may still hold, and the one being put.
VERSIONS_HELD = 3
START_ATTEMPTS = 3
# Videos, clips, events and the report of a run, with room to spare.
REPORT_BYTES = 50_000_000
SYSTEM_CONFIG = {
    # Above it Ray keeps a result in shared memory; below, it would travel through the driver's own memory.
    "max_direct_call_object_size": 256,
    # Ray gives its agent 15 s to start, too little on two cores that are busy with something else.
    "agent_register_timeout_ms": 120_000,
}


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Ray for the time inside: the caller's own if there is one, the cluster of RAY_ADDRESS, or one started here."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        start_ray()
    try:
        yield
    finally:
        ray.shutdown()


def start_ray(**options: Any) -> None:
    """Starts Ray on this machine, without its dashboard; `options` are those of `ray.init`.

    Raises:
        RuntimeError: it did not come up.
    """
    for attempt in range(START_ATTEMPTS):
        try:
            ray.init(
                include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, _system_config=SYSTEM_CONFIG,
                **options,
            )  # fmt: skip
            return
        except Exception as error:
            # Ray bounds its own start at half a minute, which a machine that is busy with something else may need.
            ray.shutdown()
            if attempt == START_ATTEMPTS - 1:
                raise RuntimeError(
                    f"Ray did not start: {error}; free the machine's cores, or join a cluster"
                ) from error


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


def check_plan(config: Config, frame_shape: FrameShape) -> None:
    """Whether the cluster holds the pools and the groups in flight.

    Raises:
        ValueError: what is asked for, what there is, and the smallest change that fits.
    """
    _check_cpus(config, ray.cluster_resources().get("CPU", 0.0))
    _check_gpus(config, ray.cluster_resources().get("GPU", 0.0))
    if config.learner.num_workers > (groups := config.train.prompts_per_step):
        raise ValueError(
            f"learner.num_workers must be at most train.prompts_per_step={groups}, got {config.learner.num_workers}; "
            f"set learner.num_workers={groups}"
        )
    _check_store(config, frame_shape, int(ray.cluster_resources().get("object_store_memory", 0)))


def _check_cpus(config: Config, have: float) -> None:
    pools = {
        "rollout.num_actors": (config.rollout.num_actors, config.rollout.num_cpus),
        "reward.num_replicas": (config.reward.num_replicas, config.reward.num_cpus),
        "learner.num_workers": (config.learner.num_workers, config.learner.num_cpus),
    }
    asked = sum(count * each for count, each in pools.values())
    if asked <= have:
        return
    # The one count whose lowering is enough; else all shares.
    over = asked - have
    fitting = {key: count - int(-(-over // each)) for key, (count, each) in pools.items() if each}
    change = next((f"{key}={count}" for key, count in fitting.items() if count >= 1), "")
    shares = " ".join(f"{key.split('.')[0]}.num_cpus={each * have / asked:.2g}" for key, (_, each) in pools.items())
    listed = ", ".join(f"{key}={count} x {each:g}" for key, (count, each) in pools.items())
    raise ValueError(f"the plan must fit {have:g} CPUs, got {asked:g} ({listed}); set {change or shares}")


def _check_gpus(config: Config, have: float) -> None:
    asked = (
        config.rollout.num_actors * config.rollout.num_gpus
        + config.reward.num_replicas * config.reward.num_gpus
        + config.learner.num_workers * config.learner.use_gpu
        + config.evaluation.num_gpus
    )
    if asked > have:
        raise ValueError(
            f"the plan must fit {have:g} GPUs, got {asked:g}; "
            "set rollout.num_gpus=0 reward.num_gpus=0 evaluation.num_gpus=0 learner.use_gpu=false, or shares that fit"
        )


def _check_store(config: Config, frame_shape: FrameShape, have: int) -> None:
    budget = config.object_store_budget_bytes
    step_bytes = config.train.prompts_per_step * family_of(config).group_bytes(config, frame_shape)
    if step_bytes > budget:
        raise ValueError(
            f"object_store_budget_bytes must hold a step's {config.train.prompts_per_step} groups, got {budget}; "
            f"set object_store_budget_bytes={step_bytes} or lower train.prompts_per_step"
        )
    weights = VERSIONS_HELD * _weight_bytes(asset_path(config.models.policy))
    if budget + weights > have:
        way_out = f"set object_store_budget_bytes={have - weights}"
        if have - weights < step_bytes:
            way_out = f"start Ray with --object-store-memory={step_bytes + weights} or lower train.prompts_per_step"
        raise ValueError(
            f"the object store must hold the groups in flight ({budget} bytes) and {VERSIONS_HELD} versions of the "
            f"weights ({weights} bytes), got {have} bytes; {way_out}"
        )


def check_disk(config: Config, folder: Path) -> None:
    """Whether the run's folder can hold what the run leaves: the old and the new policy, videos and events.

    Raises:
        ValueError: it cannot.
    """
    needed = 2 * _weight_bytes(asset_path(config.models.policy)) + REPORT_BYTES
    if (free := shutil.disk_usage(folder).free) < needed:
        raise ValueError(f"run.dir must have {needed} bytes free, got {free} at {folder}; make room or set run.dir")


def _weight_bytes(folder: Path) -> int:
    """Of a checkpoint as float32, twice the file where it was saved in half precision."""
    return 2 * sum(path.stat().st_size for path in folder.glob("*.safetensors"))
