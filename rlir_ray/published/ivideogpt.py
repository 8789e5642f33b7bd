"""Loading of iVideoGPT's published folders (Hugging Face, `thuml/ivideogpt-*`): a tokenizer and its transformer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rlir_ray.models.ivideogpt_sequences import IvideogptSequences
from rlir_ray.models.ivideogpt_tokenizer import IvideogptTokenizer
from rlir_ray.models.token_sequence import UNSAMPLED_KEY
from rlir_ray.published.folders import (
    PublishedPart,
    load_llama,
    load_tokenizer,
    read_settings,
    read_weights,
    tokenizer_files,
    transformer_files,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

TOKENIZER, TRANSFORMER = "tokenizer", "transformer"
"""The folders in a published folder."""
CLASS_NAMES = ("CompressiveVQModel", IvideogptTokenizer.__name__)
"""In a tokenizer's config.json."""
ACTION_WEIGHT = "action_linear.weight"


def load_ivideogpt(folder: Path | str) -> list[PublishedPart]:
    """Load tokenizer and transformer of a published folder.

    Args:
        folder: holds the folders `tokenizer` and `transformer`.

    Raises:
        ValueError: the folder holds no models of iVideoGPT's form, or tensors are missing, unexpected, of another shape
            or not finite; the error names the first ones.
    """
    for place in (TOKENIZER, TRANSFORMER):
        if not (Path(folder) / place / "config.json").is_file():
            raise ValueError(
                f"a folder of iVideoGPT must hold {TOKENIZER}/config.json and {TRANSFORMER}/config.json, got no "
                f"{place}/config.json in {folder}; give a folder as published"
            )
    part, tokenizer = _load_tokenizer(Path(folder) / TOKENIZER)
    return [part, _load_transformer(Path(folder) / TRANSFORMER, IvideogptSequences.of(tokenizer))]


def _load_tokenizer(folder: Path) -> tuple[PublishedPart, IvideogptTokenizer]:
    settings = read_settings(folder / "config.json")
    if (found := settings.get("_class_name")) not in CLASS_NAMES:
        raise ValueError(
            f"iVideoGPT's tokenizer must be a {CLASS_NAMES[0]}, got {found} in {folder}; give a folder as published"
        )
    files = tokenizer_files(folder)
    model = load_tokenizer(IvideogptTokenizer, settings, files, f"iVideoGPT's tokenizer in {folder}")
    return PublishedPart(place=TOKENIZER, name="compressive tokenizer", model=model, files=files), model


def _load_transformer(folder: Path, form: IvideogptSequences) -> PublishedPart:
    """Load a transformer, as an `IvideogptTransformer` if it reads actions, else as a LlamaForCausalLM."""
    from transformers import LlamaForCausalLM

    from rlir_ray.models.ivideogpt_transformer import IvideogptTransformer

    settings = read_settings(folder / "config.json")
    if settings.get("model_type") != "llama" or settings.get("vocab_size") != form.vocab_size:
        raise ValueError(
            f"iVideoGPT's transformer must be a llama with vocab_size={form.vocab_size}, the ids of its tokenizer, got "
            f"{settings.get('model_type')} with {settings.get('vocab_size')} in {folder}; give a folder as published"
        )
    files = transformer_files(folder)
    # A published model with actions holds the LlamaForCausalLM as `llm`; a folder of ours does not.
    state = {name.removeprefix("llm."): value for name, value in read_weights(files).items()}
    kind: type[LlamaForCausalLM] = LlamaForCausalLM
    name = "world model without actions"
    if ACTION_WEIGHT in state:
        kind, name = IvideogptTransformer, "world model"
        settings["action_size"] = state[ACTION_WEIGHT].shape[-1]
    llama = load_llama(kind, settings, state, f"iVideoGPT's transformer in {folder}")
    llama.config.update({UNSAMPLED_KEY: "ivideogpt", "tokens_per_frame": form.tokens_per_frame})
    return PublishedPart(place=TRANSFORMER, name=name, model=llama, files=files)
