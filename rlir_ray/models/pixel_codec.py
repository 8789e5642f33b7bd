"""A frame codec without weights, for world models of pixels: the latents of a frame are its pixels in [-1, 1].

Legend: N frames, H W pixels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from rlir_ray.data.files import Json
from rlir_ray.models.autoencoder import check_latents
from rlir_ray.models.frame_codec import FrameCodec

CONFIG_FILE = "config.json"


class PixelCodec(FrameCodec):
    """The codec of a world model of pixels.

    Args:
        height, width: H, W.
        max_frames: number of frames that are converted at once, which bounds the memory.
    """

    what = "codec of pixels"

    def __init__(self, height: int, width: int, max_frames: int = 256) -> None:
        super().__init__(nn.Identity(), height=height, width=width, grid=(height, width), max_frames=max_frames)
        # Moves with the codec, so that the codec knows its device.
        self.register_buffer("anchor", torch.zeros(()), persistent=False)

    def _weight(self) -> Tensor:
        return self.get_buffer("anchor")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(3, H, W)."""
        return (3, self.height, self.width)

    def encode(self, frames: Tensor) -> Tensor:
        """Convert uint8 [N, H, W, 3] to float32 [N, 3, H, W] in [-1, 1]."""
        return self._encode_parts(frames, lambda pixels: pixels.float())

    def decode(self, codes: Tensor) -> Tensor:
        """Convert float [N, 3, H, W] to uint8 [N, H, W, 3], the inverse of `encode`, with rounding.

        Raises:
            ValueError: the latents have another shape or are not finite.
        """
        check_latents(codes, self.latent_shape)
        return self._decode_parts(codes.to(self.device), lambda pixels: pixels)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write a folder with a config.json alone, created if missing."""
        settings = {"_class_name": type(self).__name__, "height": self.height, "width": self.width}
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, height: int | None = None, width: int | None = None, max_frames: int = 256
    ) -> Self:
        """Open a folder of `save_pretrained`, which states its own height and width.

        Raises:
            ValueError: the folder holds no config.json of a codec of pixels.
        """
        try:
            settings: Json = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
            return cls(settings["height"], settings["width"], max_frames).eval()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"a {cls.what} must hold a {CONFIG_FILE} with height and width, got {type(error).__name__} in "
                f"{folder}; write it with PixelCodec.save_pretrained"
            ) from None
