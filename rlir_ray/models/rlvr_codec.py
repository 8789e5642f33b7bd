"""RLVR-World's frame tokenizer as a frame codec: uint8 frames <-> the ids of a token world model.

Legend: N frames, H W pixels, h w grid.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from rlir_ray.models.checkpoints import open_diffusers_model
from rlir_ray.models.frame_codec import FrameCodec
from rlir_ray.models.rlvr_tokenizer import RlvrTokenizer
from rlir_ray.models.tokenizer import check_tokens


class RlvrCodec(FrameCodec):
    """The codec of an `RlvrTokenizer`.

    Args:
        model: the tokenizer.
        height, width: pixels of a frame; must be multiples of the tokenizer's downsampling, 16 at published size.
        max_frames: number of frames in one pass, which bounds the memory.
    """

    what = "tokenizer"
    model: RlvrTokenizer

    def __init__(self, model: RlvrTokenizer, *, height: int, width: int, max_frames: int = 32) -> None:
        if height % model.factor or width % model.factor:
            raise ValueError(
                f"frames must be multiples of the tokenizer's downsampling {model.factor}, got {height}x{width}; "
                "resize the recordings"
            )
        grid = (height // model.factor, width // model.factor)
        super().__init__(model, height=height, width=width, grid=grid, max_frames=max_frames)

    @property
    def num_codes(self) -> int:
        return self.model.num_codes

    @property
    def tokens_per_frame(self) -> int:
        return self.grid[0] * self.grid[1]

    def encode(self, frames: Tensor) -> Tensor:
        """Encode uint8 [N, H, W, 3] as int64 [N, tokens_per_frame], in raster order, each below `num_codes`."""
        return self._encode_parts(frames, lambda pixels: self.model.encode(pixels).flatten(1))

    def decode(self, codes: Tensor) -> Tensor:
        """Decode int [N, tokens_per_frame] to uint8 [N, H, W, 3], rounded.

        Raises:
            ValueError: another number of tokens, or a token that is no image id.
        """
        check_tokens(codes, self.tokens_per_frame, self.num_codes)
        return self._decode_parts(codes, lambda part: self.model.decode(part.to(self.device).unflatten(1, self.grid)))

    def scale(self, frames: Tensor) -> Tensor:
        return to_unit_pixels(frames, self.device, self.dtype)

    def unscale(self, pixels: Tensor) -> Tensor:
        return from_unit_pixels(pixels)

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, height: int | None = None, width: int | None = None, max_frames: int = 32
    ) -> Self:
        """Open a published folder, or one that `convert rlvr-world` wrote.

        Args:
            folder: holds config.json and safetensors.
            height: H; None: the config's `resolution`.
            width: W; None: 5/4 of the height, as RT-1's frames are.
            max_frames: number of frames in one pass.

        Raises:
            ValueError: the folder does not exist, or the weights do not fit its config or are not finite.
        """
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"no {cls.what} in {folder} (config.json is missing); give the folder of a {cls.what}")
        model = open_diffusers_model(RlvrTokenizer, folder, f"the {cls.what}")
        height = height or int(model.config["resolution"])
        return cls(model, height=height, width=width or height * 5 // 4, max_frames=max_frames).eval()


def to_unit_pixels(frames: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Convert uint8 [N, H, W, 3] to floats [N, 3, H, W] in [0, 1], the input of RLVR-World's tokenizers."""
    pixels = frames.to(device).permute(0, 3, 1, 2).to(dtype) / 255
    return pixels.contiguous(memory_format=torch.channels_last)


def from_unit_pixels(pixels: Tensor) -> Tensor:
    """Convert pixels to frames, the inverse of `to_unit_pixels`, with rounding."""
    return (pixels.float() * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
