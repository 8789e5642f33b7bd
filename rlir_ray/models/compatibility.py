"""Checks, before weights are loaded, that the checkpoints of policy and frame codec fit each other and the world."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from rlir_ray.algorithm.guidance import NO_GUIDANCE
from rlir_ray.config import ArchitectureConfig, Config, asset_path
from rlir_ray.data.files import Json
from rlir_ray.models.token_sequence import TokenSequence, TokenShape
from rlir_ray.models.tokenizer_forms import tokenizer_form
from rlir_ray.spaces.layouts import DROPOUT_KEY, ActionLayout, layout_of
from rlir_ray.trajectory import FrameShape


def check_token_world(config: Config) -> FrameShape:
    """Check that a token model and its tokenizer fit the configured world; return the shape of an encoded frame.

    Raises:
        ValueError: family, vocabulary, frame size or number of tokens differ.
    """
    policy_folder = asset_path(config.models.policy)
    policy = read_settings(policy_folder, "config.json", "models.policy")
    if is_flow_model(policy):
        raise ValueError(
            f"models.policy must be a token model with policy.family={config.policy.family}, got a flow model in "
            f"{policy_folder}; set policy.family=flow"
        )
    if "vocab_size" not in policy:
        raise ValueError(
            f"models.policy must be a LlamaForCausalLM, got another config.json in {policy_folder}; give a "
            "world model's folder"
        )
    sequence, held = TokenSequence.of(policy), policy_architecture(policy)
    if not sequence.shape.tokens_per_frame:
        raise ValueError(
            f"models.policy must have tokens_per_frame in its config.json, got none in {policy_folder}; add "
            f'"tokens_per_frame": {tokenizer_shape(config).tokens_per_frame}'
        )
    check_architecture(config.architecture, held)
    check_guidance(config, policy)
    sequence.check_generated(config.world.num_frames)
    length = sequence.length(config.world.num_context + config.world.num_frames)
    if 0 < held.max_positions < length:
        raise ValueError(
            f"models.policy must hold a clip's {length} tokens, got max_position_embeddings={held.max_positions}; "
            "lower world.num_frames"
        )
    return check_tokenizer(config)


def check_tokenizer(config: Config) -> FrameShape:
    """Check that the configured token policy has the tokens of the configured tokenizer.

    Returns:
        The shape of an encoded frame.

    Raises:
        ValueError: a number differs, or the tokenizer is of another frame size than the world.
    """
    wanted, got = tokenizer_shape(config), policy_sequence(config).shape
    if got != wanted:
        raise ValueError(
            f"models.policy must have frames of {wanted}, as the tokenizer, got {got}; choose checkpoints "
            "that were trained together"
        )
    return (wanted.tokens_per_frame,)


def tokenizer_shape(config: Config) -> TokenShape:
    """Return the tokens of the configured tokenizer; check that its frame size is the world's."""
    folder = asset_path(config.models.tokenizer)
    tokenizer = read_settings(folder, "config.json", "models.tokenizer")
    form = tokenizer_form(tokenizer, folder)
    height, width = grid_of(config, folder, tokenizer)
    if form.frame_size and not (folder / "tokenizer.json").is_file():
        stated, world = form.frame_size(tokenizer), config.world
        if stated != (world.height, world.width):
            raise ValueError(
                f"models.tokenizer must be for frames of {world.height}x{world.width}, got {stated[0]}x{stated[1]}; "
                f"set world.height={stated[0]} world.width={stated[1]} or choose another tokenizer"
            )
    return form.shape(tokenizer, height * width)


def grid_of(config: Config, folder: Path, codec: Json) -> tuple[int, int]:
    """Return rows and columns of an encoded frame; check that the codec's frame size is the world's."""
    world = config.world
    stem = {"height": world.height, "width": world.width, "pixel_unshuffle": 1}
    if (folder / "tokenizer.json").is_file():
        stem = read_settings(folder, "tokenizer.json", "models.tokenizer")
    if (stem["height"], stem["width"]) != (world.height, world.width):
        raise ValueError(
            f"models.tokenizer must be for frames of {world.height}x{world.width}, got "
            f"{stem['height']}x{stem['width']}; set world.height={stem['height']} world.width={stem['width']} "
            "or choose another tokenizer"
        )
    factor = stem["pixel_unshuffle"] * 2 ** (len(codec["block_out_channels"]) - 1)
    return world.height // factor, world.width // factor


def check_architecture(stated: ArchitectureConfig, held: ArchitectureConfig) -> None:
    """Check that a policy has the sizes that the configuration states.

    Raises:
        ValueError: a size differs.
    """
    for entry in dataclasses.fields(stated):
        wanted, got = getattr(stated, entry.name), getattr(held, entry.name)
        if wanted and wanted != got:
            raise ValueError(
                f"models.policy must have architecture.{entry.name}={wanted}, got {got}; choose a recipe of this "
                f"size or set architecture.{entry.name}={got}"
            )


def check_guidance(config: Config, policy: Json) -> None:
    """Check that a policy whose rollouts or evaluations are guided knows frames without an action.

    Args:
        config: the run's.
        policy: the policy's config.json.

    Raises:
        ValueError: it was trained without action dropout.
    """
    for key, scale in config.guidance_scales.items():
        if scale != NO_GUIDANCE and not policy.get(DROPOUT_KEY):
            raise ValueError(
                f"{key} must be 1 with a policy that was trained without action dropout, got {scale:g} for "
                f"{config.models.policy}; set {key}=1, or pretrain with --action-dropout 0.2"
            )


def policy_layout(config: Config) -> ActionLayout:
    """Return how the configured policy gets actions, as its config.json says.

    Raises:
        ValueError: the file cannot be read, or its action space or layout cannot.
    """
    return layout_of(read_settings(asset_path(config.models.policy), "config.json", "models.policy"))


def policy_sequence(config: Config) -> TokenSequence:
    """Return the form of the configured token policy's sequences, as its config.json says."""
    return TokenSequence.of(read_settings(asset_path(config.models.policy), "config.json", "models.policy"))


def read_settings(folder: Path, file: str, what: str) -> Json:
    """Read a JSON file of a checkpoint.

    Raises:
        ValueError: the file cannot be read.
    """
    try:
        settings: Json = json.loads((folder / file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        found = type(error).__name__
        raise ValueError(f"{what} must hold a readable {file}, got {found} in {folder}; check models.*") from None
    return settings


# ---------------------------------------------------------------------------------------------------------------------
# Sizes in a config.json


def is_flow_model(settings: Json) -> bool:
    """Return whether a config.json belongs to a model of `diffusers`' form, as all flow models do."""
    return "_class_name" in settings


def policy_architecture(settings: Json) -> ArchitectureConfig:
    """Return the sizes in a LlamaForCausalLM's config.json; 0 for a missing size."""
    return ArchitectureConfig(
        num_codes=TokenSequence.of(settings).shape.num_codes,
        tokens_per_frame=settings.get("tokens_per_frame", 0),
        hidden_size=settings.get("hidden_size", 0),
        intermediate_size=settings.get("intermediate_size", 0),
        num_layers=settings.get("num_hidden_layers", 0),
        num_heads=settings.get("num_attention_heads", 0),
        num_key_value_heads=settings.get("num_key_value_heads", 0),
        max_positions=settings.get("max_position_embeddings", 0),
    )
