"""The forms of frame tokenizers: a VQ model of `diffusers`, and RLVR-World's.

The class name in a tokenizer's config.json names its form. Models are imported only when one is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlir_ray.data.files import Json
from rlir_ray.models.frame_codec import FrameCodec
from rlir_ray.models.fsq import published_quantizer


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerForm:
    """One form of frame tokenizers."""

    load: Callable[[], type[FrameCodec]]
    """Imports its class."""
    codes_field: str
    """The field of a config.json that gives the number of image ids."""
    num_codes: Callable[[int], int]
    """Returns the number of image ids, from the value of that field."""


def _vq_tokenizer() -> type[FrameCodec]:
    from rlir_ray.models.tokenizer import FrameTokenizer

    return FrameTokenizer


def _rlvr_tokenizer() -> type[FrameCodec]:
    from rlir_ray.models.rlvr_codec import RlvrCodec

    return RlvrCodec


_VQ = TokenizerForm(load=_vq_tokenizer, codes_field="num_vq_embeddings", num_codes=int)
_RLVR = TokenizerForm(
    load=_rlvr_tokenizer, codes_field="fsq_levels", num_codes=lambda name: published_quantizer(name).num_codes
)
FORMS = {"RlvrTokenizer": _RLVR, "CNNFSQModel256": _RLVR}
"""Class name in a config.json -> form; any other name, or none, is that of a VQ model."""


def tokenizer_form(settings: Json, folder: Path) -> TokenizerForm:
    """Return the form that a tokenizer's config.json names.

    Raises:
        ValueError: the folder holds no tokenizer of frames.
    """
    form = FORMS.get(settings.get("_class_name", ""), _VQ)
    if missing := {"block_out_channels", form.codes_field} - settings.keys():
        raise ValueError(
            f"models.tokenizer must be a diffusers VQModel or an RlvrTokenizer, got a config.json without "
            f"{sorted(missing)[0]} in {folder}; give a tokenizer's folder"
        )
    return form
