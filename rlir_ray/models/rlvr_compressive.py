"""RLVR-World's compressive tokenizer (thuml/RLVR-World): a context frame in full, later frames as what changed.

A later frame is encoded and decoded with the features of the context frame, and has far fewer ids.
Parameters have the published names. Legend: B clips, F later frames of a clip, n images, H W pixels, h w grid of the
context frame, p patch, C channels of the features, D numbers of a code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from rlir_ray.data.files import Json
from rlir_ray.models.fsq import published_quantizer
from rlir_ray.models.rlvr_tokenizer import check_blocks

NUM_HEADS, DROPOUT = 4, 0.1
"""Of the attention to the context frame."""


@dataclass(frozen=True)
class Context:
    """The decoded context frames of B clips, with which any number of later frames are decoded."""

    images: Tensor
    """[B, 3, H, W], about in [0, 1] but not clamped."""
    features: tuple[Tensor, ...]
    """The decoder's features that later frames attend to, [B, channels, height, width] each."""


class RlvrCompressiveTokenizer(ModelMixin, ConfigMixin):  # type: ignore[misc]  # as diffusers' own models
    """RLVR-World's compressive tokenizer; a `diffusers` model whose arguments have the published names.

    Published as `CompressiveVQModelFSQ`: of 256 x 320 pixels, a context frame is 32 x 40 ids and a later frame 8 x 10,
    each below 4375.

    Args:
        in_channels, out_channels: of an image.
        down_block_types, up_block_types: one a block, of the only form `DownEncoderBlock2D` and `UpDecoderBlock2D`.
        block_out_channels: channels of each block; every block but the last halves the image.
        layers_per_block: residual layers in a block of the encoders; the decoders have one more.
        act_fn: activation between the layers, as diffusers names it.
        latent_channels: C.
        sample_size, scaling_factor, lookup_from_codebook, force_upcast: read by nothing, kept for the published config.
        vq_fsq_levels, dyn_fsq_levels: keys of `fsq.LEVELS`, of context frames and of later frames.
        norm_num_groups: groups of each group norm.
        norm_type: `group`.
        mid_block_add_attention: whether the context frame's networks attend in their middle; the others always do.
        context_length: 1, the number of context frames.
        max_att_resolution: blocks of this height and less attend to the context frame.
        resolution: H; the width is 5/4 of it.
        patch_size: p; p x p positions of the features are one id of a later frame.
    """

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers does not annotate it
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4,
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 4,
        block_out_channels: tuple[int, ...] = (128, 256, 256, 512),
        layers_per_block: int = 2,
        act_fn: str = "silu",
        latent_channels: int = 64,
        sample_size: int = 32,
        vq_fsq_levels: int = 12,
        norm_num_groups: int = 32,
        scaling_factor: float = 0.18215,
        norm_type: str = "group",
        mid_block_add_attention: bool = False,
        lookup_from_codebook: bool = True,
        force_upcast: bool = True,
        dyn_fsq_levels: int = 12,
        context_length: int = 1,
        max_att_resolution: int = 32,
        resolution: int = 256,
        patch_size: int = 4,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # diffusers does not annotate it
        check_blocks(block_out_channels, down_block_types, up_block_types, norm_type)
        factor = 2 ** (len(block_out_channels) - 1)
        if context_length != 1:
            raise ValueError(f"context_length must be 1, got {context_length}; give the published config.json")
        if resolution % (4 * factor * patch_size):
            raise ValueError(
                f"resolution must be a multiple of {4 * factor * patch_size}, so that patches of {patch_size} fill a "
                f"width of 5/4, got {resolution}; for example {4 * factor * patch_size}"
            )
        height = resolution // factor
        self.grid = (height, height * 5 // 4)
        self.patches = (self.grid[0] // patch_size, self.grid[1] // patch_size)
        self.image_size = (resolution, resolution * 5 // 4)
        self.context_quantizer = published_quantizer(vq_fsq_levels)
        self.quantizer = published_quantizer(dyn_fsq_levels)
        common: Json = {"layers_per_block": layers_per_block, "norm_num_groups": norm_num_groups, "act_fn": act_fn}
        channels = tuple(block_out_channels)
        down: Json = {
            "in_channels": in_channels,
            "out_channels": latent_channels,
            "down_block_types": tuple(down_block_types),
            "block_out_channels": channels,
            "double_z": False,
            **common,
        }
        up: Json = {
            "in_channels": latent_channels,
            "out_channels": out_channels,
            "up_block_types": tuple(up_block_types),
            "block_out_channels": channels,
            "norm_type": norm_type,
            **common,
        }
        self.encoder = ContextEncoder(**down, mid_block_add_attention=mid_block_add_attention)
        self.decoder = ContextDecoder(**up, mid_block_add_attention=mid_block_add_attention)
        self.cond_encoder = LaterEncoder(down, resolution, max_att_resolution, norm_num_groups)
        self.cond_decoder = LaterDecoder(up, height, max_att_resolution, norm_num_groups)
        size, later_size = len(self.context_quantizer.levels), len(self.quantizer.levels)
        self.quant_conv = nn.Conv2d(latent_channels, size, 1)
        self.post_quant_conv = nn.Conv2d(size, latent_channels, 1)
        self.quant_linear = nn.Linear(latent_channels * patch_size**2, later_size)
        self.post_quant_linear = nn.Linear(later_size, latent_channels * patch_size**2)

    def forward(self, images: Tensor) -> Tensor:
        """Encode clips [B, 1 + F, 3, H, W] in [0, 1], and decode the ids to clips that are not clamped."""
        return self.detokenize(*self.tokenize(images))

    # Whole clips.

    def tokenize(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode clips.

        Args:
            images: float [B, 1 + F, 3, H, W] in [0, 1]; the first frame is the context.

        Returns:
            Ids of the context frames, int64 [B, 1, h * w], and of the later frames, int64 [B, F, h * w / p²], in raster
            order.

        Raises:
            ValueError: the images have another size, or there is no later frame.
        """
        self._check_images(images)
        vectors, context = self.context_vectors(images[:, 0])
        context_ids = self.context_quantizer.quantize(vectors.movedim(1, -1))[1]  # [B, h, w]
        later = self.patch_vectors(self.later_features(images[:, 1:].flatten(0, 1), context))
        ids = self.quantizer.quantize(later)[1]  # [B * F, h * w / p²]
        return context_ids.flatten(1)[:, None], ids.unflatten(0, (len(images), images.shape[1] - 1))

    def detokenize(self, context_ids: Tensor, ids: Tensor) -> Tensor:
        """Decode clips.

        Args:
            context_ids: int [B, 1, h * w]; the offset of a sequence may be included.
            ids: int [B, F, h * w / p²].

        Returns:
            [B, 1 + F, 3, H, W], about in [0, 1] but not clamped.
        """
        context = self.decode_context(context_ids[:, 0])
        return torch.cat([context.images[:, None], self.decode_later(context, ids)], 1)

    # The steps of decoding: one context serves all later frames of its clip, which do not depend on each other.

    def decode_context(self, ids: Tensor) -> Context:
        """Decode context frames.

        Args:
            ids: int [B, h * w], in raster order; the offset of a sequence may be included, because it is a multiple of
                the last number's step.

        Raises:
            ValueError: another number of ids.
        """
        self._check_ids(ids, 1, self.grid)
        codes = self.context_quantizer.codes(ids.unflatten(1, self.grid)).movedim(-1, 1).to(self.dtype)
        images, features = self.decoder.with_features(self.post_quant_conv(codes))
        return Context(images, tuple(features[index] for index in self.cond_decoder.reads))

    def decode_later(self, context: Context, ids: Tensor) -> Tensor:
        """Decode later frames.

        Args:
            context: of B clips.
            ids: int [B * G, F, h * w / p²], in raster order; G clips share one context and stand in a row.

        Returns:
            [B * G, F, 3, H, W], about in [0, 1] but not clamped.

        Raises:
            ValueError: another number of ids, or of clips.
        """
        self._check_ids(ids, len(context.images), self.patches)
        codes = self.quantizer.codes(ids.flatten(0, 1)).to(self.dtype)
        latents = self._from_patches(self.post_quant_linear(codes))
        images: Tensor = self.cond_decoder.with_context(latents, context.features).unflatten(0, ids.shape[:2])
        return images

    # The steps of encoding.

    def context_vectors(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode context frames.

        Args:
            images: float [B, 3, H, W] in [0, 1].

        Returns:
            Vectors before quantization, [B, D, h, w], and the features that later frames attend to.
        """
        latents, features = self.encoder.with_features(images.to(self.dtype))
        return self.quant_conv(latents), tuple(features[index] for index in self.cond_encoder.reads)

    def later_features(self, images: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """Encode later frames.

        Args:
            images: float [B * F, 3, H, W] in [0, 1]; the frames of one context stand in a row.
            context: the features of B context frames, from `context_vectors`.

        Returns:
            [B * F, C, h, w].
        """
        return self.cond_encoder.with_context(images.to(self.dtype), context)

    def patch_vectors(self, features: Tensor) -> Tensor:
        """Map features [n, C, h, w] to vectors before quantization, [n, h * w / p², D]."""
        patch = self.config["patch_size"]
        split = features.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # [n, C, h / p, p, w / p, p]
        # The numbers of a patch are ordered (row, column, channel).
        vectors: Tensor = self.quant_linear(split.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))
        return vectors

    def _from_patches(self, patches: Tensor) -> Tensor:
        """Map the patches [n, h * w / p², p * p * C] to features [n, C, h, w]."""
        patch = self.config["patch_size"]
        split = patches.unflatten(2, (patch, patch, -1)).unflatten(1, self.patches)  # [n, h / p, w / p, p, p, C]
        features: Tensor = split.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        return features

    def _check_images(self, images: Tensor) -> None:
        height = self.config["resolution"]
        if images.ndim != 5 or images.shape[1] < 2 or images.shape[3:] != (height, height * 5 // 4):
            raise ValueError(
                f"the tokenizer reads clips [B, 1 + F, 3, {height}, {height * 5 // 4}], got {list(images.shape)}; "
                "resize the video, and give at least one later frame"
            )

    def _check_ids(self, ids: Tensor, num_clips: int, grid: tuple[int, int]) -> None:
        num_ids = grid[0] * grid[1]
        if not ids.numel() or ids.shape[-1] != num_ids or len(ids) % num_clips:
            raise ValueError(
                f"the tokenizer decodes {num_ids} ids of a frame and whole groups of {num_clips} contexts, got "
                f"{list(ids.shape)}; give them in the order [clips, frames, ids]"
            )


class ContextEncoder(Encoder):
    """`diffusers`' encoder, which also gives the features of a context frame."""

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
    """`diffusers`' decoder, which also gives the features of a context frame."""

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
    """`diffusers`' encoder, which attends to the context frame after each block of at most `most` rows.

    Args:
        settings: arguments of the encoder.
        height: H.
        most: rows of the largest features that attend.
        groups: of each group norm.
    """

    def __init__(self, settings: Json, height: int, most: int, groups: int) -> None:
        super().__init__(**settings, mid_block_add_attention=True)
        channels: tuple[int, ...] = settings["block_out_channels"]
        heights = [height // 2 ** min(index + 1, len(channels) - 1) for index in range(len(channels))]
        self.attending = [index for index, rows in enumerate(heights) if rows <= most]
        self.reads = [1 + index for index in self.attending]
        """Which features of `ContextEncoder` are read."""
        self.cross_att_blocks = nn.ModuleList(
            ContextAttention(channels[index], heights[index], groups) for index in self.attending
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
    """`diffusers`' decoder, which attends to the context frame after its middle and each block of at most `most` rows.

    Args:
        settings: arguments of the decoder.
        height: h.
        most: rows of the largest features that attend.
        groups: of each group norm.
    """

    def __init__(self, settings: Json, height: int, most: int, groups: int) -> None:
        super().__init__(**settings, mid_block_add_attention=True)
        channels: tuple[int, ...] = settings["block_out_channels"]
        widths = channels[::-1]
        heights = [height * 2 ** min(index + 1, len(channels) - 1) for index in range(len(channels))]
        self.attending = [index for index, rows in enumerate(heights) if rows <= most]
        self.reads = [1, *(2 + index for index in self.attending)]
        """Which features of `ContextDecoder` are read."""
        self.cross_att_blocks = nn.ModuleList(
            [
                ContextAttention(widths[0], height, groups),
                *(ContextAttention(widths[index], heights[index], groups) for index in self.attending),
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
    """Attention of a later frame's features to those of its context frame, with learned positions.

    Args:
        channels: of both features.
        height: rows of both; the columns are 5/4 of them.
        groups: of the group norms.
    """

    def __init__(self, channels: int, height: int, groups: int) -> None:
        super().__init__()
        size = height * (height * 5 // 4)
        self.q_norm, self.kv_norm = nn.GroupNorm(groups, channels), nn.GroupNorm(groups, channels)
        self.q_pos_emb = nn.Parameter(torch.randn(size, channels) / channels**0.5)
        self.kv_pos_emb = nn.Parameter(torch.randn(size, channels) / channels**0.5)
        self.att = nn.MultiheadAttention(channels, NUM_HEADS, dropout=DROPOUT, batch_first=True)
        self.drop = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Add what the context frames tell.

        Args:
            x: [n, channels, height, width].
            context: the same of the context frames; each serves n / len(context) neighbours of x.
        """
        queries = self.q_norm(x).flatten(2).transpose(1, 2) + self.q_pos_emb
        keys = self.kv_norm(context).flatten(2).transpose(1, 2) + self.kv_pos_emb
        keys = keys.repeat_interleave(len(x) // len(context), 0)
        told = self.drop(self.att(queries, keys, keys, need_weights=False)[0])
        return nn.functional.silu(x + told.transpose(1, 2).unflatten(2, x.shape[2:]))
