"""The size of a policy as its config.json states it, for checks before weights are loaded."""

from __future__ import annotations

from rlir_ray.config import ArchitectureConfig
from rlir_ray.data.files import Json
from rlir_ray.models.autoregressive import NUM_EXTRA_IDS


def is_flow_model(settings: Json) -> bool:
    """Return whether a config.json is a FlowWorldModel's."""
    return bool(settings.get("_class_name") == "FlowWorldModel")


def stated_architecture(settings: Json) -> ArchitectureConfig:
    """Return the size that a config.json of either family states."""
    return flow_architecture(settings) if is_flow_model(settings) else policy_architecture(settings)


def policy_architecture(settings: Json) -> ArchitectureConfig:
    """Return the size that a LlamaForCausalLM's config.json states; 0 where it says nothing."""
    return ArchitectureConfig(
        num_codes=max(0, settings.get("vocab_size", 0) - NUM_EXTRA_IDS),
        tokens_per_frame=settings.get("tokens_per_frame", 0),
        hidden_size=settings.get("hidden_size", 0),
        intermediate_size=settings.get("intermediate_size", 0),
        num_layers=settings.get("num_hidden_layers", 0),
        num_heads=settings.get("num_attention_heads", 0),
        num_key_value_heads=settings.get("num_key_value_heads", 0),
        max_positions=settings.get("max_position_embeddings", 0),
    )


def flow_architecture(settings: Json) -> ArchitectureConfig:
    """Return the size that a FlowWorldModel's config.json states."""
    height, width, patch = (settings[name] for name in ("latent_height", "latent_width", "patch_size"))
    return ArchitectureConfig(
        tokens_per_frame=height * width // patch**2,
        hidden_size=settings["hidden_size"],
        intermediate_size=int(settings["mlp_ratio"] * settings["hidden_size"]),
        num_layers=settings["num_layers"],
        num_heads=settings["num_heads"],
        latent_channels=settings["latent_channels"],
        patch_size=patch,
    )
