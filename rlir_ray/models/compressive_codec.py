"""A compressive tokenizer as a frame codec: uint8 clips <-> a keyframe in full and few ids of each frame.

The keyframe is a clip's first frame. Every frame of the clip, the first one too, has the ids of what changed since.
Legend: B clips, n frames of a clip, M ids of a keyframe, N ids of a frame, H W pixels, h w grid.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from rlir_ray.models.checkpoints import open_diffusers_model
from rlir_ray.models.clip_codec import ClipCodec
from rlir_ray.models.compressive import Context
from rlir_ray.models.frame_codec import read_stem, save_with_stem
from rlir_ray.models.rlvr_codec import from_unit_pixels, to_unit_pixels
from rlir_ray.models.rlvr_compressive import RlvrCompressiveTokenizer
from rlir_ray.models.tokenizer import check_tokens
from rlir_ray.trajectory import EncodedClips


class CompressiveCodec(ClipCodec):
    """The codec of an `RlvrCompressiveTokenizer`, with an optional pixel-unshuffle stem before it.

    Args:
        model: of pictures with `3 * pixel_unshuffle**2` channels in [0, 1].
        pixel_unshuffle: see `PictureCodec`; 1 for the published tokenizers.
        clip_frames: most frames that shared a keyframe in training; None: unknown.
        max_frames: number of frames in one pass, which bounds the memory.
    """

    what = "compressive tokenizer"
    model: RlvrCompressiveTokenizer

    def __init__(
        self,
        model: RlvrCompressiveTokenizer,
        *,
        pixel_unshuffle: int = 1,
        clip_frames: int | None = None,
        max_frames: int = 64,
    ) -> None:
        height, width = (size * pixel_unshuffle for size in model.size)
        super().__init__(model, height=height, width=width, grid=model.patches, max_frames=max_frames)
        self.pixel_unshuffle, self._clip_frames = pixel_unshuffle, clip_frames

    @property
    def clip_frames(self) -> int | None:
        return self._clip_frames

    @property
    def num_codes(self) -> int:
        return self.model.quantizer.num_codes

    @property
    def num_keyframe_codes(self) -> int:
        return self.model.context_quantizer.num_codes

    @torch.no_grad()
    def encode_clips(self, clips: Tensor) -> EncodedClips:
        """Encode uint8 [B, n, H, W, 3] as ids int64 [B, n, N] after keyframes int64 [B, M], in raster order."""
        self.check_frames(clips)
        with_keyframes = torch.cat([clips[:, :1], clips], 1)
        parts = [
            self.model.tokenize(self.pixels(part)) for part in with_keyframes.split(self._clips_at_once(clips.shape[1]))
        ]
        return EncodedClips(
            torch.cat([ids for _, ids in parts]), torch.cat([keyframes[:, 0] for keyframes, _ in parts])
        )

    @torch.no_grad()
    def decode_clips(self, clips: EncodedClips) -> Tensor:
        """Decode ids int [B, n, N] after keyframes int [B, M] to uint8 [B, n, H, W, 3], rounded.

        Raises:
            ValueError: no keyframes, another number of ids, or an id that does not exist.
        """
        if clips.keyframes is None:
            raise ValueError("a compressive tokenizer decodes clips with their keyframes, got none; pass them on")
        check_tokens(clips.codes.flatten(0, 1), self.grid[0] * self.grid[1], self.num_codes)
        check_tokens(clips.keyframes, self.model.grid[0] * self.model.grid[1], self.num_keyframe_codes)
        at_once = self._clips_at_once(clips.codes.shape[1])
        parts = zip(clips.keyframes.split(at_once), clips.codes.split(at_once), strict=True)
        return torch.cat([self._decode(*(ids.to(self.device) for ids in part)) for part in parts])

    def pixels(self, clips: Tensor) -> Tensor:
        """Convert keyframes and frames uint8 [B, 1 + n, H, W, 3] to the model's input in [0, 1]."""
        pixels = to_unit_pixels(clips.flatten(0, 1), self.device, self.dtype)
        pictures: Tensor = F.pixel_unshuffle(pixels, self.pixel_unshuffle).unflatten(0, clips.shape[:2])
        return pictures

    def _decode(self, keyframes: Tensor, ids: Tensor) -> Tensor:
        # The clips of a group stand in a row and share their keyframe.
        different, rows = keyframes.unique_consecutive(dim=0, return_inverse=True)
        context = self.model.decode_context(different)
        features = tuple(each[rows] for each in context.features)
        pictures = self.model.decode_later(Context(context.images, features), ids)
        frames = from_unit_pixels(F.pixel_shuffle(pictures.flatten(0, 1), self.pixel_unshuffle))
        clips: Tensor = frames.unflatten(0, ids.shape[:2])
        return clips

    def _clips_at_once(self, num_frames: int) -> int:
        return max(1, self.max_frames // (1 + num_frames))

    def save_pretrained(self, folder: Path | str, dtype: torch.dtype = torch.float32) -> None:
        """Write a folder that `RlvrCompressiveTokenizer` opens, with the stem in a file beside it."""
        stem = {"height": self.height, "width": self.width, "pixel_unshuffle": self.pixel_unshuffle}
        save_with_stem(self.model, Path(folder), dtype, stem | {"clip_frames": self.clip_frames})

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, height: int | None = None, width: int | None = None, max_frames: int = 64
    ) -> Self:
        """Open a published folder, or one of `save_pretrained` or `convert rlvr-world`.

        Args:
            folder: holds config.json and safetensors, which state the size of a frame.
            height, width: H and W of the world; None: any.
            max_frames: number of frames in one pass.

        Raises:
            ValueError: the folder does not exist, is for frames of another size, or the weights do not fit its config
                or are not finite.
        """
        stem = read_stem(Path(folder), cls.what, height=height, width=width)
        model = open_diffusers_model(RlvrCompressiveTokenizer, folder, f"the {cls.what}")
        unshuffle, clip_frames = stem["pixel_unshuffle"], stem.get("clip_frames")
        codec = cls(model, pixel_unshuffle=unshuffle, clip_frames=clip_frames, max_frames=max_frames).eval()
        if (height or codec.height, width or codec.width) != (codec.height, codec.width):
            raise ValueError(
                f"the {cls.what} in {folder} must be for frames of {height}x{width}, got {codec.height}x{codec.width}; "
                f"set world.height={codec.height} world.width={codec.width}, or resize the recordings"
            )
        return codec
