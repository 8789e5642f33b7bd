"""Oasis' autoencoder as a frame codec: uint8 frames <-> the latents of Oasis' world model.

Legend: N frames, H W pixels, C channels of a latent, h w grid.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from rlir_ray.models.autoencoder import check_latents
from rlir_ray.models.checkpoints import open_diffusers_model
from rlir_ray.models.frame_codec import FrameCodec
from rlir_ray.models.oasis_autoencoder import OasisAutoencoder


class OasisCodec(FrameCodec):
    """The codec of an `OasisAutoencoder`.

    Args:
        model: the autoencoder.
        max_frames: number of frames in one pass, which bounds the memory.
    """

    what = "autoencoder"
    model: OasisAutoencoder

    def __init__(self, model: OasisAutoencoder, max_frames: int = 32) -> None:
        height, width = model.config["input_height"], model.config["input_width"]
        super().__init__(model, height=height, width=width, grid=model.grid, max_frames=max_frames)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return (self.model.config["latent_dim"], *self.grid)

    def encode(self, frames: Tensor) -> Tensor:
        """Encode uint8 [N, H, W, 3] as float32 [N, C, h, w], the scaled mean of the posterior."""
        return self._encode_parts(frames, self._encode)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode float [N, C, h, w] to uint8 [N, H, W, 3].

        Raises:
            ValueError: the latents have another shape or are not finite.
        """
        check_latents(codes, self.latent_shape)
        return self._decode_parts(codes, self._decode)

    def _encode(self, pixels: Tensor) -> Tensor:
        mean: Tensor = self.model.moments((pixels + 1) / 2)[0].float()
        latents: Tensor = self._scale() * mean.transpose(1, 2).unflatten(2, self.grid)
        return latents

    def _decode(self, codes: Tensor) -> Tensor:
        latents = codes.to(self.device, torch.float32) / self._scale()
        pixels: Tensor = self.model.decode_latents(latents.flatten(2).transpose(1, 2))
        return pixels

    def _scale(self) -> float:
        return float(self.model.config["scaling_factor"])

    def unscale(self, pixels: Tensor) -> Tensor:
        """Convert pixels to frames as the published code does: without rounding."""
        frames = ((pixels.float() + 1) / 2).clamp(0, 1) * 255
        return frames.to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, height: int | None = None, width: int | None = None, max_frames: int = 32
    ) -> Self:
        return cls(open_diffusers_model(OasisAutoencoder, folder, f"the {cls.what}"), max_frames).eval()
