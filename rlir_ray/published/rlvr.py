"""Loading of RLVR-World's published folders (Hugging Face, `thuml/rt1-*`): tokenizers and transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlir_ray.data.files import Json
from rlir_ray.models.checkpoints import assign_weights, check_fit, read_state_dict
from rlir_ray.models.rlvr_compressive import RlvrCompressiveTokenizer
from rlir_ray.models.rlvr_tokenizer import RlvrTokenizer
from rlir_ray.models.token_sequence import TokenSequence, TokenShape
from rlir_ray.spaces.layouts import RlvrLayout

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    RlvrModel = RlvrTokenizer | RlvrCompressiveTokenizer | LlamaForCausalLM

TOKENIZERS = {
    "CNNFSQModel256": RlvrTokenizer,
    "RlvrTokenizer": RlvrTokenizer,
    "CompressiveVQModelFSQ": RlvrCompressiveTokenizer,
    "RlvrCompressiveTokenizer": RlvrCompressiveTokenizer,
}
"""Class name in a config.json -> our class."""
NAMES = {RlvrTokenizer: "frame tokenizer", RlvrCompressiveTokenizer: "compressive tokenizer"}
FORMS = {
    "single-step": TokenSequence(layout=RlvrLayout(), shape=TokenShape(4375, 320), bos_id=4631),
    "multi-step": TokenSequence(layout=RlvrLayout(), shape=TokenShape(4375, 80, 4375, 1280)),
}
"""Name of a transformer -> its sequences, at their published sizes.

They leave out the tokens from which nothing is decided: the EOS behind a single-step model's frame, and the action that
the multi-step models have behind the last frame.
"""
PLACES = ("", "tokenizer", "transformer")
"""Where a folder can hold a model: itself, or below."""


@dataclass(frozen=True)
class RlvrPart:
    """A model of a published folder, in evaluation mode on the CPU and in its stored precision."""

    place: str
    """Of `PLACES`."""
    name: str
    """In words."""
    model: RlvrModel


def load_rlvr(folder: Path | str) -> list[RlvrPart]:
    """Load all models of a published folder.

    Args:
        folder: a `diffusers` folder of a tokenizer, a `transformers` folder of a transformer, or a folder of such
            folders, `tokenizer` and `transformer`.

    Raises:
        ValueError: the folder holds no model of RLVR-World's form, or tensors are missing, unexpected, of another shape
            or not finite; the error names the first ones.
    """
    places = [place for place in PLACES if (Path(folder) / place / "config.json").is_file()]
    if not places:
        raise ValueError(
            f"a folder of RLVR-World must hold a config.json, itself or in tokenizer or transformer, got none in "
            f"{folder}; give a folder as published"
        )
    return [_load(Path(folder) / place, place) for place in places]


def _load(folder: Path, place: str) -> RlvrPart:
    settings = _read_settings(folder / "config.json")
    kind = TOKENIZERS.get(settings.get("_class_name", ""))
    if kind is not None:
        return RlvrPart(place, NAMES[kind], _load_tokenizer(kind, settings, folder))
    if settings.get("model_type") == "llama":
        form = _form_of(settings, folder)
        return RlvrPart(place, f"{form} world model", _load_transformer(form, settings, folder))
    found = settings.get("_class_name") or settings.get("model_type") or "another file"
    raise ValueError(
        f"a config.json of RLVR-World must be of a CNNFSQModel256, a CompressiveVQModelFSQ or a LlamaForCausalLM, got "
        f"{found} in {folder}; give a folder as published"
    )


def _load_tokenizer(
    kind: type[RlvrTokenizer] | type[RlvrCompressiveTokenizer], settings: Json, folder: Path
) -> RlvrTokenizer | RlvrCompressiveTokenizer:
    arguments = {name: value for name, value in settings.items() if not name.startswith("_")}
    try:
        with torch.device("meta"):
            model: RlvrTokenizer | RlvrCompressiveTokenizer = kind(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} must hold the arguments of {kind.__name__}, got: {error}") from None
    state, what = _read_weights(folder, ("diffusion_pytorch_model",)), f"RLVR-World's {NAMES[kind]} in {folder}"
    check_fit(model.state_dict(), state, what)
    assign_weights(model, state, what)
    model.eval()
    return model


def _form_of(settings: Json, folder: Path) -> str:
    """Return the key of `FORMS` that has a transformer's vocabulary."""
    sizes = {form.settings()["vocab_size"]: name for name, form in FORMS.items()}
    if settings.get("vocab_size") not in sizes:
        raise ValueError(
            f"vocab_size of RLVR-World's transformers must be {' or '.join(map(str, sizes))}, got "
            f"{settings.get('vocab_size')} in {folder}; give the transformer's folder as published"
        )
    return sizes[settings["vocab_size"]]


def _load_transformer(form: str, settings: Json, folder: Path) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    try:
        config = LlamaConfig.from_dict(settings)
        with torch.device("meta"):
            llama: LlamaForCausalLM = LlamaForCausalLM(config)
    except Exception as error:
        # transformers raises several types of errors for invalid values.
        found = " ".join(str(error).split())
        raise ValueError(f"{folder / 'config.json'} must describe a LlamaForCausalLM, got: {found}") from None
    state = {
        name: value
        for name, value in _read_weights(folder, ("model", "pytorch_model")).items()
        # Older versions of transformers stored this buffer, which is computed from the config.
        if not name.endswith("rotary_emb.inv_freq")
    }
    what = f"RLVR-World's transformer in {folder}"
    check_fit(llama.state_dict(), state, what)
    assign_weights(llama, state, what)
    # The rotary embedding was created on the meta device and is not in the checkpoint: create it again.
    llama.model.rotary_emb = type(llama.model.rotary_emb)(config)
    config.dtype = llama.lm_head.weight.dtype
    config.update(FORMS[form].settings())
    llama.eval()
    return llama


def _read_weights(folder: Path, stems: tuple[str, ...]) -> dict[str, Tensor]:
    """Read the weights of a folder, in one file or in parts, from safetensors if there are any."""
    for suffix in (".safetensors", ".bin"):
        names = [f"{stem}{part}{suffix}" for stem in stems for part in ("", "-*-of-*")]
        if files := sorted(path for name in names for path in folder.glob(name)):
            return {name: value for path in files for name, value in read_state_dict(path).items()}
    raise ValueError(
        f"a folder of RLVR-World must hold its weights, got no {stems[0]}.safetensors in {folder}; copy the folder "
        "again"
    )


def _read_settings(path: Path) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"a config.json must be readable, got {error} in {path}; copy the folder again") from None
    if not isinstance(content, dict):
        raise ValueError(f"a config.json must map names to values, got a {type(content).__name__} in {path}")
    return content
