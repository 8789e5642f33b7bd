"""The LlamaConfig fields that every implementation of a policy supports; other fields are rejected by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rlir_ray.models.token_sequence import BOS_KEY, KEYFRAME_KEYS
from rlir_ray.spaces.layouts import DROPOUT_KEY, LAYOUT_KEY, SPACE_KEY

if TYPE_CHECKING:
    from transformers import LlamaConfig

# Fields that the learner's model, the torch sampler and vLLM all implement.
COMPUTED = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
    "rope_parameters",
    "tokens_per_frame",
    *KEYFRAME_KEYS,
    BOS_KEY,
    SPACE_KEY,
    LAYOUT_KEY,
}
# Fields that change no log-probability: notes (one is on the training), initial weights, precision on disk, settings of
# generation, and fields that this project does not read. `pretraining_tp` only splits the same matrix products.
HARMLESS = {
    "transformers_version",
    "architectures",
    "model_type",
    "_name_or_path",
    "name_or_path",
    "dtype",
    "torch_dtype",
    "initializer_range",
    "max_position_embeddings",
    "use_cache",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "pretraining_tp",
    "id2label",
    "label2id",
    "problem_type",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    DROPOUT_KEY,
    "chunk_size_feed_forward",
}
# Frequencies of these types do not depend on the length of a sequence, so that decoding and a full pass agree.
ROPE_TYPES = {"default", "linear", "yarn", "llama3"}
ROPE_FIELDS = {
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "low_freq_factor",
    "high_freq_factor",
}


def check_llama_config(config: LlamaConfig) -> None:
    """Check that sampler and learner compute the same model from a configuration.

    Raises:
        ValueError: an unsupported field differs from its default.
    """
    defaults = type(config)().to_dict()
    for name, value in config.to_dict().items():
        # A field that transformers does not declare has no default: an empty value means off.
        off = value == defaults[name] if name in defaults else not value
        if name not in COMPUTED | HARMLESS and not off:
            raise ValueError(_rejection(name, f"{value!r}"))
    rope: Mapping[str, object] = config.rope_parameters or {}
    if (kind := rope.get("rope_type", "default")) not in ROPE_TYPES:
        raise ValueError(_rejection("rope_type", f"{kind!r} instead of one of {', '.join(sorted(ROPE_TYPES))}"))
    for name, value in rope.items():
        if name not in ROPE_FIELDS and not (name == "partial_rotary_factor" and value == 1):
            raise ValueError(_rejection(f"rope_parameters.{name}", f"{value!r}"))


def _rejection(name: str, got: str) -> str:
    return (
        f"a policy's config.json must set only fields that sampler and learner both compute, got {name}={got}; remove "
        "the field if the weights do not depend on it, or use another policy"
    )
