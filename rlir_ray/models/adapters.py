"""LoRA adapters on world models, through peft: add, bypass for the reference, merge and save.

Models of both families use the adapter methods of their own library; a WorldModel uses those of its LLaMA.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlir_ray.config import LoraConfig
from rlir_ray.data.files import give_usual_mode
from rlir_ray.models.checkpoints import check_fit, only_errors, read_state_dict

# The linear layers of attention and MLP, in each form of model.
LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FLOW_TARGETS = ("to_qkv", "to_out", "mlp_in", "mlp_out", "fc1", "fc2")
# Files that peft and diffusers write only for an adapter.
ADAPTER_FILES = ("adapter_config.json", "pytorch_lora_weights.safetensors")
# Default name of an adapter in diffusers and transformers.
NAME = "default"
# File of an adapter's weights in each library, and the prefix that peft adds to their names.
ADAPTER_WEIGHTS = {"llama": "adapter_model.safetensors", "flow": "pytorch_lora_weights.safetensors"}
PEFT_PREFIX = "base_model.model."
# Names of the two matrices of a plain LoRA, which samplers can merge; DoRA, biases and whole layers are rejected.
PLAIN_LORA = re.compile(r"\.lora_[AB]\.weight$")


def add_adapter(model: nn.Module, lora: LoraConfig, folder: str = "") -> None:
    """Freeze a model and add an adapter: a fresh one, or one that `save_policy` wrote.

    Args:
        model: a `WorldModel` or a `FlowWorldModel`.
        lora: settings of a fresh adapter, rank 1 or more; a saved adapter keeps its own settings.
        folder: folder of a saved adapter; empty: add a fresh adapter, which does not change the model's output yet.

    Raises:
        ValueError: the model has no layer for a target, or the saved adapter belongs to another model.
    """
    carrier = _carrier(model)
    model.requires_grad_(False)
    if folder:
        _load(carrier, folder)
    else:
        from peft import LoraConfig as PeftLoraConfig

        names = {name.rsplit(".", 1)[-1] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        usual = LLAMA_TARGETS if carrier is not model else FLOW_TARGETS
        targets = lora.targets or [name for name in usual if name in names]
        if unknown := sorted(set(targets) - names):
            raise ValueError(
                f"lora.targets must name linear layers of the policy, got {unknown[0]!r}; choose from "
                f"{', '.join(sorted(names))}"
            )
        # One of an adapter's two matrices starts with random numbers, which must be equal in every process.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            carrier.add_adapter(
                PeftLoraConfig(
                    r=lora.rank,
                    lora_alpha=lora.alpha or lora.rank,  # type: ignore[arg-type]  # any number
                    target_modules=list(targets),
                ),
                NAME,
            )
    if not has_adapter(model):
        raise ValueError(
            f"models.adapter must fit models.policy, got none of its layers in {folder}; give an adapter of this policy"
        )
    for name, weight in model.named_parameters():
        weight.requires_grad_(is_adapter_weight(name))


def _load(carrier: Any, folder: str) -> None:
    """Load an adapter in its library's layout; reject missing names, for which the library would draw random weights.

    Raises:
        ValueError: the folder holds no weights, another form than plain LoRA, or weights that do not fit this model.
    """
    of_flow = hasattr(carrier, "load_lora_adapter")
    name = ADAPTER_WEIGHTS["flow" if of_flow else "llama"]
    if not (Path(folder) / name).is_file():
        raise ValueError(f"models.adapter must hold {name}, got none in {folder}; give an adapter's folder")
    what = f"the adapter in {folder}"
    found = {key.removeprefix(PEFT_PREFIX): value for key, value in read_state_dict(Path(folder) / name).items()}
    if other := sorted(key for key in found if not PLAIN_LORA.search(key)):
        raise ValueError(
            f"models.adapter must be a plain LoRA of linear layers, got {other[0]} in {folder}; merge it into the "
            "policy and give that as models.policy"
        )
    try:
        with only_errors("transformers"), only_errors("diffusers"):
            if of_flow:
                carrier.load_lora_adapter(folder, prefix=None, adapter_name=NAME, use_safetensors=True)
            else:
                carrier.load_adapter(folder, NAME)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        if own := _adapter_weights(carrier):
            check_fit(own, found, what)  # names the weight, which the library's error does not
        cause = " ".join(str(error).split())
        raise ValueError(
            f"models.adapter must fit models.policy, got {cause} in {folder}; give an adapter of this policy"
        ) from error
    check_fit(_adapter_weights(carrier), found, what)


def _adapter_weights(carrier: nn.Module) -> dict[str, Tensor]:
    """Return the adapter's weights, named as in an adapter's file."""
    return {
        name.replace(f".{NAME}.", "."): value for name, value in carrier.named_parameters() if is_adapter_weight(name)
    }


def is_adapter_folder(folder: Path) -> bool:
    """Return whether a folder holds an adapter rather than a whole policy."""
    return any((folder / name).is_file() for name in ADAPTER_FILES)


def _carrier(model: nn.Module) -> Any:
    """Return the library's model; Any: each library has its own adapter methods."""
    return getattr(model, "llama", model)


def is_adapter_weight(name: str) -> bool:
    """Return whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


def has_adapter(model: nn.Module) -> bool:
    return any(is_adapter_weight(name) for name, _ in model.named_parameters())


def without_adapter(model: nn.Module) -> Callable[..., Tensor]:
    """Return the forward pass of the model without its adapter: a reference policy that needs no memory."""
    carrier = _carrier(model)

    def forward(*inputs: object) -> Tensor:
        carrier.disable_adapters()
        try:
            found: Tensor = model(*inputs)
            return found
        finally:
            carrier.enable_adapters()

    return forward


def merged_weight(linear: nn.Module) -> Tensor:
    """Return a linear layer's weight with its adapter added, detached."""
    weight = linear.get_parameter("weight").detach()
    if not hasattr(linear, "get_delta_weight"):
        return weight
    with torch.no_grad():
        change: Tensor = linear.get_delta_weight(NAME)  # type: ignore[operator]  # a method of peft's layers
        return weight + change.to(weight.dtype)


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a model, named as without an adapter; its adapter is added to them."""
    for name, weight in model.state_dict().items():
        if is_adapter_weight(name):
            continue
        owner, _, kind = name.rpartition(".")
        plain = owner.removesuffix(".base_layer")
        is_adapted = plain != owner and kind == "weight"
        yield f"{plain}.{kind}" if plain else kind, merged_weight(model.get_submodule(plain)) if is_adapted else weight


def bias_of(linear: nn.Module) -> Tensor | None:
    """Return a linear layer's bias, detached; None: there is none. Adapters with biases are rejected when loaded."""
    bias: Tensor | None = linear.bias  # type: ignore[assignment]  # a linear layer's bias is no module
    return None if bias is None else bias.detach()


def save_policy(model: Any, folder: Path) -> None:
    """Save a policy, or its adapter alone, in the layout of its library.

    The model (Any: no type says so) has `save_pretrained`. An adapter has peft's layout (adapter_config.json,
    adapter_model.safetensors) for a LLaMA, and diffusers' layout (pytorch_lora_weights.safetensors) for a flow model.
    """
    if not (isinstance(model, nn.Module) and has_adapter(model)):
        model.save_pretrained(folder)
    elif _carrier(model) is model:
        model.save_lora_adapter(folder, adapter_name=NAME)
    else:
        _carrier(model).save_pretrained(folder)
    give_usual_mode(folder)


def save_whole(model: nn.Module, folder: Path) -> None:
    """Save into a temporary folder beside `folder`, then rename it, so that `folder` is never half-written."""
    partial = folder.with_name(f".{folder.name}.partial")
    previous = folder.with_name(f".{folder.name}.previous")
    try:
        for leftover in (partial, previous):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        save_policy(model, partial)
        if folder.exists():
            os.replace(folder, previous)
        os.replace(partial, folder)
        shutil.rmtree(previous, ignore_errors=True)
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        # Convert safetensors' own error for a full disk too, because it names no file.
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        raise ValueError(f"a policy must be saved whole, got {error} at {folder}; make room or set run.dir") from None
