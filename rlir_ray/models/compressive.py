"""Compressive tokenizers (RLVR-World, iVideoGPT): context frames in full, later frames as what changed.

A later frame is encoded and decoded with the features of the context frames, and has far fewer ids. The two published
forms differ in the shape of frames, the number of context frames and the quantizers; parameters have the published
names. Legend: B clips, c context frames of a clip, F later frames of a clip, n images, H W pixels, h w grid of a
context frame, p q patch, C channels of the features, D numbers of a code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from rlir_ray.data.files import Json
from rlir_ray.models.compressive_networks import (
    ContextAttention,
    ContextDecoder,
    ContextEncoder,
    LaterDecoder,
    LaterEncoder,
)


class Quantizer(Protocol):
    """Vectors <-> ids."""

    @property
    def size(self) -> int:
        """D."""

    @property
    def num_codes(self) -> int: ...

    def quantize(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Map vectors float [..., D] to codes, float32 [..., D], and their ids, int64 [...]."""

    def codes(self, ids: Tensor) -> Tensor:
        """Look up the codes, float [..., D], of ids int [...]."""


@dataclass(frozen=True)
class Context:
    """The decoded context frames of B clips, with which any number of later frames are decoded."""

    images: Tensor
    """[B * c, 3, H, W], about in [0, 1] but not clamped; the frames of a clip stand in a row."""
    features: tuple[Tensor, ...]
    """The decoder's features that later frames attend to, [B, channels, c * height, width] each."""


class CompressiveTokenizer(ModelMixin, ConfigMixin):  # type: ignore[misc]  # as diffusers' own models
    """What compressive tokenizers share; a subclass registers the published arguments as its `diffusers` config.

    Args:
        size: H and W.
        patch: p and q; p x q positions of the features are one id of a later frame.
        num_context: c.
        context_quantizer, quantizer: of context frames and of later frames.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int],
        patch: tuple[int, int],
        num_context: int,
        context_quantizer: Quantizer,
        quantizer: Quantizer,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # diffusers does not annotate it
        self.size, self.patch, self.num_context = size, patch, num_context
        self.context_quantizer, self.quantizer = context_quantizer, quantizer
        settings: Json = self.config
        channels = tuple(settings["block_out_channels"])
        factor = 2 ** (len(channels) - 1)
        self.grid = (size[0] // factor, size[1] // factor)
        self.patches = (self.grid[0] // patch[0], self.grid[1] // patch[1])
        latent_channels, most = settings["latent_channels"], settings["max_att_resolution"]
        common = {name: settings[name] for name in ("layers_per_block", "norm_num_groups", "act_fn")}
        down: Json = {
            "in_channels": settings["in_channels"],
            "out_channels": latent_channels,
            "down_block_types": tuple(settings["down_block_types"]),
            "block_out_channels": channels,
            "double_z": False,
            **common,
        }
        up: Json = {
            "in_channels": latent_channels,
            "out_channels": settings["out_channels"],
            "up_block_types": tuple(settings["up_block_types"]),
            "block_out_channels": channels,
            "norm_type": settings["norm_type"],
            **common,
        }
        attention = settings["mid_block_add_attention"]
        self.encoder = ContextEncoder(**down, mid_block_add_attention=attention)
        self.decoder = ContextDecoder(**up, mid_block_add_attention=attention)
        self.cond_encoder = LaterEncoder(down, size, most, num_context)
        self.cond_decoder = LaterDecoder(up, self.grid, most, num_context)
        self.quant_conv = nn.Conv2d(latent_channels, context_quantizer.size, 1)
        self.post_quant_conv = nn.Conv2d(context_quantizer.size, latent_channels, 1)
        self.quant_linear = nn.Linear(latent_channels * patch[0] * patch[1], quantizer.size)
        self.post_quant_linear = nn.Linear(quantizer.size, latent_channels * patch[0] * patch[1])

    def without_dropout(self) -> Self:
        """Train without dropout in the attention to the context frame, which takes half of a step's time on a CPU."""
        for module in self.modules():
            if isinstance(module, ContextAttention):
                module.att.dropout = module.drop.p = 0.0
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Encode clips [B, c + F, 3, H, W] in [0, 1], and decode the ids to clips that are not clamped."""
        return self.detokenize(*self.tokenize(images))

    # Whole clips.

    def tokenize(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode clips.

        Args:
            images: float [B, c + F, 3, H, W] in [0, 1]; the first c frames are the context.

        Returns:
            Ids of the context frames, int64 [B, c, h * w], and of the later frames, int64 [B, F, h * w / (p * q)], in
            raster order.

        Raises:
            ValueError: the images have another size, or there is no later frame.
        """
        self.check_images(images)
        vectors, context = self.context_vectors(images[:, : self.num_context].flatten(0, 1))
        context_ids = self.context_quantizer.quantize(vectors.movedim(1, -1))[1]  # [B * c, h, w]
        later = self.patch_vectors(self.later_features(images[:, self.num_context :].flatten(0, 1), context))
        ids = self.quantizer.quantize(later)[1]  # [B * F, h * w / (p * q)]
        return context_ids.flatten(1).unflatten(0, (len(images), -1)), ids.unflatten(0, (len(images), -1))

    def detokenize(self, context_ids: Tensor, ids: Tensor) -> Tensor:
        """Decode clips.

        Args:
            context_ids: int [B, c, h * w].
            ids: int [B, F, h * w / (p * q)].

        Returns:
            [B, c + F, 3, H, W], about in [0, 1] but not clamped.
        """
        context = self.decode_context(context_ids.flatten(0, 1))
        images = context.images.unflatten(0, (-1, self.num_context))
        return torch.cat([images, self.decode_later(context, ids)], 1)

    # The steps of decoding: one context serves all later frames of its clip, which do not depend on each other.

    def decode_context(self, ids: Tensor) -> Context:
        """Decode context frames.

        Args:
            ids: int [B * c, h * w], in raster order; the frames of a clip stand in a row.

        Raises:
            ValueError: another number of ids.
        """
        self._check_ids(ids, self.num_context, self.grid)
        codes = self.context_quantizer.codes(ids.unflatten(1, self.grid)).movedim(-1, 1).to(self.dtype)
        images, features = self.decoder.with_features(self.post_quant_conv(codes))
        return Context(images, self.of_clips(features, self.cond_decoder.reads))

    def decode_later(self, context: Context, ids: Tensor) -> Tensor:
        """Decode later frames.

        Args:
            context: of B clips.
            ids: int [B * G, F, h * w / (p * q)], in raster order; G clips share one context and stand in a row.

        Returns:
            [B * G, F, 3, H, W], about in [0, 1] but not clamped.

        Raises:
            ValueError: another number of ids, or of clips.
        """
        self._check_ids(ids, len(context.features[0]), self.patches)
        codes = self.quantizer.codes(ids.flatten(0, 1)).to(self.dtype)
        latents = self.from_patches(self.post_quant_linear(codes))
        images: Tensor = self.cond_decoder.with_context(latents, context.features).unflatten(0, ids.shape[:2])
        return images

    # The steps of encoding.

    def context_vectors(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode context frames.

        Args:
            images: float [B * c, 3, H, W] in [0, 1]; the frames of a clip stand in a row.

        Returns:
            Vectors before quantization, [B * c, D, h, w], and the features that later frames attend to, as those of
            `Context`.
        """
        latents, features = self.encoder.with_features(images.to(self.dtype))
        return self.quant_conv(latents), self.of_clips(features, self.cond_encoder.reads)

    def later_features(self, images: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        """Encode later frames.

        Args:
            images: float [B * F, 3, H, W] in [0, 1]; the frames of one clip stand in a row.
            context: the features of B clips, from `context_vectors`.

        Returns:
            [B * F, C, h, w].
        """
        return self.cond_encoder.with_context(images.to(self.dtype), context)

    def patch_vectors(self, features: Tensor) -> Tensor:
        """Map features [n, C, h, w] to vectors before quantization, [n, h * w / (p * q), D]."""
        rows, columns = self.patch
        split = features.unflatten(3, (-1, columns)).unflatten(2, (-1, rows))  # [n, C, h / p, p, w / q, q]
        # The numbers of a patch are ordered (row, column, channel).
        vectors: Tensor = self.quant_linear(split.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))
        return vectors

    def from_patches(self, patches: Tensor) -> Tensor:
        """Map the patches [n, h * w / (p * q), p * q * C] to features [n, C, h, w]."""
        split = patches.unflatten(2, (*self.patch, -1)).unflatten(1, self.patches)  # [n, h / p, w / q, p, q, C]
        features: Tensor = split.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        return features

    def of_clips(self, features: tuple[Tensor, ...], reads: list[int]) -> tuple[Tensor, ...]:
        """Join features [B * c, channels, height, width] to [B, channels, c * height, width], only those in `reads`."""
        clips = (features[index].unflatten(0, (-1, self.num_context)) for index in reads)
        return tuple(each.transpose(1, 2).flatten(2, 3) for each in clips)

    def check_images(self, images: Tensor) -> None:
        if images.ndim != 5 or images.shape[1] <= self.num_context or images.shape[3:] != self.size:
            raise ValueError(
                f"the tokenizer reads clips [B, {self.num_context} + F, 3, {self.size[0]}, {self.size[1]}], got "
                f"{list(images.shape)}; resize the video, and give at least one later frame"
            )

    def _check_ids(self, ids: Tensor, num_rows: int, grid: tuple[int, int]) -> None:
        num_ids = grid[0] * grid[1]
        if not ids.numel() or ids.shape[-1] != num_ids or len(ids) % num_rows:
            raise ValueError(
                f"the tokenizer decodes {num_ids} ids of a frame and whole groups of {num_rows} contexts, got "
                f"{list(ids.shape)}; give them in the order [clips, frames, ids]"
            )
