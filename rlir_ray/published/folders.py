"""Loading of published folders: config.json beside weights, as `diffusers` and `transformers` write them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from rlir_ray.data.files import Json
from rlir_ray.models.checkpoints import assign_weights, check_fit, read_state_dict

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin
    from transformers import LlamaForCausalLM

    Llama = TypeVar("Llama", bound=LlamaForCausalLM)

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class PublishedPart:
    """A model of a published folder, in evaluation mode on the CPU and in its stored precision."""

    place: str
    """Folder of the model in the published folder."""
    name: str
    """In words."""
    model: ModelMixin | LlamaForCausalLM
    files: list[Path]
    """Of its weights."""
    setting: str = ""
    """Setting of a run that takes the model; empty: none does."""


def read_settings(path: Path) -> Json:
    """Read a config.json.

    Raises:
        ValueError: it is missing or broken, or maps no names.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"a config.json must be readable, got {error} in {path}; copy the folder again") from None
    if not isinstance(content, dict):
        raise ValueError(f"a config.json must map names to values, got a {type(content).__name__} in {path}")
    return content


def tokenizer_files(folder: Path) -> list[Path]:
    """Return the files with a tokenizer's weights; see `_weight_files`."""
    return _weight_files(folder, ("diffusion_pytorch_model",))


def transformer_files(folder: Path) -> list[Path]:
    """Return the files with a transformer's weights; see `_weight_files`."""
    return _weight_files(folder, ("model", "pytorch_model"))


def read_weights(files: list[Path]) -> dict[str, Tensor]:
    """Read the tensors of files that are parts of one model."""
    return {name: value for path in files for name, value in read_state_dict(path).items()}


def load_tokenizer(kind: type[Model], settings: Json, files: list[Path], what: str) -> Model:
    """Build one of our `diffusers` models from published weights.

    Args:
        kind: its class.
        settings: content of its config.json.
        files: of its weights.
        what: name of the model in errors.

    Raises:
        ValueError: the config is of another class, or tensors are missing, unexpected, of another shape or not finite.
    """
    arguments = {name: value for name, value in settings.items() if not name.startswith("_")}
    try:
        with torch.device("meta"):
            model = kind(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the config.json of {what} must hold the arguments of {kind.__name__}, got: {error}"
        ) from None
    state = read_weights(files)
    check_fit(model.state_dict(), state, what)
    assign_weights(model, state, what)
    # nn.Module's own, here and below, because the libraries' `eval` are not annotated.
    return nn.Module.eval(model)


def load_llama(kind: type[Llama], settings: Json, state: dict[str, Tensor], what: str) -> Llama:
    """Build a LlamaForCausalLM, or a subclass of it, from published weights.

    Args:
        kind: its class.
        settings: content of its config.json.
        state: its weights.
        what: name of the model in errors.

    Raises:
        ValueError: the config is of another model, or tensors are missing, unexpected, of another shape or not finite.
    """
    from transformers import LlamaConfig

    try:
        config = LlamaConfig.from_dict(settings)
        with torch.device("meta"):
            llama = kind(config)
    except Exception as error:
        # transformers raises several types of errors for invalid values.
        found = " ".join(str(error).split())
        raise ValueError(f"the config.json of {what} must describe a LlamaForCausalLM, got: {found}") from None
    # Older versions of transformers stored this buffer, which is computed from the config.
    kept = {name: value for name, value in state.items() if not name.endswith("rotary_emb.inv_freq")}
    check_fit(llama.state_dict(), kept, what)
    assign_weights(llama, kept, what)
    # The rotary embedding was created on the meta device and is not in the checkpoint: create it again.
    llama.model.rotary_emb = type(llama.model.rotary_emb)(config)
    config.dtype = llama.lm_head.weight.dtype
    return nn.Module.eval(llama)


def _weight_files(folder: Path, stems: tuple[str, ...]) -> list[Path]:
    """Return the files with the weights of a folder, one or several parts, of safetensors if there are any.

    Raises:
        ValueError: there are none.
    """
    for suffix in (".safetensors", ".bin"):
        names = [f"{stem}{part}{suffix}" for stem in stems for part in ("", "-*-of-*")]
        if files := sorted(path for name in names for path in folder.glob(name)):
            return files
    raise ValueError(
        f"a published folder must hold its weights, got no {stems[0]}.safetensors in {folder}; copy the folder again"
    )
