"""LoRA adapters on world models, through peft: added, left out for the reference, merged where needed, saved.

Both families' models carry their library's own adapter methods; a WorldModel's are those of its LLaMA.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlir_ray.config import LoraConfig
from rlir_ray.file_modes import give_usual_mode

# The linear layers of attention and MLP.
LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FLOW_TARGETS = ("to_qkv", "to_out", "mlp_in", "mlp_out")
# What peft and diffusers write for an adapter, and for nothing else.
ADAPTER_FILES = ("adapter_config.json", "pytorch_lora_weights.safetensors")
# How diffusers and transformers name the one adapter that a model carries.
NAME = "default"


def add_adapter(model: nn.Module, lora: LoraConfig, folder: str = "") -> None:
    """Freezes a model and gives it an adapter: fresh, or out of a folder that `save_policy` wrote.

    Args:
        model: a `WorldModel` or a `FlowWorldModel`.
        lora: of rank 1 or more for a fresh adapter; a saved one keeps its own.
        folder: of a saved adapter; empty: a fresh one, which changes nothing yet.

    Raises:
        ValueError: a target that the model has no layer of, or a saved adapter of another model.
    """
    carrier = _carrier(model)
    model.requires_grad_(False)
    if folder:
        _load(carrier, folder)
    else:
        from peft import LoraConfig as PeftLoraConfig

        targets = lora.targets or (LLAMA_TARGETS if carrier is not model else FLOW_TARGETS)
        names = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        if unknown := sorted(set(targets) - names):
            raise ValueError(
                f"lora.targets must name linear layers of the policy, got {unknown[0]!r}; choose from "
                f"{', '.join(sorted(names))}"
            )
        # The same in every process: an adapter starts with random numbers on one of its two sides.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            carrier.add_adapter(
                PeftLoraConfig(r=lora.rank, lora_alpha=lora.alpha or lora.rank, target_modules=list(targets)), NAME
            )
    if not has_adapter(model):
        raise ValueError(f"models.adapter must fit models.policy, got none of its layers in {folder}; give its own")
    for name, weight in model.named_parameters():
        weight.requires_grad_(is_adapter_weight(name))


def _load(carrier: Any, folder: str) -> None:
    """Each library's own layout."""
    if not list(Path(folder).glob("*.safetensors")):
        raise ValueError(f"models.adapter must hold an adapter's safetensors, got none in {folder}; give its folder")
    if hasattr(carrier, "load_lora_adapter"):
        carrier.load_lora_adapter(folder, prefix=None, adapter_name=NAME, use_safetensors=True)
    else:
        carrier.load_adapter(folder, NAME)


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a whole policy."""
    return any((folder / name).is_file() for name in ADAPTER_FILES)


def _carrier(model: nn.Module) -> Any:
    """The library's model, which has the adapter methods."""
    return getattr(model, "llama", model)


def is_adapter_weight(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


def has_adapter(model: nn.Module) -> bool:
    return any(is_adapter_weight(name) for name, _ in model.named_parameters())


def without_adapter(model: nn.Module) -> Callable[..., Tensor]:
    """The forward pass of the model that the adapter lies on: a reference policy that takes no memory."""
    carrier = _carrier(model)

    def forward(*inputs: Any) -> Tensor:
        carrier.disable_adapters()
        try:
            return model(*inputs)
        finally:
            carrier.enable_adapters()

    return forward


def merged_weight(linear: nn.Module) -> Tensor:
    """A linear layer's weight with its adapter added, detached."""
    weight: Tensor = linear.weight.detach()  # type: ignore[operator,union-attr,assignment]
    if not hasattr(linear, "get_delta_weight"):
        return weight
    with torch.no_grad():
        return weight + linear.get_delta_weight(NAME).to(weight.dtype)  # type: ignore[operator]


def save_policy(model: Any, folder: Path) -> None:
    """A policy's folder, or that of its adapter alone, in the layout of its library.

    peft's (adapter_config.json, adapter_model.safetensors) for a LLaMA, diffusers' (pytorch_lora_weights.safetensors)
    for a flow model.
    """
    if not (isinstance(model, nn.Module) and has_adapter(model)):
        model.save_pretrained(folder)
    elif _carrier(model) is model:
        model.save_lora_adapter(folder, adapter_name=NAME)
    else:
        _carrier(model).save_pretrained(folder)
    give_usual_mode(folder)
