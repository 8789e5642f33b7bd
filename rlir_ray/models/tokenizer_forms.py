"""The forms of tokenizers: a VQ model of `diffusers`, and the two of RLVR-World.

The class name in a tokenizer's config.json names its form. Models are imported only when one is opened.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlir_ray.data.files import Json
from rlir_ray.models.clip_codec import ClipCodec
from rlir_ray.models.fsq import published_quantizer
from rlir_ray.models.token_sequence import TokenShape


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerForm:
    """One form of tokenizers."""

    load: Callable[[], type[ClipCodec]]
    """Imports its class."""
    fields: frozenset[str]
    """The fields of a config.json that `shape` needs."""
    shape: Callable[[Json, int], TokenShape]
    """Returns the shape of its tokens from a config.json and the positions of its grid."""
    frame_size: Callable[[Json], tuple[int, int]] | None = None
    """Returns H and W, in pixels behind a stem; None: any frames whose sides its grid divides."""


def _vq_tokenizer() -> type[ClipCodec]:
    from rlir_ray.models.tokenizer import FrameTokenizer

    return FrameTokenizer


def _rlvr_tokenizer() -> type[ClipCodec]:
    from rlir_ray.models.rlvr_codec import RlvrCodec

    return RlvrCodec


def _compressive_tokenizer() -> type[ClipCodec]:
    from rlir_ray.models.compressive_codec import CompressiveCodec

    return CompressiveCodec


def _compressive_size(settings: Json) -> tuple[int, int]:
    height = settings["resolution"]
    return height, settings.get("width") or height * 5 // 4


def _compressive_shape(settings: Json, positions: int) -> TokenShape:
    codes, keyframe_codes = (
        published_quantizer(settings[name]).num_codes for name in ("dyn_fsq_levels", "vq_fsq_levels")
    )
    rows, columns = settings["patch_size"], settings.get("patch_width") or settings["patch_size"]
    return TokenShape(codes, positions // (rows * columns), keyframe_codes, positions)


_VQ = TokenizerForm(
    load=_vq_tokenizer,
    fields=frozenset({"block_out_channels", "num_vq_embeddings"}),
    shape=lambda settings, positions: TokenShape(settings["num_vq_embeddings"], positions),
)
_RLVR = TokenizerForm(
    load=_rlvr_tokenizer,
    fields=frozenset({"block_out_channels", "fsq_levels"}),
    shape=lambda settings, positions: TokenShape(published_quantizer(settings["fsq_levels"]).num_codes, positions),
)
_COMPRESSIVE = TokenizerForm(
    load=_compressive_tokenizer,
    fields=frozenset({"block_out_channels", "dyn_fsq_levels", "vq_fsq_levels", "patch_size", "resolution"}),
    shape=_compressive_shape,
    frame_size=_compressive_size,
)
FORMS = {
    "RlvrTokenizer": _RLVR,
    "CNNFSQModel256": _RLVR,
    "RlvrCompressiveTokenizer": _COMPRESSIVE,
    "CompressiveVQModelFSQ": _COMPRESSIVE,
}
"""Class name in a config.json -> form; any other name, or none, is that of a VQ model."""
UNSERVED = {"IvideogptTokenizer", "CompressiveVQModel"}
"""Class names of tokenizers that convert, but that no run decodes yet."""


def tokenizer_form(settings: Json, folder: Path) -> TokenizerForm:
    """Return the form that a tokenizer's config.json names.

    Raises:
        ValueError: the folder holds no tokenizer.
    """
    name = settings.get("_class_name", "")
    if name in UNSERVED:
        raise ValueError(f"models.tokenizer must be of a form that a run decodes, got iVideoGPT's {name} in {folder}")
    form = FORMS.get(name, _VQ)
    if missing := form.fields - settings.keys():
        raise ValueError(
            f"models.tokenizer must be a diffusers VQModel or a tokenizer of RLVR-World, got a config.json without "
            f"{min(missing)} in {folder}; give a tokenizer's folder"
        )
    return form


def open_tokenizer(folder: Path, height: int, width: int) -> ClipCodec:
    """Open a tokenizer of any form, for frames of a size.

    Raises:
        ValueError: the folder holds no tokenizer, or its weights do not fit.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"no tokenizer in {folder} (config.json is missing); give the folder of a tokenizer")
    try:
        settings: Json = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"a tokenizer's config.json must be readable, got {error} in {path}; copy it again") from None
    return tokenizer_form(settings, folder).load().from_pretrained(folder, height=height, width=width)
