"""The models: their checkpoint folders, the size of the policy, and low-rank adapters on it."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Annotated

from rlir_ray.config.messages import require
from rlir_ray.config.section import LIST, FamilyName, NonNegativeFloat, NonNegativeInt, section


@section("models")
class ModelsConfig:
    """Checkpoint folders; `asset:NAME` is a folder shipped with the package."""

    policy: str = "asset:doom/world_model"
    """The base world model: a `transformers` LlamaForCausalLM or a `diffusers` FlowWorldModel."""
    adapter: str = ""
    """LoRA adapter of an earlier run to train further; empty: no adapter, or a new one (lora.rank > 0)."""
    tokenizer: str = "asset:doom/tokenizer"
    """Frame tokenizer: a `diffusers` VQModel; with policy.family=flow an AutoencoderKL."""
    reward_idm: str = "asset:doom/reward_idm"
    """Inverse dynamics model of the inverse reward; your own reward does not use it."""
    judge_idm: str = "asset:doom/judge_idm"
    """Inverse dynamics model of the evaluation, ideally not reward_idm; empty: evaluate picture quality only."""


@section("policy")
class PolicyConfig:
    """The kind of world model that the policy is."""

    family: FamilyName = "autoregressive"
    """`autoregressive` (tokens), `flow` (diffusion), a name from an installed package, or package.module:Name."""


@section("architecture")
class ArchitectureConfig:
    """The size of the policy, to check its checkpoint and to create new weights; 0: the size of the checkpoint."""

    num_codes: NonNegativeInt = 0
    """Number of codes of the tokenizer."""
    tokens_per_frame: NonNegativeInt = 0
    """Number of tokens of a frame."""
    hidden_size: NonNegativeInt = 0
    """Width of a layer."""
    intermediate_size: NonNegativeInt = 0
    """Width of the MLP of a layer."""
    num_layers: NonNegativeInt = 0
    """Number of decoder layers."""
    num_heads: NonNegativeInt = 0
    """Number of query heads."""
    num_key_value_heads: NonNegativeInt = 0
    """Number of key-value heads."""
    max_positions: NonNegativeInt = 0
    """Number of tokens of the longest sequence."""
    latent_channels: NonNegativeInt = 0
    """Number of channels of the autoencoder's latents (flow models)."""
    patch_size: NonNegativeInt = 0
    """Side of a square patch in latents; each patch is one token (flow models)."""


@section("lora")
class LoraConfig:
    """Low-rank adapters (https://arxiv.org/abs/2106.09685); the run trains, publishes and saves only the adapter."""

    rank: NonNegativeInt = 0
    """Rank of a new adapter; 0: train the whole policy. models.adapter keeps its own rank, alpha and targets."""
    alpha: NonNegativeFloat = 0.0
    """Scale of the adapter: its outputs are multiplied by alpha / rank; 0: alpha equals rank."""
    targets: Annotated[tuple[str, ...], LIST] = ()
    """Names of the linear layers that get an adapter; empty: the linear layers of attention and MLP."""


def asset_path(path: str) -> Path:
    """Return the path of a checkpoint folder; `asset:NAME` is a folder inside the package.

    Raises:
        ValueError: the folder does not exist.
    """
    folder = (
        Path(str(importlib.resources.files("rlir_ray") / "assets" / path[6:])) if path[:6] == "asset:" else Path(path)
    )
    require(
        bool(path) and folder.is_dir(),
        "a checkpoint",
        "must be an existing folder",
        str(path),
        "check the models.* paths",
    )
    return folder
