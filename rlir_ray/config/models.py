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
    """The base world model: a `transformers` LlamaForCausalLM folder, or a `diffusers` FlowWorldModel one."""
    adapter: str = ""
    """LoRA adapter of an earlier run, which the training continues; empty: none, or a new one (lora.rank > 0)."""
    tokenizer: str = "asset:doom/tokenizer"
    """Frame tokenizer: a `diffusers` VQModel folder; with policy.family=flow an AutoencoderKL one."""
    reward_idm: str = "asset:doom/reward_idm"
    """Inverse dynamics model of the reward; not used with your own reward."""
    judge_idm: str = "asset:doom/judge_idm"
    """Inverse dynamics model of the evaluation, best another one than reward_idm; empty: picture quality alone."""


@section("policy")
class PolicyConfig:
    """What kind of world model the policy is."""

    family: FamilyName = "autoregressive"
    """`autoregressive`: tokens; `flow`: flow matching (diffusion); an installed package's; or package.module:Name."""


@section("architecture")
class ArchitectureConfig:
    """The size of the policy, for a check of its checkpoint and for fresh weights; 0: whatever the checkpoint has."""

    num_codes: NonNegativeInt = 0
    """Codes of the tokenizer."""
    tokens_per_frame: NonNegativeInt = 0
    """Tokens of a frame."""
    hidden_size: NonNegativeInt = 0
    """Width."""
    intermediate_size: NonNegativeInt = 0
    """Width of the MLP."""
    num_layers: NonNegativeInt = 0
    """Decoder layers."""
    num_heads: NonNegativeInt = 0
    """Query heads."""
    num_key_value_heads: NonNegativeInt = 0
    """Key-value heads."""
    max_positions: NonNegativeInt = 0
    """Tokens of the longest sequence."""
    latent_channels: NonNegativeInt = 0
    """Channels of the autoencoder's latents (flow models)."""
    patch_size: NonNegativeInt = 0
    """Side of a patch in latents; one token is one patch (flow models)."""


@section("lora")
class LoraConfig:
    """Low-rank adapters (https://arxiv.org/abs/2106.09685): only they are trained, published and saved."""

    rank: NonNegativeInt = 0
    """Rank of a new adapter; 0: train the whole policy. models.adapter keeps its own rank, alpha and targets."""
    alpha: NonNegativeFloat = 0.0
    """Scale: adapter outputs are multiplied by alpha / rank; 0: alpha is the rank."""
    targets: Annotated[tuple[str, ...], LIST] = ()
    """Names of the linear layers that get an adapter; empty: those of attention and MLP."""


def asset_path(path: str) -> Path:
    """A checkpoint folder; `asset:NAME` resolves into the package.

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
