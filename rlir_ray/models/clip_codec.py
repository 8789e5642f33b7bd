"""Base class of frame codecs: tokenizers and autoencoders of clips.

Legend: B clips, n frames of a clip, N frames, M tokens of a keyframe, H W pixels, h w grid.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from rlir_ray.trajectory import EncodedClips


class ClipCodec(nn.Module, ABC):
    """A codec of clips: `encode_clips` (uint8 [B, n, H, W, 3] to codes) and its inverse `decode_clips`.

    Args:
        model: encodes and decodes pictures.
        height, width: pixels of a frame.
        grid: h, w.
        max_frames: number of frames in one pass through the model, which bounds the memory.
    """

    what: ClassVar[str]
    """Name of the codec in error messages."""
    # Any: each subclass has a model of its own class.
    model: Any

    def __init__(self, model: nn.Module, *, height: int, width: int, grid: tuple[int, int], max_frames: int) -> None:
        super().__init__()
        self.model, self.height, self.width, self.grid, self.max_frames = model, height, width, grid, max_frames

    @property
    def num_codes(self) -> int | None:
        """Number of image ids; None: the codes are numbers, not ids."""
        return None

    @property
    def num_keyframe_codes(self) -> int:
        """Number of ids of a clip's keyframe; 0: each frame is encoded and decoded alone."""
        return 0

    @property
    def clip_frames(self) -> int | None:
        """Most frames that share a keyframe, as in the codec's training; None: any number."""
        return None

    @abstractmethod
    def encode_clips(self, clips: Tensor) -> EncodedClips:
        """Encode clips uint8 [B, n, H, W, 3]."""

    @abstractmethod
    def decode_clips(self, clips: EncodedClips) -> Tensor:
        """Decode clips to uint8 [B, n, H, W, 3] on this codec's device, the inverse of `encode_clips`."""

    def check_frames(self, frames: Tensor) -> None:
        """Check frames uint8 [..., H, W, 3].

        Raises:
            ValueError: another type or size.
        """
        if frames.dtype != torch.uint8 or frames.shape[-3:] != (self.height, self.width, 3):
            raise ValueError(
                f"the {self.what} reads uint8 frames [N, {self.height}, {self.width}, 3], got {frames.dtype} "
                f"{list(frames.shape)}; resize the video to the size that the {self.what} was trained on"
            )

    # The steps of encoding and decoding, which training uses; differentiable where possible.

    @property
    def dtype(self) -> torch.dtype:
        return self._weight().dtype

    @property
    def device(self) -> torch.device:
        return self._weight().device

    def _weight(self) -> Tensor:
        weight: Tensor = next(self.model.parameters())
        return weight

    @classmethod
    @abstractmethod
    def from_pretrained(
        cls, folder: Path | str, *, height: int | None = None, width: int | None = None, max_frames: int = 256
    ) -> Self:
        """Open a folder; `height` and `width` are those of the world, for a folder that states none.

        Returns:
            The codec in float32 and evaluation mode, on the CPU.

        Raises:
            ValueError: the folder does not exist, or the weights do not fit its config or are not finite.
        """
