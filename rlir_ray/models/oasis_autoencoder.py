"""Oasis-500M's autoencoder of single frames (etched-ai/open-oasis): a transformer over patches, in both directions.

Parameters have the published names. Legend: n images, H W pixels, h w grid, N = h * w tokens, C channels of a latent.
"""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from rlir_ray.models.rotary import grid_turns, rotate_pairs

MIN_LOGVAR, MAX_LOGVAR = -30.0, 20.0


class OasisAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # as diffusers' own models
    """Oasis' autoencoder; a `diffusers` model whose arguments have the published names.

    Args:
        latent_dim: C.
        input_height, input_width: H, W.
        patch_size: side of a patch in pixels; one token is one patch.
        enc_dim, enc_depth, enc_heads: width, blocks and heads of the encoder.
        dec_dim, dec_depth, dec_heads: width, blocks and heads of the decoder.
        mlp_ratio: inner size of the MLPs divided by their width.
        scaling_factor: latents of the world model = latents of the autoencoder times this.
    """

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers does not annotate it
    def __init__(
        self,
        latent_dim: int = 16,
        input_height: int = 360,
        input_width: int = 640,
        patch_size: int = 20,
        enc_dim: int = 1024,
        enc_depth: int = 6,
        enc_heads: int = 16,
        dec_dim: int = 1024,
        dec_depth: int = 12,
        dec_heads: int = 16,
        mlp_ratio: float = 4.0,
        scaling_factor: float = 0.07843137255,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # diffusers does not annotate it
        if input_height % patch_size or input_width % patch_size:
            raise ValueError(
                f"patch_size must divide the frame's height and width, got {patch_size} for {input_height}x"
                f"{input_width}; use a common divisor"
            )
        self.grid = (input_height // patch_size, input_width // patch_size)
        self.patch_embed = Patches(patch_size, enc_dim)
        self.encoder = nn.ModuleList([PictureBlock(enc_dim, enc_heads, mlp_ratio) for _ in range(enc_depth)])
        self.enc_norm = nn.LayerNorm(enc_dim, eps=1e-6)
        self.quant_conv = nn.Linear(enc_dim, 2 * latent_dim)
        self.post_quant_conv = nn.Linear(latent_dim, dec_dim)
        self.decoder = nn.ModuleList([PictureBlock(dec_dim, dec_heads, mlp_ratio) for _ in range(dec_depth)])
        self.dec_norm = nn.LayerNorm(dec_dim, eps=1e-6)
        self.predictor = nn.Linear(dec_dim, 3 * patch_size**2)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [n, 3, H, W] in [0, 1]; decode the means to images about in [-1, 1]."""
        return self.decode_latents(self.moments(images)[0])

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images.

        Args:
            images: float [n, 3, H, W] in [0, 1].

        Returns:
            Mean and log-variance of the latents without scaling, [n, N, C] each.
        """
        tokens = self.patch_embed(2 * images.to(self.dtype) - 1)
        turns = self._turns(self.config["enc_dim"] // self.config["enc_heads"], tokens.device)
        for block in self.encoder:
            tokens = block(tokens, turns)
        mean, logvar = self.quant_conv(self.enc_norm(tokens)).chunk(2, -1)
        return mean, logvar.clamp(MIN_LOGVAR, MAX_LOGVAR)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode latents without scaling, [n, N, C], to images [n, 3, H, W], about in [-1, 1] but not clamped."""
        tokens = self.post_quant_conv(latents.to(self.dtype))
        turns = self._turns(self.config["dec_dim"] // self.config["dec_heads"], tokens.device)
        for block in self.decoder:
            tokens = block(tokens, turns)
        pixels = self.predictor(self.dec_norm(tokens)).transpose(1, 2).unflatten(-1, self.grid)
        # A token's numbers are ordered (channel, row, column).
        images: Tensor = functional.pixel_shuffle(pixels, self.config["patch_size"])
        return images

    def _turns(self, head_size: int, device: torch.device) -> Tensor:
        """Return the rotations of the tokens; half of a head's vector is not rotated."""
        num_tokens = self.grid[0] * self.grid[1]
        rates = torch.linspace(1, num_tokens / 2, head_size // 8, device=device) * math.pi
        return grid_turns(self.grid, rates)


class Patches(nn.Module):
    """Patches of an image as tokens."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, size, size)

    def forward(self, images: Tensor) -> Tensor:
        """Map [n, 3, H, W] to [n, N, width]."""
        tokens: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return tokens


class PictureAttention(nn.Module):
    """Attention of all tokens of an image."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = (part.transpose(1, 2) for part in qkv.unbind(2))  # [n, heads, N, head size]
        mixed = functional.scaled_dot_product_attention(rotate_pairs(queries, turns), rotate_pairs(keys, turns), values)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """Two linear layers around a GELU.

    Args:
        width: of input and output.
        inner: width between the layers.
        approximate: form of the GELU, as torch names it.
    """

    def __init__(self, width: int, inner: int, approximate: str = "none") -> None:
        super().__init__()
        self.approximate = approximate
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x), approximate=self.approximate))
        return out


class PictureBlock(nn.Module):
    """Attention and MLP."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = PictureAttention(width, num_heads), Mlp(width, int(mlp_ratio * width))

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), turns)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out
