"""The networks of compressive tokenizers: `diffusers`' encoder and decoder, joined by attention to context frames.

Parameters have the names that RLVR-World and iVideoGPT published (both of thuml). Legend: n images, c context frames of
a clip, H W pixels, h w grid, C channels of the features.
"""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn

from rlir_ray.data.files import Json

NUM_HEADS, DROPOUT = 4, 0.1
"""Of the attention to the context frames."""


class ContextEncoder(Encoder):
    """`diffusers`' encoder, which also gives the features of context frames."""

    def with_features(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode images [n, 3, H, W] as [n, C, h, w]; also give the features after the first convolution, each block
        and the middle.
        """
        features = [self.conv_in(images)]
        for block in self.down_blocks:
            features.append(block(features[-1]))
        features.append(self.mid_block(features[-1]))
        latents: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(features[-1])))
        return latents, tuple(features)


class ContextDecoder(Decoder):
    """`diffusers`' decoder, which also gives the features of context frames."""

    def with_features(self, latents: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Decode latents [n, C, h, w] to images [n, 3, H, W]; also give the features after the first convolution, the
        middle and each block.
        """
        features = [self.conv_in(latents)]
        features.append(self.mid_block(features[-1]))
        for block in self.up_blocks:
            features.append(block(features[-1]))
        images: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(features[-1])))
        return images, tuple(features)


class LaterEncoder(Encoder):
    """`diffusers`' encoder, which attends to the context frames after each block of at most `most` rows.

    Args:
        settings: arguments of the encoder.
        size: H and W.
        most: rows of the largest features that attend.
        num_context: c.
    """

    def __init__(self, settings: Json, size: tuple[int, int], most: int, num_context: int) -> None:
        super().__init__(**settings, mid_block_add_attention=True)
        channels: tuple[int, ...] = settings["block_out_channels"]
        factors = [2 ** min(index + 1, len(channels) - 1) for index in range(len(channels))]
        sizes = [(size[0] // factor, size[1] // factor) for factor in factors]
        self.attending = [index for index, (rows, _) in enumerate(sizes) if rows <= most]
        self.reads = [1 + index for index in self.attending]
        """Which features of `ContextEncoder` are read."""
        groups: int = settings["norm_num_groups"]
        self.cross_att_blocks = nn.ModuleList(
            ContextAttention(channels[index], sizes[index], groups, num_context) for index in self.attending
        )

    def with_context(self, images: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """Encode images [n, 3, H, W] with the features `reads` of their context frames, as [n, C, h, w]."""
        x = self.conv_in(images)
        attention = zip(self.cross_att_blocks, context, strict=True)
        for index, block in enumerate(self.down_blocks):
            x = block(x)
            if index in self.attending:
                attend, told = next(attention)
                x = attend(x, told)
        x = self.mid_block(x)
        latents: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return latents


class LaterDecoder(Decoder):
    """`diffusers`' decoder, which attends to the context frames after its middle and each block of at most `most` rows.

    Args:
        settings: arguments of the decoder.
        grid: h and w.
        most: rows of the largest features that attend.
        num_context: c.
    """

    def __init__(self, settings: Json, grid: tuple[int, int], most: int, num_context: int) -> None:
        super().__init__(**settings, mid_block_add_attention=True)
        channels: tuple[int, ...] = settings["block_out_channels"]
        widths = channels[::-1]
        factors = [2 ** min(index + 1, len(channels) - 1) for index in range(len(channels))]
        sizes = [(grid[0] * factor, grid[1] * factor) for factor in factors]
        self.attending = [index for index, (rows, _) in enumerate(sizes) if rows <= most]
        self.reads = [1, *(2 + index for index in self.attending)]
        """Which features of `ContextDecoder` are read."""
        groups: int = settings["norm_num_groups"]
        self.cross_att_blocks = nn.ModuleList(
            [
                ContextAttention(widths[0], grid, groups, num_context),
                *(ContextAttention(widths[index], sizes[index], groups, num_context) for index in self.attending),
            ]
        )

    def with_context(self, latents: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """Decode latents [n, C, h, w] with the features `reads` of their context frames, to images [n, 3, H, W]."""
        attention = zip(self.cross_att_blocks, context, strict=True)
        attend, told = next(attention)
        x = attend(self.mid_block(self.conv_in(latents)), told)
        for index, block in enumerate(self.up_blocks):
            x = block(x)
            if index in self.attending:
                attend, told = next(attention)
                x = attend(x, told)
        images: Tensor = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return images


class ContextAttention(nn.Module):
    """Attention of a later frame's features to those of its context frames, with learned positions.

    Args:
        channels: of both features.
        size: rows and columns of a frame's features.
        groups: of the group norms.
        num_context: c.
    """

    def __init__(self, channels: int, size: tuple[int, int], groups: int, num_context: int) -> None:
        super().__init__()
        positions = size[0] * size[1]
        self.q_norm, self.kv_norm = nn.GroupNorm(groups, channels), nn.GroupNorm(groups, channels)
        self.q_pos_emb = nn.Parameter(torch.randn(positions, channels) / channels**0.5)
        self.kv_pos_emb = nn.Parameter(torch.randn(num_context * positions, channels) / channels**0.5)
        self.att = nn.MultiheadAttention(channels, NUM_HEADS, dropout=DROPOUT, batch_first=True)
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Add what the context frames tell.

        Args:
            x: [n, channels, rows, columns].
            context: [B, channels, c * rows, columns], the context frames of a clip below each other; each clip serves
                n / B neighbours of x.
        """
        queries = self.q_norm(x).flatten(2).transpose(1, 2) + self.q_pos_emb
        keys = self.kv_norm(context).flatten(2).transpose(1, 2) + self.kv_pos_emb
        keys = keys.repeat_interleave(len(x) // len(context), 0)
        told = self.drop(self.att(queries, keys, keys, need_weights=False)[0])
        return nn.functional.silu(x + told.transpose(1, 2).unflatten(2, x.shape[2:]))

    def keep_last(self, num_context: int) -> None:
        """Keep the positions of the last `num_context` context frames."""
        num_rows = num_context * len(self.q_pos_emb)
        self.kv_pos_emb = nn.Parameter(self.kv_pos_emb.detach()[-num_rows:].clone())
