"""Base classes of tokenizers and autoencoders that encode each frame alone, and the stem of those of `diffusers`.

Independent of the kind of code. Legend: N frames, H W pixels, h w grid.
"""

from __future__ import annotations

import copy
import json
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlir_ray.data.files import Json, give_usual_mode
from rlir_ray.models.checkpoints import open_library_model
from rlir_ray.models.clip_codec import ClipCodec
from rlir_ray.trajectory import EncodedClips

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.vq_model import VQModel

    LibraryModel = VQModel | AutoencoderKL

STEM_FILE = "tokenizer.json"


class FrameCodec(ClipCodec):
    """A codec of single frames: `encode` (uint8 [N, H, W, 3] to codes [N, ...]) and its inverse `decode`."""

    @abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames uint8 [N, H, W, 3] as codes [N, ...]."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes to frames uint8 [N, H, W, 3], the inverse of `encode`."""

    def encode_clips(self, clips: Tensor) -> EncodedClips:
        return EncodedClips(self.encode(clips.flatten(0, 1)).unflatten(0, clips.shape[:2]))

    def decode_clips(self, clips: EncodedClips) -> Tensor:
        frames: Tensor = self.decode(clips.codes.flatten(0, 1).to(self.device)).unflatten(0, clips.codes.shape[:2])
        return frames

    def scale(self, frames: Tensor) -> Tensor:
        """Convert uint8 [N, H, W, 3] to floats [N, 3, H, W] in [-1, 1], the model's input."""
        pixels = frames.to(self.device).permute(0, 3, 1, 2).to(self.dtype)
        return (pixels / 127.5 - 1).contiguous(memory_format=torch.channels_last)

    def unscale(self, pixels: Tensor) -> Tensor:
        """Convert pixels to frames, the inverse of `scale`, with rounding."""
        return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    @torch.no_grad()
    def _encode_parts(self, frames: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Check frames and encode their pixels [n, 3, H, W] in parts."""
        self.check_frames(frames)
        # Without frames, encode one black frame to get the shape of an empty result.
        parts = [
            encode(self.scale(part))
            for part in (frames if len(frames) else frames.new_zeros((1, self.height, self.width, 3))).split(
                self.max_frames
            )
        ]
        return torch.cat(parts)[: len(frames)]

    @torch.no_grad()
    def _decode_parts(self, codes: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
        """Decode codes to pixels [n, 3, H, W] in parts, and convert the pixels to frames."""
        if not len(codes):
            return torch.zeros((0, self.height, self.width, 3), dtype=torch.uint8, device=codes.device)
        return torch.cat([self.unscale(decode(part)) for part in codes.split(self.max_frames)])


class PictureCodec(FrameCodec):
    """A `diffusers` autoencoder of pictures, with an optional pixel-unshuffle stem before it.

    Args:
        model: a model of pictures with `3 * pixel_unshuffle**2` channels in [-1, 1].
        height, width: pixels of a frame; must be multiples of the total downsampling.
        pixel_unshuffle: factor by which pixels are folded into channels first (1 for MineWorld's tokenizer); it makes
            the largest feature maps smaller by the factor squared, and so small models much faster on a CPU.
        max_frames: number of frames in one pass through the model, which bounds the memory.
    """

    model: LibraryModel

    def __init__(
        self, model: LibraryModel, *, height: int, width: int, pixel_unshuffle: int = 1, max_frames: int = 256
    ) -> None:
        factor = pixel_unshuffle * 2 ** (len(model.config["block_out_channels"]) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"frames must be multiples of the {self.what}'s downsampling {factor}, got {height}x{width}; resize "
                f"the recordings or use fewer blocks"
            )
        if model.config["in_channels"] != 3 * pixel_unshuffle**2:
            raise ValueError(
                f"the {self.what} must have in_channels = 3 * pixel_unshuffle**2, got {model.config['in_channels']} "
                f"and pixel_unshuffle {pixel_unshuffle}; correct {STEM_FILE} beside the model"
            )
        # CPU convolutions in bf16 are fast in channels_last only.
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # diffusers' decorator hides `self`
        grid = (height // factor, width // factor)
        super().__init__(model, height=height, width=width, grid=grid, max_frames=max_frames)
        self.pixel_unshuffle = pixel_unshuffle

    def fold(self, pixels: Tensor) -> Tensor:
        """Fold pixels [N, 3, H, W] into the model's channels."""
        return F.pixel_unshuffle(pixels, self.pixel_unshuffle)

    def unfold(self, pictures: Tensor) -> Tensor:
        """Unfold the model's channels to pixels, the inverse of `fold`."""
        return F.pixel_shuffle(pictures, self.pixel_unshuffle)

    def save_pretrained(self, folder: Path | str, dtype: torch.dtype = torch.float32) -> None:
        """Write a folder that the `diffusers` class opens, with the stem in a file beside it.

        Args:
            folder: created if missing.
            dtype: type of the stored weights; float16 halves the file.
        """
        stem = {"height": self.height, "width": self.width, "pixel_unshuffle": self.pixel_unshuffle}
        save_with_stem(self.model, Path(folder), dtype, stem)

    @classmethod
    @abstractmethod
    def model_class(cls) -> type[LibraryModel]:
        """Return the `diffusers` class; imported here because the import is slow."""

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, height: int | None = None, width: int | None = None, max_frames: int = 256
    ) -> Self:
        """Open a folder of `save_pretrained`, or a plain `diffusers` folder if `height` and `width` are given.

        Returns:
            The codec in float32 and evaluation mode, on the CPU.

        Raises:
            ValueError: the folder does not exist, or the weights do not fit its config or are not finite.
        """
        folder = Path(folder)
        stem = read_stem(folder, cls.what, height=height, width=width)
        if stem["height"] is None or stem["width"] is None:
            raise ValueError(f"{folder} has no {STEM_FILE}; give the frames' height and width for a plain {cls.what}")
        load: Callable[..., LibraryModel] = partial(
            cls.model_class().from_pretrained, torch_dtype=torch.float32, low_cpu_mem_usage=False
        )
        model = open_library_model(load, folder, f"the {cls.what}")
        return cls(model, max_frames=max_frames, **stem).eval()


# Any: a model of diffusers, whose classes share no annotated base.
def save_with_stem(model: Any, folder: Path, dtype: torch.dtype, stem: Json) -> None:
    """Write a folder that the model's `diffusers` class opens, with the stem in a file beside it."""
    # Convert a copy, so that the model keeps its weights; nn.Module's own `to` does not warn about float16.
    nn.Module.to(copy.deepcopy(model), dtype).save_pretrained(folder)
    give_usual_mode(folder)
    (folder / STEM_FILE).write_text(json.dumps(stem, indent=2) + "\n", encoding="utf-8")


def read_stem(folder: Path, what: str, *, height: int | None, width: int | None) -> Json:
    """Return the stem beside a model, or one without pixel-unshuffle for frames of the given size.

    Raises:
        ValueError: the folder holds no model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"no {what} in {folder} (config.json is missing); give the folder of a {what}")
    if not (folder / STEM_FILE).is_file():
        return {"height": height, "width": width, "pixel_unshuffle": 1}
    stem: Json = json.loads((folder / STEM_FILE).read_text(encoding="utf-8"))
    return stem


def block_settings(
    block_channels: tuple[int, ...], layers_per_block: int, norm_groups: int, pixel_unshuffle: int
) -> Json:
    """Return the arguments that all `diffusers` autoencoders of pictures share.

    Args:
        block_channels: channels of each block; every block but the last halves the picture.
        layers_per_block: residual layers in a block.
        norm_groups: groups of each group norm; few groups are far faster on a CPU.
        pixel_unshuffle: see `PictureCodec`.
    """
    channels = 3 * pixel_unshuffle**2
    return {
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(block_channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(block_channels),
        "block_out_channels": block_channels,
        "layers_per_block": layers_per_block,
        "norm_num_groups": norm_groups,
    }
