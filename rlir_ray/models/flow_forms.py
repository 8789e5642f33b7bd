"""The forms of flow world models: what differs between checkpoints of Next-Frame Diffusion, Oasis and DIAMOND.

The class name in a policy's config.json names its form. Models are imported only when one is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rlir_ray.config import ArchitectureConfig, Config, asset_path, require
from rlir_ray.data.files import Json
from rlir_ray.models.compatibility import (
    check_architecture,
    check_guidance,
    grid_of,
    policy_architecture,
    read_settings,
)
from rlir_ray.models.frame_codec import FrameCodec
from rlir_ray.spaces.diamond import diamond_layout
from rlir_ray.spaces.layouts import ActionLayout, OasisLayout, layout_of
from rlir_ray.trajectory import FrameShape

Latents = tuple[int, int, int]
"""Channels, height and width of a frame's latents."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowForm:
    """One form of flow world models."""

    open_policy: Callable[[Path], nn.Module]
    """Opens a policy, in float32 on the CPU."""
    latents: Callable[[Json], Latents]
    """Returns the shape of latents in a policy's config.json."""
    layout: Callable[[Json], ActionLayout]
    """Returns how a policy gets actions, from its config.json."""
    architecture: Callable[[Json], ArchitectureConfig]
    """Returns the sizes in a policy's config.json."""
    check: Callable[[Config, Json], None] = lambda config, policy: None
    """Checks settings of a run that the form does not allow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentCodec:
    """One form of autoencoders."""

    load: Callable[[], type[FrameCodec]]
    """Imports its class."""
    latents: Callable[[Config, Path, Json], Latents]
    """Returns the shape of latents in a config.json, and checks that the frames are those of the world."""
    has_weights: bool = True
    """False: its folder holds a config.json alone."""


def check_flow_world(config: Config) -> FrameShape:
    """Check that a flow model and its autoencoder fit the configured world; return the shape of an encoded frame.

    Raises:
        ValueError: family, form, frame size or shape of latents differ, or the form does not allow a setting.
    """
    folder, policy = asset_path(config.models.tokenizer), policy_settings(config)
    form = form_of(policy, asset_path(config.models.policy))
    autoencoder = read_settings(folder, "config.json", "models.tokenizer")
    wanted, got = codec_of(autoencoder, folder).latents(config, folder, autoencoder), form.latents(policy)
    if got != wanted:
        raise ValueError(
            f"models.policy must fit the autoencoder's latents {wanted}, got {got}; choose checkpoints that were "
            "trained together"
        )
    check_architecture(config.architecture, form.architecture(policy))
    check_guidance(config, policy)
    form.check(config, policy)
    return got


def policy_settings(config: Config) -> Json:
    """Return the config.json of the configured policy."""
    return read_settings(asset_path(config.models.policy), "config.json", "models.policy")


def form_of(policy: Json, folder: Path) -> FlowForm:
    """Return the form that a policy's config.json names.

    Raises:
        ValueError: the policy is no flow model.
    """
    if policy.get("_class_name") not in FORMS:
        raise ValueError(
            f"models.policy must be {_either(NAMES)} with policy.family=flow, got "
            f"another config.json in {folder}; give a flow model's folder or set policy.family=autoregressive"
        )
    return FORMS[policy["_class_name"]]


def open_flow_policy(folder: Path) -> nn.Module:
    """Open a policy of any form, in float32 and evaluation mode, on the CPU.

    Raises:
        ValueError: the folder holds no flow model, or its weights do not fit its config or are not finite.
    """
    return form_of(read_settings(folder, "config.json", "models.policy"), folder).open_policy(folder)


def codec_of(autoencoder: Json, folder: Path) -> LatentCodec:
    """Return the form that an autoencoder's config.json names.

    Raises:
        ValueError: the folder holds no autoencoder.
    """
    found = autoencoder.get("_class_name", "another config.json")
    if found not in CODECS:
        raise ValueError(
            f"models.tokenizer must be {_either(CODECS)} with policy.family=flow, got "
            f"{found} in {folder}; give an autoencoder's folder"
        )
    return CODECS[found]


def has_weights(settings: Json) -> bool:
    """Return whether the folder of a model must hold weights, from its config.json."""
    codec = CODECS.get(settings.get("_class_name", ""))
    return codec is None or codec.has_weights


def stated_architecture(policy: Json) -> ArchitectureConfig:
    """Return the sizes in a policy's config.json, of either family."""
    form = FORMS.get(policy.get("_class_name", ""))
    return form.architecture(policy) if form else policy_architecture(policy)


def _architecture(policy: Json, latents: Latents, num_layers: int) -> ArchitectureConfig:
    channels, height, width = latents
    patch, hidden_size = policy["patch_size"], policy["hidden_size"]
    return ArchitectureConfig(
        tokens_per_frame=height * width // patch**2,
        hidden_size=hidden_size,
        intermediate_size=int(policy["mlp_ratio"] * hidden_size),
        num_layers=num_layers,
        num_heads=policy["num_heads"],
        latent_channels=channels,
        patch_size=patch,
    )


def _either(names: Iterable[str]) -> str:
    """Return class names as "a X, an Y or a Z"."""
    *first, last = (f"{'an' if name[0] in 'AO' else 'a'} {name}" for name in names)
    return f"{', '.join(first)} or {last}"


def _check_published_steps(config: Config, name: str, steps: str) -> None:
    """Check that a run samples as a published sampler that reads earlier frames without noise."""
    require(
        config.flow.history_noise == 0,
        "flow.history_noise",
        f"must be 0 with {name}, which reads earlier frames without noise",
        config.flow.history_noise,
        "set flow.history_noise=0",
    )
    require(
        config.flow.shift == 1,
        "flow.shift",
        f"must be 1 with {name}, whose steps are {steps}",
        config.flow.shift,
        "leave it out",
    )


# ---------------------------------------------------------------------------------------------------------------------
# Next-Frame Diffusion's form


def _open_flow_model(folder: Path) -> nn.Module:
    from rlir_ray.models.flow import open_flow_model

    return open_flow_model(folder)


def _autoencoder() -> type[FrameCodec]:
    from rlir_ray.models.autoencoder import FrameAutoencoder

    return FrameAutoencoder


def _flow_latents(policy: Json) -> Latents:
    return (policy["latent_channels"], policy["latent_height"], policy["latent_width"])


def _autoencoder_latents(config: Config, folder: Path, autoencoder: Json) -> Latents:
    return (autoencoder["latent_channels"], *grid_of(config, folder, autoencoder))


def _flow_architecture(policy: Json) -> ArchitectureConfig:
    return _architecture(policy, _flow_latents(policy), policy["num_layers"])


# ---------------------------------------------------------------------------------------------------------------------
# Oasis' form


def _open_oasis(folder: Path) -> nn.Module:
    from rlir_ray.models.oasis_policy import open_oasis_policy

    return open_oasis_policy(folder)


def _oasis_codec() -> type[FrameCodec]:
    from rlir_ray.models.oasis_codec import OasisCodec

    return OasisCodec


def _oasis_latents(policy: Json) -> Latents:
    return (policy["in_channels"], policy["input_h"], policy["input_w"])


def _oasis_codec_latents(config: Config, folder: Path, autoencoder: Json) -> Latents:
    height, width, patch = (autoencoder[name] for name in ("input_height", "input_width", "patch_size"))
    require(
        (config.world.height, config.world.width) == (height, width),
        "world.height and world.width",
        "must be those of the autoencoder",
        f"{config.world.height}x{config.world.width}",
        f"set world.height={height} world.width={width}, or choose another autoencoder",
    )
    return (autoencoder["latent_dim"], height // patch, width // patch)


def _oasis_architecture(policy: Json) -> ArchitectureConfig:
    return _architecture(policy, _oasis_latents(policy), policy["depth"])


_OASIS = FlowForm(
    open_policy=_open_oasis,
    latents=_oasis_latents,
    layout=lambda policy: OasisLayout(),
    architecture=_oasis_architecture,
    check=lambda config, policy: _check_published_steps(config, "Oasis", "evenly spaced times"),
)


# ---------------------------------------------------------------------------------------------------------------------
# DIAMOND's form


def _open_diamond(folder: Path) -> nn.Module:
    from rlir_ray.models.diamond_policy import open_diamond_policy

    return open_diamond_policy(folder)


def _pixel_codec() -> type[FrameCodec]:
    from rlir_ray.models.pixel_codec import PixelCodec

    return PixelCodec


def _diamond_latents(policy: Json) -> Latents:
    return (3, policy["height"], policy["width"])


def _pixel_latents(config: Config, folder: Path, codec: Json) -> Latents:
    height, width = codec["height"], codec["width"]
    require(
        (config.world.height, config.world.width) == (height, width),
        "world.height and world.width",
        "must be those of the codec of pixels",
        f"{config.world.height}x{config.world.width}",
        f"set world.height={height} world.width={width}",
    )
    return (3, height, width)


def _diamond_architecture(policy: Json) -> ArchitectureConfig:
    return ArchitectureConfig(hidden_size=policy["cond_channels"], num_layers=sum(policy["depths"]), latent_channels=3)


def _check_diamond(config: Config, policy: Json) -> None:
    num_past = policy["num_steps_conditioning"]
    require(
        config.world.num_context >= num_past,
        "world.num_context",
        f"must be at least {num_past} with this DIAMOND model, which reads {num_past} earlier frames",
        config.world.num_context,
        f"set world.num_context={num_past}",
    )
    _check_published_steps(config, "DIAMOND", "those of the published sampler")
    require(
        not config.lora.rank or bool(config.lora.targets),
        "lora.targets",
        "must name layers with DIAMOND, a U-Net whose blocks have convolutions",
        config.lora.targets,
        "set lora.targets=[linear], or lora.rank=0 to train all weights",
    )


_DIAMOND = FlowForm(
    open_policy=_open_diamond,
    latents=_diamond_latents,
    layout=lambda policy: diamond_layout(policy["num_actions"], policy.get("action_space")),
    architecture=_diamond_architecture,
    check=_check_diamond,
)


# ---------------------------------------------------------------------------------------------------------------------
# All forms

# OasisPolicy and DiamondPolicy are what a run saves.
FORMS = {
    "FlowWorldModel": FlowForm(
        open_policy=_open_flow_model,
        latents=_flow_latents,
        layout=layout_of,
        architecture=_flow_architecture,
    ),
    "OasisWorldModel": _OASIS,
    "OasisPolicy": _OASIS,
    "DiamondWorldModel": _DIAMOND,
    "DiamondPolicy": _DIAMOND,
}
NAMES = ("FlowWorldModel", "OasisWorldModel", "DiamondWorldModel")
"""Class names that a person should know."""
CODECS = {
    "AutoencoderKL": LatentCodec(load=_autoencoder, latents=_autoencoder_latents),
    "OasisAutoencoder": LatentCodec(load=_oasis_codec, latents=_oasis_codec_latents),
    "PixelCodec": LatentCodec(load=_pixel_codec, latents=_pixel_latents, has_weights=False),
}
