"""Loading of MineWorld's published checkpoints (arXiv 2504.08388): a LLaMA and a VQ model.

Without the prefixes of their weights, the models are a plain `transformers` LlamaForCausalLM and `diffusers` VQModel.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlir_ray.data.files import Json
from rlir_ray.models.checkpoints import assign_weights, read_state_dict

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vq_model import VQModel
    from transformers import LlamaForCausalLM

LLAMA_PREFIX = "transformer."
VQ_PREFIXES = ("tokenizer.model.", "model.")
# Fields of the published transformer_config that are not LlamaConfig fields.
NOT_LLAMA = ("torch_dtype", "token_num", "image_num", "frame")


@dataclass(frozen=True, kw_only=True)
class MineWorldCheckpoint:
    """The models of a checkpoint, in evaluation mode on the CPU and in their stored precision."""

    llama: LlamaForCausalLM | None
    """`config.tokens_per_frame` is set if the published config has `image_num`."""
    vq_model: VQModel | None


def load_mineworld(
    checkpoint: Path | str, config: Path | str, *, tokenizer_config: Path | str = ""
) -> MineWorldCheckpoint:
    """Load the models of a published checkpoint.

    Args:
        checkpoint: the `.ckpt` file of the world model, of the VQ model, or of both.
        config: the published YAML, its `transformer_config` as JSON, or the VQ model's config.json.
        tokenizer_config: the VQ model's config.json; empty: search for the file that the YAML names, beside the YAML,
            beside the checkpoint and in the working folder.

    Raises:
        ValueError: a file is missing or has another layout, or tensors are missing or have another shape; the error
            lists them.
    """
    state = read_state_dict(checkpoint)
    settings = _read_settings(Path(config))
    llama_state = _with_prefix(state, LLAMA_PREFIX)
    vq_state = next((part for prefix in VQ_PREFIXES if (part := _with_prefix(state, prefix))), {})
    if not llama_state and not vq_state:
        raise ValueError(
            f"a MineWorld checkpoint must hold transformer.* or tokenizer.model.*, got {', '.join(list(state)[:3])}, … "
            f"in {checkpoint}; give the published .ckpt file"
        )
    vq_settings = _find_vq_settings(settings, Path(config), Path(checkpoint), tokenizer_config) if vq_state else None
    return MineWorldCheckpoint(
        llama=build_llama(transformer_settings(settings, config), llama_state) if llama_state else None,
        vq_model=build_vq_model(vq_settings, vq_state) if vq_settings is not None else None,
    )


def build_llama(settings: Json, state: Mapping[str, Tensor]) -> LlamaForCausalLM:
    """Build a LlamaForCausalLM from the published `transformer_config` and the given weights.

    Raises:
        ValueError: the settings describe no LLaMA or fewer layers, or weights are missing or have another shape.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    try:
        config = LlamaConfig(
            **{key: value for key, value in settings.items() if key not in NOT_LLAMA},
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    except Exception as error:
        # transformers raises several types of errors for invalid values.
        found = " ".join(str(error).split())
        raise ValueError(f"transformer_config must describe a LLaMA, got {found}; correct --config") from None
    if beyond := {name.split(".")[2] for name in state if name.startswith("model.layers.")} - {
        str(layer) for layer in range(config.num_hidden_layers)
    }:
        raise ValueError(
            f"num_hidden_layers must be the checkpoint's number of layers, got {config.num_hidden_layers} for weights "
            f"of {config.num_hidden_layers + len(beyond)} layers; give the config of this checkpoint"
        )
    if "image_num" in settings:
        config.tokens_per_frame = settings["image_num"]
    with torch.device("meta"):
        llama: LlamaForCausalLM = LlamaForCausalLM(config)
    assign_weights(llama, state, "the world model")
    # The rotary embedding was created on the meta device and is not in the checkpoint: create it again.
    llama.model.rotary_emb = type(llama.model.rotary_emb)(config)
    config.dtype = llama.lm_head.weight.dtype
    llama.eval()
    return llama


def build_vq_model(settings: Json, state: Mapping[str, Tensor]) -> VQModel:
    """Build a VQModel from its config.json and the given weights.

    Raises:
        ValueError: weights are missing or have another shape.
    """
    from diffusers.models.autoencoders.vq_model import VQModel

    model: VQModel = VQModel.from_config(dict(settings))
    assign_weights(model, state, "the tokenizer")
    return model.eval()


def transformer_settings(settings: Json, config: Path | str) -> Json:
    """Return the LLaMA's settings from the published YAML, or from a part of it.

    Raises:
        ValueError: the settings are missing.
    """
    found: Json = settings.get("model", {}).get("params", settings).get("transformer_config", settings)
    found = found.get("params", found)
    if missing := {"hidden_size", "num_hidden_layers", "vocab_size"} - set(found):
        raise ValueError(
            f"--config must hold the published transformer_config, got no {sorted(missing)[0]} in {config}; give the "
            "YAML of the checkpoint"
        )
    return found


def _with_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _read_settings(path: Path) -> Json:
    from omegaconf import OmegaConf

    if not path.is_file():
        raise ValueError(f"a config must be an existing file, got {path}; check the path")
    try:
        # The YAML parser reads JSON too.
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"a config must be a readable YAML or JSON file, got {first}; check {path}") from None
    if not isinstance(content, dict):
        raise ValueError(f"a config must map names to values, got a {type(content).__name__} in {path}; check the file")
    return content  # type: ignore[return-value]  # OmegaConf knows more kinds of names than text


def _find_vq_settings(settings: Json, config: Path, checkpoint: Path, given: Path | str) -> Json:
    if given:
        content = _read_settings(Path(given))
        if "block_out_channels" not in content:
            raise ValueError(f"--tokenizer-config must be a VQ model's config.json, got another file: {given}")
        return content
    if "block_out_channels" in settings:
        return settings
    named = settings.get("model", {}).get("params", settings).get("tokenizer_config", {})
    relative = Path(named.get("params", {}).get("config_path", "vae/config.json"))
    # The published path is relative to MineWorld's repository, but users often store the files elsewhere.
    roots = (Path(), config.parent, config.parent.parent, checkpoint.parent, checkpoint.parent.parent)
    places = [root / path for root in roots for path in (relative, Path(*relative.parts[-2:]))]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(
            f"a checkpoint with a tokenizer needs the VQ model's config.json, got none at {relative}; give it with "
            "--tokenizer-config"
        )
    vq_settings: Json = json.loads(found.read_text(encoding="utf-8"))
    return vq_settings
