"""iVideoGPT's compressive tokenizer (thuml/iVideoGPT): square frames, one or two context frames, two codebooks."""

from __future__ import annotations

from diffusers.configuration_utils import register_to_config
from torch import nn

from rlir_ray.models.compressive import CompressiveTokenizer
from rlir_ray.models.rlvr_tokenizer import check_blocks
from rlir_ray.models.vq import VectorQuantizer


class IvideogptTokenizer(CompressiveTokenizer):
    """iVideoGPT's compressive tokenizer; a `diffusers` model whose arguments have the published names.

    Published as `CompressiveVQModel`: a context frame of 64 x 64 or 256 x 256 pixels is 16 x 16 ids and a later frame
    4 x 4, each below 8192.

    Args:
        in_channels, out_channels: of an image.
        down_block_types, up_block_types: one a block, of the only form `DownEncoderBlock2D` and `UpDecoderBlock2D`.
        block_out_channels: channels of each block; every block but the last halves the image.
        layers_per_block: residual layers in a block of the encoders; the decoders have one more.
        act_fn: activation between the layers, as diffusers names it.
        latent_channels: C.
        sample_size, scaling_factor, lookup_from_codebook, force_upcast: read by nothing, kept for the published config.
        num_vq_embeddings, num_dyn_embeddings: codes of context frames and of later frames.
        vq_embed_dim: D; None: C.
        norm_num_groups: groups of each group norm.
        norm_type: `group`.
        mid_block_add_attention: whether the context frames' networks attend in their middle; the others always do.
        context_length: c, 1 or 2.
        max_att_resolution: blocks of this height and less attend to the context frames.
        resolution: H and W.
        patch_size: p; p x p positions of the features are one id of a later frame.
    """

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers does not annotate it
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 3,
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 3,
        block_out_channels: tuple[int, ...] = (128, 256, 512),
        layers_per_block: int = 2,
        act_fn: str = "silu",
        latent_channels: int = 64,
        sample_size: int = 32,
        num_vq_embeddings: int = 8192,
        norm_num_groups: int = 32,
        vq_embed_dim: int | None = None,
        scaling_factor: float = 0.18215,
        norm_type: str = "group",
        mid_block_add_attention: bool = False,
        lookup_from_codebook: bool = True,
        force_upcast: bool = True,
        num_dyn_embeddings: int = 8192,
        context_length: int = 2,
        max_att_resolution: int = 16,
        resolution: int = 64,
        patch_size: int = 4,
    ) -> None:
        check_blocks(block_out_channels, down_block_types, up_block_types, norm_type, "iVideoGPT")
        step = 2 ** (len(block_out_channels) - 1) * patch_size
        if context_length not in (1, 2):
            raise ValueError(f"context_length must be 1 or 2, got {context_length}; give the published config.json")
        if resolution % step:
            raise ValueError(
                f"resolution must be a multiple of {step}, so that patches of {patch_size} fill a frame, got "
                f"{resolution}; for example {step}"
            )
        size = vq_embed_dim or latent_channels
        context_codes, codes = nn.Embedding(num_vq_embeddings, size), nn.Embedding(num_dyn_embeddings, size)
        super().__init__(
            patch=(patch_size, patch_size),
            size=(resolution, resolution),
            num_context=context_length,
            context_quantizer=VectorQuantizer(context_codes),
            quantizer=VectorQuantizer(codes),
        )
        # The published names of the codebooks.
        self.quantize = nn.ModuleDict({"embedding": context_codes})
        self.dynamics_quantize = nn.ModuleDict({"embedding": codes})

    def set_context_length(self, num_context: int) -> None:
        """Read fewer context frames from now on: attention keeps the positions of the last ones.

        Raises:
            ValueError: no frame, or more than now.
        """
        if not 1 <= num_context <= self.num_context:
            raise ValueError(
                f"context_length must be in 1..{self.num_context}, because positions of further frames were not "
                f"learned, got {num_context}; use a tokenizer of more context frames"
            )
        for block in (*self.cond_encoder.cross_att_blocks, *self.cond_decoder.cross_att_blocks):
            block.keep_last(num_context)
        self.num_context = num_context
        self.register_to_config(context_length=num_context)  # type: ignore[no-untyped-call]  # as above
