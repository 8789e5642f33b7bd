"""Loading of DIAMOND's published agents (HF eloialonso/diamond, atari_100k/models): the world model of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rlir_ray.data.files import Json
from rlir_ray.models.checkpoints import assign_weights, read_state_dict
from rlir_ray.models.diamond import DiamondWorldModel

PREFIX = "denoiser.inner_model."
"""In front of the world model's tensors; an agent also holds a reward model and a policy."""


def load_diamond(weights: Path | str) -> DiamondWorldModel:
    """Load the world model of a published agent, in evaluation mode on the CPU and in its stored precision.

    The tensors' shapes give the sizes and the number of actions. Frames are 64 x 64, which no tensor shows.

    Args:
        weights: a torch file of tensors, or `.safetensors`.

    Raises:
        ValueError: the file is missing or broken, or its tensors are not those of DIAMOND's world model of Atari games;
            the error names the first wrong tensor.
    """
    state = read_state_dict(weights)
    found = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    if not found:
        _refuse(f"tensors named {PREFIX}*", f"{next(iter(state), 'no tensor')} first", weights)
    sizes = _sizes(found, weights)
    try:
        with torch.device("meta"):
            model: DiamondWorldModel = DiamondWorldModel(**sizes)
    except ValueError as error:
        raise ValueError(f"{weights} must hold DIAMOND's world model of an Atari game, got: {error}") from None
    wanted = model.state_dict()
    for name, value in wanted.items():
        if name not in found or found[name].shape != value.shape:
            got = f"{list(found[name].shape)}" if name in found else "none"
            _refuse(f"{PREFIX}{name} {list(value.shape)}", got, weights)
        if not found[name].is_floating_point():
            _refuse(f"{PREFIX}{name} in floating point", str(found[name].dtype), weights)
    if unknown := next((name for name in found if name not in wanted), None):
        _refuse("these tensors alone", f"{PREFIX}{unknown} too", weights)
    assign_weights(model, found, f"DIAMOND's world model in {weights}")
    model.eval()
    return model


def _refuse(wanted: str, got: str, weights: Path | str) -> None:
    """Raise the error for a file of another model."""
    raise ValueError(
        f"an agent of DIAMOND's Atari games must hold {wanted}, got {got} in {weights}; give a file of "
        "atari_100k/models"
    )


def _sizes(found: Mapping[str, Tensor], weights: Path | str) -> Json:
    """Return a model's arguments, read from the shapes of its tensors."""

    def size(name: str, axis: int, num_axes: int) -> int:
        if name not in found or found[name].ndim != num_axes:
            got = f"{list(found[name].shape)}" if name in found else "none"
            _refuse(f"{PREFIX}{name} with {num_axes} dimensions", got, weights)
        return int(found[name].shape[axis])

    def count(template: str) -> int:
        number = 0
        while template.format(number) in found:
            number += 1
        return number

    num_levels = max(1, count("unet.d_blocks.{}.resblocks.0.conv1.weight"))
    blocks = [f"unet.d_blocks.{level}.resblocks" for level in range(num_levels)]
    return {
        "num_actions": size("act_emb.0.weight", 0, 2),
        "num_steps_conditioning": size("conv_in.weight", 1, 4) // 3 - 1,
        "cond_channels": size("cond_proj.0.weight", 0, 2),
        "depths": tuple(count(f"{name}.{{}}.conv1.weight") for name in blocks),
        "channels": tuple(size(f"{name}.0.conv1.weight", 0, 4) for name in blocks),
        "attn_depths": tuple(int(f"{name}.0.attn.qkv_proj.weight" in found) for name in blocks),
    }
