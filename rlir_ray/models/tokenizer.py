"""Frames to discrete tokens and back: a `diffusers.VQModel`, with an optional pixel-unshuffle stem before it.

Knows nothing of actions, videos or training. Legend: N frames, H W pixels, h w grid, D size of a code.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import VQModel

STEM_FILE = "tokenizer.json"


class FrameTokenizer(nn.Module):
    """A VQ tokenizer of single frames.

    Args:
        model: the VQ model; its pictures have `3 * pixel_unshuffle**2` channels in [-1, 1].
        height, width: pixels of a frame; must be multiples of the total downsampling.
        pixel_unshuffle: factor by which pixels are folded into channels first (1 for MineWorld's tokenizer); it makes
            small models on a CPU about that factor squared cheaper at their widest resolution.
        max_frames: frames in one pass through the model, which bounds its memory.

    Example: 48 × 64 pixels, `pixel_unshuffle=4` and two blocks (one halving) give a grid of 6 × 8 = 48 tokens.
    """

    def __init__(
        self, model: VQModel, *, height: int, width: int, pixel_unshuffle: int = 1, max_frames: int = 256
    ) -> None:
        super().__init__()
        factor = pixel_unshuffle * 2 ** (len(model.config["block_out_channels"]) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"frames must be multiples of the tokenizer's downsampling {factor}, got {height}x{width}; resize the "
                f"recordings or take fewer blocks"
            )
        if model.config["in_channels"] != 3 * pixel_unshuffle**2:
            raise ValueError(
                f"the VQ model must have in_channels = 3 * pixel_unshuffle**2, got {model.config['in_channels']} and "
                f"pixel_unshuffle {pixel_unshuffle}; correct {STEM_FILE} beside the model"
            )
        # channels_last is what CPU convolutions in bf16 are fast in.
        self.model = model.to(memory_format=torch.channels_last)
        self.height, self.width = height, width
        self.pixel_unshuffle = pixel_unshuffle
        self.max_frames = max_frames
        self.grid = (height // factor, width // factor)

    @property
    def num_codes(self) -> int:
        return int(self.model.config["num_vq_embeddings"])

    @property
    def tokens_per_frame(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def codebook(self) -> Tensor:
        """float [num_codes, D]."""
        return self.model.quantize.embedding.weight

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] to int64 [N, tokens_per_frame], in raster order, each below `num_codes`."""
        if frames.dtype != torch.uint8 or frames.shape[1:] != (self.height, self.width, 3):
            raise ValueError(
                f"the tokenizer reads uint8 frames [N, {self.height}, {self.width}, 3], got {frames.dtype} "
                f"{list(frames.shape)}; resize the video to the size that the tokenizer was trained on"
            )
        if not len(frames):
            return frames.new_zeros((0, self.tokens_per_frame), dtype=torch.int64)
        batches = [self.nearest_codes(self.latents(self.scale(part))) for part in frames.split(self.max_frames)]
        return torch.cat(batches)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """int [N, tokens_per_frame] to uint8 [N, H, W, 3], rounded as a viewer would get the pictures."""
        if tokens.ndim != 2 or tokens.shape[1] != self.tokens_per_frame:
            raise ValueError(f"the tokenizer decodes tokens [N, {self.tokens_per_frame}], got {list(tokens.shape)}")
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.num_codes:
            raise ValueError(
                f"image tokens must be in 0..{self.num_codes - 1}, got {int(tokens.min())}..{int(tokens.max())}; leave "
                f"action tokens out before decoding"
            )
        if not len(tokens):
            return tokens.new_zeros((0, self.height, self.width, 3), dtype=torch.uint8)
        batches = [self.unscale(self.pixels(self.lookup(part))) for part in tokens.split(self.max_frames)]
        return torch.cat(batches)

    # The four steps, differentiable where they can be: training and models on continuous latents use them.

    def scale(self, frames: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] to the floats [N, 3, H, W] in [-1, 1] that the model is trained on."""
        pixels = frames.to(self.codebook.device).permute(0, 3, 1, 2).to(self.codebook.dtype)
        return (pixels / 127.5 - 1).contiguous(memory_format=torch.channels_last)

    def unscale(self, pixels: Tensor) -> Tensor:
        """The inverse of `scale`, with rounding."""
        return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()

    def latents(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] in [-1, 1] to continuous latents [N, D, h, w], before quantisation."""
        return self.model.encode(F.pixel_unshuffle(pixels, self.pixel_unshuffle)).latents

    def pixels(self, latents: Tensor) -> Tensor:
        """Latents [N, D, h, w], quantised or not, to [N, 3, H, W]."""
        # Not `model.decode`: with `lookup_from_codebook`, as MineWorld's config has it, that takes indices.
        spatial_norm = latents if self.model.config["norm_type"] == "spatial" else None
        folded = self.model.decoder(self.model.post_quant_conv(latents), spatial_norm)
        return F.pixel_shuffle(folded, self.pixel_unshuffle)

    def nearest_codes(self, latents: Tensor) -> Tensor:
        """Latents [N, D, h, w] to the indices of their nearest codes, int64 [N, h * w]."""
        vectors = latents.flatten(2).transpose(1, 2).to(self.codebook.dtype)  # [N, h * w, D]
        # The squared distance without |z|², which no choice of code changes.
        scores = vectors @ self.codebook.T - self.codebook.square().sum(1) / 2
        return scores.argmax(2)

    def lookup(self, tokens: Tensor) -> Tensor:
        """int [N, h * w] to codes [N, D, h, w]."""
        codes = self.codebook[tokens.long()]  # [N, h * w, D]
        return codes.transpose(1, 2).reshape(len(tokens), -1, *self.grid)

    def save_pretrained(self, folder: Path | str, dtype: torch.dtype = torch.float32) -> None:
        """Writes a folder that `diffusers.VQModel.from_pretrained` opens, with the stem in a file beside it.

        Args:
            folder: is created where missing.
            dtype: of the stored weights; float16 halves the file.
        """
        folder = Path(folder)
        # Of a copy, so that rounding to float16 leaves the live weights alone; the plain `to` does not warn of it.
        nn.Module.to(copy.deepcopy(self.model), dtype).save_pretrained(folder)
        stem = {"height": self.height, "width": self.width, "pixel_unshuffle": self.pixel_unshuffle}
        (folder / STEM_FILE).write_text(json.dumps(stem, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, height: int | None = None, width: int | None = None, max_frames: int = 256
    ) -> FrameTokenizer:
        """Opens a folder written by `save_pretrained`, or a plain VQ model when `height` and `width` are given.

        Returns:
            The tokenizer in float32 and evaluation mode, on the CPU.
        """
        from diffusers import VQModel

        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise ValueError(f"no VQ model in {folder} (config.json is missing); give the folder of a tokenizer")
        stem: dict[str, Any] = {"height": height, "width": width, "pixel_unshuffle": 1}
        if (folder / STEM_FILE).is_file():
            stem = json.loads((folder / STEM_FILE).read_text())
        elif height is None or width is None:
            raise ValueError(f"{folder} has no {STEM_FILE}; give the frames' height and width for a plain VQ model")
        model = VQModel.from_pretrained(folder, torch_dtype=torch.float32, low_cpu_mem_usage=False)
        return cls(model, max_frames=max_frames, **stem).eval()


def build_tokenizer(
    *,
    height: int,
    width: int,
    num_codes: int,
    code_size: int = 16,
    block_channels: tuple[int, ...] = (64, 128),
    layers_per_block: int = 1,
    norm_groups: int = 4,
    pixel_unshuffle: int = 4,
) -> FrameTokenizer:
    """A fresh tokenizer with random weights (drawn from torch's global generator).

    Args:
        height, width: pixels of a frame.
        num_codes: size of the codebook.
        code_size: D.
        block_channels: channels of each block; every block but the last halves the picture.
        layers_per_block: residual layers in a block.
        norm_groups: groups of each group norm; few groups are far faster on a CPU.
        pixel_unshuffle: see `FrameTokenizer`.
    """
    from diffusers import VQModel

    num_blocks = len(block_channels)
    channels = 3 * pixel_unshuffle**2
    model = VQModel(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * num_blocks,
        up_block_types=("UpDecoderBlock2D",) * num_blocks,
        block_out_channels=block_channels,
        layers_per_block=layers_per_block,
        latent_channels=code_size,
        num_vq_embeddings=num_codes,
        norm_num_groups=norm_groups,
        vq_embed_dim=code_size,
    )
    return FrameTokenizer(model, height=height, width=width, pixel_unshuffle=pixel_unshuffle)
