"""Loading of RLVR-World's published folders (Hugging Face, `thuml/rt1-*`): tokenizers and transformers."""

from __future__ import annotations

from pathlib import Path

from rlir_ray.data.files import Json
from rlir_ray.models.rlvr_compressive import RlvrCompressiveTokenizer
from rlir_ray.models.rlvr_tokenizer import RlvrTokenizer
from rlir_ray.models.token_sequence import TokenSequence, TokenShape
from rlir_ray.published.folders import (
    PublishedPart,
    load_llama,
    load_tokenizer,
    read_settings,
    read_weights,
    tokenizer_files,
    transformer_files,
)
from rlir_ray.spaces.layouts import RlvrLayout

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


def load_rlvr(folder: Path | str) -> list[PublishedPart]:
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


def _load(folder: Path, place: str) -> PublishedPart:
    settings = read_settings(folder / "config.json")
    kind = TOKENIZERS.get(settings.get("_class_name", ""))
    if kind is not None:
        files = tokenizer_files(folder)
        tokenizer = load_tokenizer(kind, settings, files, f"RLVR-World's {NAMES[kind]} in {folder}")
        return PublishedPart(place=place, name=NAMES[kind], model=tokenizer, files=files, setting="models.tokenizer")
    if settings.get("model_type") == "llama":
        return _load_transformer(settings, folder, place)
    found = settings.get("_class_name") or settings.get("model_type") or "another file"
    raise ValueError(
        f"a config.json of RLVR-World must be of a CNNFSQModel256, a CompressiveVQModelFSQ or a LlamaForCausalLM, got "
        f"{found} in {folder}; give a folder as published"
    )


def _form_of(settings: Json, folder: Path) -> str:
    """Return the key of `FORMS` that has a transformer's vocabulary."""
    sizes = {form.settings()["vocab_size"]: name for name, form in FORMS.items()}
    if settings.get("vocab_size") not in sizes:
        raise ValueError(
            f"vocab_size of RLVR-World's transformers must be {' or '.join(map(str, sizes))}, got "
            f"{settings.get('vocab_size')} in {folder}; give the transformer's folder as published"
        )
    return sizes[settings["vocab_size"]]


def _load_transformer(settings: Json, folder: Path, place: str) -> PublishedPart:
    from transformers import LlamaForCausalLM

    form, files = _form_of(settings, folder), transformer_files(folder)
    llama = load_llama(LlamaForCausalLM, settings, read_weights(files), f"RLVR-World's transformer in {folder}")
    llama.config.update(FORMS[form].settings())
    return PublishedPart(place=place, name=f"{form} world model", model=llama, files=files, setting="models.policy")
