"""Whether checkpoints are whole, of one world and of the configured one: asked before anything is loaded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rlir_ray.config import ArchitectureConfig, Config, asset_path
from rlir_ray.models.autoregressive import policy_architecture, sequence_length


def check_checkpoints(config: Config) -> None:
    """Whether the weights of all models are there and whole, and both inverse dynamics models are such.

    Raises:
        ValueError: a folder holds none, a file is cut off, or an inverse dynamics model is something else.
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
        folder = asset_path(getattr(config.models, entry.name))
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(f"models.{entry.name} must hold safetensors, got none in {folder}; give a model's folder")
        for file in files:
            try:
                # Reads the header and compares the file's length with it.
                with safe_open(file, "np"):
                    pass
            except (OSError, SafetensorError) as error:
                raise ValueError(
                    f"models.{entry.name} must hold whole weights, got {error} in {file}; copy the file again"
                ) from None


def _read_json(folder: Path, file: str, what: str) -> dict[str, Any]:
    try:
        return json.loads((folder / file).read_text())
    except (OSError, json.JSONDecodeError) as error:
        found = type(error).__name__
        raise ValueError(f"{what} must hold a readable {file}, got {found} in {folder}; check models.*") from None


def check_world(config: Config) -> int:
    """Whether policy and tokenizer are of one world, and of the configured one. Returns the tokens of a frame.

    Raises:
        ValueError: another vocabulary, frame size or number of tokens.
    """
    policy_folder, folder = asset_path(config.models.policy), asset_path(config.models.tokenizer)
    policy = _read_json(policy_folder, "config.json", "models.policy")
    vq_model = _read_json(folder, "config.json", "models.tokenizer")
    world = config.world
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
    stem = {"height": world.height, "width": world.width, "pixel_unshuffle": 1}
    if (folder / "tokenizer.json").is_file():
        stem = _read_json(folder, "tokenizer.json", "models.tokenizer")
    if (stem["height"], stem["width"]) != (world.height, world.width):
        raise ValueError(
            f"models.tokenizer must be for frames of {world.height}x{world.width}, got "
            f"{stem['height']}x{stem['width']}; set world.height={stem['height']} world.width={stem['width']} "
            "or choose another tokenizer"
        )
    factor = stem["pixel_unshuffle"] * 2 ** (len(vq_model["block_out_channels"]) - 1)
    tokens_per_frame = (world.height // factor) * (world.width // factor)
    held = policy_architecture(policy)
    if not held.tokens_per_frame:
        raise ValueError(
            f"models.policy must say how many tokens a frame has, got a config.json without it in {policy_folder}; add "
            f'"tokens_per_frame": {tokens_per_frame} there'
        )
    wanted, got = (vq_model["num_vq_embeddings"], tokens_per_frame), (held.num_codes, held.tokens_per_frame)
    _check_architecture(config.architecture, held)
    length = sequence_length(world.num_context + world.num_frames, tokens_per_frame)
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
    return tokens_per_frame


def _check_architecture(stated: ArchitectureConfig, held: ArchitectureConfig) -> None:
    for entry in dataclasses.fields(stated):
        wanted, got = getattr(stated, entry.name), getattr(held, entry.name)
        if wanted and wanted != got:
            raise ValueError(
                f"models.policy must have architecture.{entry.name}={wanted}, got {got}; choose the recipe of its size "
                f"or set architecture.{entry.name}={got}"
            )
