"""RLVR-World's compressive tokenizer (thuml/RLVR-World): finite scalar quantization."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from rlir_ray.models.compressive import CompressiveTokenizer
from rlir_ray.models.fsq import published_quantizer
from rlir_ray.models.rlvr_tokenizer import check_blocks


class RlvrCompressiveTokenizer(CompressiveTokenizer):
    """RLVR-World's compressive tokenizer; a `diffusers` model whose arguments have the published names.

    Published as `CompressiveVQModelFSQ`: of 256 x 320 pixels, a context frame is 32 x 40 ids and a later frame 8 x 10,
    each below 4375. Ids of a context frame are decoded with or without the offset that they have in a sequence, because
    it is a multiple of the last number's step.

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
        resolution: H.
        patch_size: p; p x p positions of the features are one id of a later frame.
        patch_width: q, for patches of p x q positions; None: p, as published.
        width: W; None: 5/4 of the height, as published. Only tokenizers of this project state it.
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
        patch_width: int | None = None,
        width: int | None = None,
    ) -> None:
        check_blocks(block_out_channels, down_block_types, up_block_types, norm_type)
        size, patch = (resolution, width or resolution * 5 // 4), (patch_size, patch_width or patch_size)
        steps = [2 ** (len(block_out_channels) - 1) * side for side in patch]
        if context_length != 1:
            raise ValueError(f"context_length must be 1, got {context_length}; give the published config.json")
        if size[0] % steps[0] or size[1] % steps[1]:
            raise ValueError(
                f"height and width of frames must be multiples of {steps[0]} and {steps[1]}, the sides of a patch, got "
                f"{size[0]}x{size[1]}; set resolution and width"
            )
        super().__init__(
            size=size,
            patch=patch,
            num_context=1,
            context_quantizer=published_quantizer(vq_fsq_levels),
            quantizer=published_quantizer(dyn_fsq_levels),
        )

    def reconstruct(self, images: Tensor) -> Tensor:
        """Quantize and decode clips in one differentiable pass, for training.

        Args:
            images: float [B, 1 + F, 3, H, W] in [0, 1].

        Returns:
            [B, 1 + F, 3, H, W], not clamped.
        """
        self.check_images(images)
        num_clips, num_context = len(images), self.num_context
        vectors, told = self.context_vectors(images[:, :num_context].flatten(0, 1))
        codes = self.context_quantizer.quantize(vectors.movedim(1, -1))[0].movedim(-1, 1).to(vectors.dtype)
        context_images, features = self.decoder.with_features(self.post_quant_conv(codes))
        later = self.patch_vectors(self.later_features(images[:, num_context:].flatten(0, 1), told))
        patches = self.post_quant_linear(self.quantizer.quantize(later)[0].to(later.dtype))
        read = self.of_clips(features, self.cond_decoder.reads)
        later_images = self.cond_decoder.with_context(self.from_patches(patches), read)
        return torch.cat([part.unflatten(0, (num_clips, -1)) for part in (context_images, later_images)], 1)
