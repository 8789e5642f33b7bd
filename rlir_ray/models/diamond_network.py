"""The U-Net of DIAMOND's world model (eloialonso/diamond): parts with the published parameter names.

Legend: B rows, C channels, H W a feature map, E width of the condition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUP_SIZE, NORM_EPS = 32, 1e-5
HEAD_SIZE = 8


def num_groups(channels: int) -> int:
    """Return the groups of a group norm.

    Raises:
        ValueError: the groups do not divide the channels.
    """
    groups = max(1, channels // GROUP_SIZE)
    if channels % groups:
        raise ValueError(f"{groups} groups must divide the channels of a norm, got {channels}; use multiples of 32")
    return groups


class GroupNorm(nn.Module):
    """A group norm with weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(num_groups(channels), channels, NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(x)
        return normed


class AdaGroupNorm(nn.Module):
    """A group norm that the condition scales and shifts."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.num_groups = num_groups(channels)
        self.linear = nn.Linear(condition, 2 * channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map x [B, C, H, W] by condition [B, E]."""
        scale, shift = self.linear(condition)[:, :, None, None].chunk(2, 1)
        out: Tensor = functional.group_norm(x, self.num_groups, eps=NORM_EPS) * (1 + scale) + shift
        return out


class SelfAttention(nn.Module):
    """Attention among the places of a feature map; its result is added to the normalised input, as published."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_heads = max(1, channels // HEAD_SIZE)
        if channels % self.num_heads:
            raise ValueError(
                f"{self.num_heads} heads must divide the channels of attention, got {channels}; use a multiple of 8"
            )
        self.norm = GroupNorm(channels)
        self.qkv_proj = nn.Conv2d(channels, 3 * channels, 1)
        self.out_proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W]."""
        x = self.norm(x)
        parts = self.qkv_proj(x).flatten(2).unflatten(1, (3, self.num_heads, -1))  # [B, 3, heads, C / heads, H * W]
        queries, keys, values = parts.transpose(-1, -2).unbind(1)
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        out: Tensor = self.out_proj(mixed.transpose(-1, -2).reshape(x.shape))
        return x + out


class ResidualBlock(nn.Module):
    """Two convolutions, each after a conditioned norm, and attention if the block has any."""

    def __init__(self, channels: int, out: int, condition: int, attends: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        self.norm1, self.conv1 = AdaGroupNorm(channels, condition), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = AdaGroupNorm(out, condition), nn.Conv2d(out, out, 3, padding=1)
        self.attn = SelfAttention(out) if attends else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map x [B, C, H, W] by condition [B, E]."""
        hidden = self.conv1(functional.silu(self.norm1(x, condition)))
        hidden = self.conv2(functional.silu(self.norm2(hidden, condition)))
        out: Tensor = self.attn(hidden + self.proj(x))
        return out


class ResidualBlocks(nn.Module):
    """The blocks of one level of the U-Net."""

    def __init__(self, widths: Sequence[tuple[int, int]], condition: int, attends: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([ResidualBlock(inner, out, condition, attends) for inner, out in widths])
        # diffusers sets both when gradient checkpointing is enabled.
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Any = None

    def forward(self, x: Tensor, condition: Tensor, joined: Sequence[Tensor] = ()) -> list[Tensor]:
        """Return the output of each block; `joined` are maps that stand behind the channels of each block's input."""
        outputs = []
        for number, block in enumerate(self.resblocks):
            x = torch.cat([x, joined[number]], 1) if joined else x
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, condition)
            else:
                x = block(x, condition)
            outputs.append(x)
        return outputs


class Downsample(nn.Module):
    """Halve a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.conv(x)
        return halved


class Upsample(nn.Module):
    """Double a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return doubled


class UNet(nn.Module):
    """A U-Net; each level keeps the input and the output of its blocks for the way up.

    Args:
        condition: E.
        depths: blocks of each level on the way down; one more on the way up.
        channels: C of each level.
        attends: whether the blocks of each level attend.
    """

    def __init__(self, condition: int, depths: Sequence[int], channels: Sequence[int], attends: Sequence[bool]) -> None:
        super().__init__()
        down, up = [], []
        above = [channels[0], *channels[:-1]]
        for depth, width, before, attention in zip(depths, channels, above, attends, strict=True):
            down.append(ResidualBlocks([(before, width)] + [(width, width)] * (depth - 1), condition, attention))
            # The last block reads the kept input of the level, and narrows to the level above.
            widths = [(2 * width, width)] * depth + [(width + before, before)]
            up.append(ResidualBlocks(widths, condition, attention))
        self.d_blocks, self.u_blocks = nn.ModuleList(down), nn.ModuleList(up[::-1])
        self.mid_blocks = ResidualBlocks([(channels[-1], channels[-1])] * 2, condition, attends=True)
        # The first entries keep the published names.
        between = channels[:-1]
        self.downsamples = nn.ModuleList([nn.Identity(), *(Downsample(width) for width in between)])
        self.upsamples = nn.ModuleList([nn.Identity(), *(Upsample(width) for width in between[::-1])])

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map x [B, C, H, W] of any size by condition [B, E]."""
        height, width = x.shape[-2:]
        multiple = 2 ** (len(self.d_blocks) - 1)
        x = functional.pad(x, (0, -width % multiple, 0, -height % multiple))
        kept = []
        for blocks, downsample in zip(self.d_blocks, self.downsamples, strict=True):
            x = downsample(x)
            kept.append([x, *blocks(x, condition)])
            x = kept[-1][-1]
        x = self.mid_blocks(x, condition)[-1]
        for blocks, upsample in zip(self.u_blocks, self.upsamples, strict=True):
            x = blocks(upsample(x), condition, kept.pop()[::-1])[-1]
        return x[..., :height, :width]


class NoiseEmbedding(nn.Module):
    """A number as cosines and sines at random frequencies, which are saved with the weights."""

    weight: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(1, width // 2))

    def forward(self, numbers: Tensor) -> Tensor:
        """Map [B] to float32 [B, E]."""
        angles = 2 * math.pi * numbers.float()[:, None] @ self.weight.float()
        return torch.cat([angles.cos(), angles.sin()], -1)
