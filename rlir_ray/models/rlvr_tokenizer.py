"""RLVR-World's tokenizer of single frames (thuml/RLVR-World): convolutions around a finite scalar quantizer.

Parameters have the published names. Legend: n images, H W pixels, h w grid, C channels of the features, D numbers of a
code.
"""

from __future__ import annotations

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import Encoder
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, UpDecoderBlock2D
from torch import Tensor, nn
from torch.nn import functional

from rlir_ray.models.fsq import published_quantizer

EPSILON = 1e-6
"""Of all group norms of `diffusers`' encoder."""


class RlvrTokenizer(ModelMixin, ConfigMixin):  # type: ignore[misc]  # as diffusers' own models
    """RLVR-World's frame tokenizer; a `diffusers` model whose arguments have the published names.

    Published as `CNNFSQModel256`: frames of 256 x 320 pixels are 16 x 20 ids below 4375.

    Args:
        in_channels, out_channels: of an image.
        down_block_types, up_block_types: one a block, of the only form `DownEncoderBlock2D` and `UpDecoderBlock2D`.
        block_out_channels: channels of each block; every block but the last halves the image.
        layers_per_block: residual layers in a block, of encoder and decoder.
        act_fn: activation between the layers, as diffusers names it.
        latent_channels: C.
        norm_num_groups: groups of each group norm.
        fsq_levels: key of `fsq.LEVELS`.
        norm_type: `group`.
        resolution: H.
    """

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers does not annotate it
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 5,
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",) * 5,
        block_out_channels: tuple[int, ...] = (128, 256, 256, 512, 768),
        layers_per_block: int = 2,
        act_fn: str = "silu",
        latent_channels: int = 64,
        norm_num_groups: int = 32,
        fsq_levels: int = 12,
        norm_type: str = "group",
        resolution: int = 256,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # diffusers does not annotate it
        check_blocks(block_out_channels, down_block_types, up_block_types, norm_type)
        self.quantizer = published_quantizer(fsq_levels)
        self.encoder = Encoder(
            in_channels=in_channels,
            out_channels=latent_channels,
            down_block_types=tuple(down_block_types),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            act_fn=act_fn,
            double_z=False,
        )
        self.decoder = RlvrDecoder(
            in_channels=latent_channels,
            out_channels=out_channels,
            channels=tuple(block_out_channels),
            num_layers=layers_per_block,
            groups=norm_num_groups,
            act_fn=act_fn,
        )
        size = len(self.quantizer.levels)
        self.quant_linear = nn.Conv2d(latent_channels, size, 1)
        self.post_quant_linear = nn.Conv2d(size, latent_channels, 1)

    @property
    def num_codes(self) -> int:
        return self.quantizer.num_codes

    @property
    def factor(self) -> int:
        """H / h."""
        return int(2 ** (len(self.config["block_out_channels"]) - 1))

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [n, 3, H, W] in [0, 1], and decode the ids to images that are not clamped."""
        return self.decode(self.encode(images))

    def pre_quant(self, images: Tensor) -> Tensor:
        """Encode images as vectors before quantization.

        Args:
            images: float [n, 3, H, W] in [0, 1].

        Returns:
            float [n, D, h, w].
        """
        vectors: Tensor = self.quant_linear(self.encoder(images.to(self.dtype)))
        return vectors

    def encode(self, images: Tensor) -> Tensor:
        """Encode images float [n, 3, H, W] in [0, 1] as ids, int64 [n, h, w], each below `num_codes`."""
        return self.quantizer.quantize(self.pre_quant(images).movedim(1, -1))[1]

    def decode(self, ids: Tensor) -> Tensor:
        """Decode ids int [n, h, w] to images [n, 3, H, W], about in [0, 1] but not clamped."""
        codes = self.quantizer.codes(ids).movedim(-1, 1).to(self.dtype)
        images: Tensor = self.decoder(self.post_quant_linear(codes))
        return images


class RlvrDecoder(nn.Module):
    """The decoder of `RlvrTokenizer`.

    As `diffusers`' Decoder, but a block has as many residual layers as in the encoder, and the first block, not the
    last, keeps the size of the image.

    Args:
        in_channels, out_channels: of features and images.
        channels: of the encoder's blocks; this decoder has them in reverse.
        num_layers: residual layers in a block.
        groups: of each group norm.
        act_fn: activation between the layers.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        channels: tuple[int, ...],
        num_layers: int,
        groups: int,
        act_fn: str,
    ) -> None:
        super().__init__()
        widest, narrowest = channels[-1], channels[0]
        self.conv_in = nn.Conv2d(in_channels, widest, 3, padding=1)
        self.mid_block = UNetMidBlock2D(
            in_channels=widest,
            temb_channels=None,  # type: ignore[arg-type]  # as diffusers' own decoder
            resnet_eps=EPSILON,
            resnet_act_fn=act_fn,
            resnet_groups=groups,
            attention_head_dim=widest,
        )
        # 768 -> 512 -> 256 -> 256 -> 128 -> 128 at published size; diffusers' Decoder starts with 768 -> 768.
        widths = (widest, *reversed(channels[:-1]), narrowest)
        self.up_blocks = nn.ModuleList(
            UpDecoderBlock2D(
                widths[index],
                widths[index + 1],
                num_layers=num_layers,
                resnet_eps=EPSILON,
                resnet_act_fn=act_fn,
                resnet_groups=groups,
                add_upsample=index > 0,
            )
            for index in range(len(channels))
        )
        self.conv_norm_out = nn.GroupNorm(groups, narrowest, EPSILON)
        self.conv_out = nn.Conv2d(narrowest, out_channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map features [n, C, h, w] to images [n, 3, H, W]."""
        x = self.mid_block(self.conv_in(features))
        for block in self.up_blocks:
            x = block(x)
        images: Tensor = self.conv_out(functional.silu(self.conv_norm_out(x)))
        return images


def check_blocks(
    channels: tuple[int, ...],
    down_block_types: tuple[str, ...],
    up_block_types: tuple[str, ...],
    norm_type: str,
    project: str = "RLVR-World",
) -> None:
    """Check that a config has the one form of blocks that the tokenizers of RLVR-World and iVideoGPT have.

    Raises:
        ValueError: another block, another number of blocks, or another norm.
    """
    wanted = {
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "norm_type": "group",
    }
    given = {
        "down_block_types": tuple(down_block_types),
        "up_block_types": tuple(up_block_types),
        "norm_type": norm_type,
    }
    for name, value in wanted.items():
        if given[name] != value:
            raise ValueError(
                f"{name} of {project}'s tokenizers must be {value} for {len(channels)} block_out_channels, got "
                f"{given[name]}; give the published config.json"
            )
