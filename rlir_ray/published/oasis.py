"""Loading of Oasis-500M's published checkpoints (Etched/oasis-500m): a world model and an autoencoder of frames."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rlir_ray.data.files import Json
from rlir_ray.models.checkpoints import assign_weights, check_fit, read_state_dict
from rlir_ray.models.oasis import OasisAutoencoder, OasisWorldModel

PARTS = {"dit": OasisWorldModel, "vae": OasisAutoencoder}
"""Entry of a settings file -> the class whose arguments it holds."""
FREQUENCIES = "rotary_emb.freqs"
# Relative difference to a checkpoint's rotary frequencies that half precision explains.
NEAR = 1e-2


def load_oasis(part: str, weights: Path | str, config: Path | str = "") -> OasisWorldModel | OasisAutoencoder:
    """Load a published checkpoint, in evaluation mode on the CPU and in its stored precision.

    Args:
        part: key of `PARTS`.
        weights: `.safetensors`, or a torch file of tensors.
        config: JSON with the arguments of other sizes, of the part or of all parts under their keys; empty: the
            published sizes.

    Raises:
        ValueError: a file is missing or has another layout, tensors are missing, unexpected or have another shape, or
            the rotary frequencies are not those of Oasis; the error names the first ones.
    """
    kind = PARTS[part]
    settings = _read_settings(Path(config), part) if config else {}
    try:
        with torch.device("meta"):
            model: OasisWorldModel | OasisAutoencoder = kind(**settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{config} must hold the arguments of {kind.__name__}, got: {error}") from None
    state = read_state_dict(weights)
    # The rotary embeddings share their tensors, of which safetensors keeps one name each.
    frequencies = {name: value for name, value in state.items() if name.endswith(FREQUENCIES)}
    state = {name: value for name, value in state.items() if name not in frequencies}
    what = f"Oasis' {'world model' if part == 'dit' else 'autoencoder'} in {weights}"
    check_fit(model.state_dict(), state, what)
    if isinstance(model, OasisWorldModel):
        _check_frequencies(model, frequencies, what)
    assign_weights(model, state, what)
    model.eval()
    return model


def _read_settings(path: Path, part: str) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--config must be a readable JSON file, got {error}; check {path}") from None
    if not isinstance(content, dict):
        raise ValueError(f"--config must map names to values, got a {type(content).__name__} in {path}; check the file")
    if content.keys() & PARTS.keys():
        content = content.get(part, {})
    return {name: value for name, value in content.items() if not name.startswith("_")}


def _check_frequencies(model: OasisWorldModel, found: Mapping[str, Tensor], what: str) -> None:
    """Check that a checkpoint's rotary frequencies are the ones that the model computes."""
    across, along = model.rotary_rates()
    for name, value in found.items():
        wanted = across if ".s_attn" in name or "spatial" in name else along
        if value.shape != wanted.shape or not torch.allclose(value.float(), wanted, rtol=NEAR):
            raise ValueError(
                f"{name} of {what} must hold Oasis' rotary frequencies {wanted[:3].tolist()}, …, got "
                f"{value.flatten()[:3].tolist()}, …; give the published file"
            )
