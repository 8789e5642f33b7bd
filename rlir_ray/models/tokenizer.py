"""Frame tokenizer, frames <-> discrete tokens: a `diffusers.VQModel` with an optional pixel-unshuffle stem.

Independent of actions, videos and training. Legend: N frames, H W pixels, h w grid, D size of a code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from rlir_ray.models.frame_codec import PictureCodec, block_settings
from rlir_ray.models.vq import nearest_codes

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vq_model import VQModel


class FrameTokenizer(PictureCodec):
    """A VQ tokenizer of single frames; its arguments are those of `PictureCodec`.

    Example: 48 × 64 pixels, `pixel_unshuffle=4` and two blocks (one halving) give a grid of 6 × 8 = 48 tokens.
    """

    what = "tokenizer"
    model: VQModel

    @classmethod
    def model_class(cls) -> type[VQModel]:
        from diffusers.models.autoencoders.vq_model import VQModel

        kind: type[VQModel] = VQModel
        return kind

    @property
    def num_codes(self) -> int:
        return int(self.model.config["num_vq_embeddings"])

    @property
    def tokens_per_frame(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def codebook(self) -> Tensor:
        """float [num_codes, D]."""
        weight: Tensor = self.model.quantize.embedding.weight
        return weight

    def encode(self, frames: Tensor) -> Tensor:
        """Encode uint8 [N, H, W, 3] as int64 [N, tokens_per_frame], in raster order, each below `num_codes`."""
        return self._encode_parts(frames, lambda pixels: self.nearest_codes(self.latents(pixels)))

    def decode(self, codes: Tensor) -> Tensor:
        """Decode int [N, tokens_per_frame] to uint8 [N, H, W, 3], rounded."""
        check_tokens(codes, self.tokens_per_frame, self.num_codes)
        return self._decode_parts(codes, lambda part: self.pixels(self.lookup(part)))

    # The steps of encoding and decoding, which training uses; differentiable where possible.

    def latents(self, pixels: Tensor) -> Tensor:
        """Encode [N, 3, H, W] in [-1, 1] as continuous latents [N, D, h, w], before quantization."""
        latents: Tensor = self.model.encode(self.fold(pixels)).latents
        return latents

    def pixels(self, latents: Tensor) -> Tensor:
        """Decode latents [N, D, h, w], quantized or not, to [N, 3, H, W]."""
        # Not `model.decode`, which takes indices if `lookup_from_codebook` is set, as in MineWorld's config.
        spatial_norm = latents if self.model.config["norm_type"] == "spatial" else None
        return self.unfold(self.model.decoder(self.model.post_quant_conv(latents), spatial_norm))

    def nearest_codes(self, latents: Tensor) -> Tensor:
        """Find the nearest codes of latents [N, D, h, w]; return their indices, int64 [N, h * w]."""
        return nearest_codes(latents.flatten(2).transpose(1, 2).to(self.codebook.dtype), self.codebook)

    def lookup(self, tokens: Tensor) -> Tensor:
        """Look up the codes [N, D, h, w] of tokens int [N, h * w]."""
        codes = self.codebook[tokens.long()]  # [N, h * w, D]
        return codes.transpose(1, 2).reshape(len(tokens), -1, *self.grid)


def check_tokens(codes: Tensor, tokens_per_frame: int, num_codes: int) -> None:
    """Check tokens [N, tokens_per_frame] before they are decoded.

    Raises:
        ValueError: another number of tokens, or a token that is no image id.
    """
    if codes.ndim != 2 or codes.shape[1] != tokens_per_frame:
        raise ValueError(f"the tokenizer decodes tokens [N, {tokens_per_frame}], got {list(codes.shape)}")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < num_codes:
        raise ValueError(
            f"image tokens must be in 0..{num_codes - 1}, got {int(codes.min())}..{int(codes.max())}; leave action "
            "tokens out before decoding"
        )


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
    """Return a fresh tokenizer with random weights (drawn from torch's global generator).

    Args:
        height, width: pixels of a frame.
        num_codes: size of the codebook.
        code_size: D.
        block_channels, layers_per_block, norm_groups, pixel_unshuffle: see `block_settings`.
    """
    model = FrameTokenizer.model_class()(
        latent_channels=code_size,
        num_vq_embeddings=num_codes,
        vq_embed_dim=code_size,
        **block_settings(block_channels, layers_per_block, norm_groups, pixel_unshuffle),
    )
    return FrameTokenizer(model, height=height, width=width, pixel_unshuffle=pixel_unshuffle)
