"""The VPT inverse dynamics network (arXiv 2206.11795): 3D convolution, IMPALA CNN, unmasked transformer.

Parameters have the published names. Independent of files.

Legend: B clips, F frames, N frames of several clips, C channels, E hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlir_ray.data.files import Json

CNN_OUTSIZE = 256  # fixed in the published code
RELATIVE_BASIS = 10


class NormedLayer(nn.Module):
    """Norm, layer, ReLU; a layer with a norm has no bias. Each row of the initial weight has the norm `scale`."""

    def __init__(self, norm: nn.Module | None, layer: nn.Module, scale: float = 1.0, activation: bool = True) -> None:
        super().__init__()
        if norm is not None:
            self.norm = norm
        self.layer, self.activation = layer, activation
        with torch.no_grad():
            weight = layer.get_parameter("weight")
            weight.mul_(scale / weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.ndim - 1)))
            if layer.bias is not None:
                layer.get_parameter("bias").zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.norm(x) if hasattr(self, "norm") else x)
        return F.relu(x, inplace=True) if self.activation else x


def _conv(inputs: int, outputs: int, scale: float = 1.0, normed: bool = True) -> NormedLayer:
    norm = nn.GroupNorm(1, inputs) if normed else None
    return NormedLayer(norm, nn.Conv2d(inputs, outputs, 3, padding=1, bias=not normed), scale)


def _dense(inputs: int, outputs: int, scale: float = 1.0) -> NormedLayer:
    return NormedLayer(nn.LayerNorm(inputs), nn.Linear(inputs, outputs, bias=False), scale)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.conv0, self.conv1 = _conv(channels, channels, scale**0.5), _conv(channels, channels, scale**0.5)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.conv1(self.conv0(x))
        return x + branch


class DownStack(nn.Module):
    """Convolution, max-pool by 2, norm, two residual blocks."""

    def __init__(self, inputs: int, outputs: int, num_stacks: int, normed: bool) -> None:
        super().__init__()
        self.firstconv = _conv(inputs, outputs, normed=normed)
        self.n = nn.GroupNorm(1, outputs)
        self.blocks = nn.Sequential(*(ResidualBlock(outputs, (num_stacks / 2) ** 0.5) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(self.firstconv(x), kernel_size=3, stride=2, padding=1)
        found: Tensor = self.blocks(self.n(pooled))
        return found


class ImpalaCNN(nn.Module):
    """CNN, [N, C, H, W] -> [N, 256]; `normed` False: no norm before the first convolution, whose input is pixels."""

    def __init__(self, inputs: int, height: int, width: int, channels: Sequence[int], normed: bool) -> None:
        super().__init__()
        sizes = [inputs, *channels]
        pairs = enumerate(zip(sizes, channels, strict=False))
        self.stacks = nn.Sequential(*(DownStack(*pair, len(channels), normed or bool(i)) for i, pair in pairs))
        for _ in channels:
            height, width = (height + 1) // 2, (width + 1) // 2
        self.dense = _dense(channels[-1] * height * width, CNN_OUTSIZE, scale=1.4)

    def forward(self, x: Tensor) -> Tensor:
        # contiguous, because the dense layer's columns have the order C, H, W, whatever the memory format of the input.
        found: Tensor = self.dense(self.stacks(x).contiguous().flatten(1))
        return found


class ImageProcess(nn.Module):
    def __init__(self, cnn: ImpalaCNN, hidden: int) -> None:
        super().__init__()
        self.cnn, self.linear = cnn, _dense(CNN_OUTSIZE, hidden)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.linear(self.cnn(x))
        return found


class Attention(nn.Module):
    """Unmasked self-attention with its residual connection, and muP's scale of 1 / head size.

    `r_layer` and `b_nd` are the published relative positions over a memory of length 0. They do not change the output
    and exist only so that the published weights load.
    """

    def __init__(self, hidden: int, heads: int, scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.q_layer = _scaled_linear(hidden, hidden, 0.1)
        self.k_layer = _scaled_linear(hidden, hidden, 0.2, bias=False)
        self.v_layer = _scaled_linear(hidden, hidden, scale**0.5, bias=False)
        self.proj_layer = _scaled_linear(hidden, hidden, scale**0.5)
        self.r_layer = _scaled_linear(hidden, RELATIVE_BASIS * heads, 0.1).requires_grad_(False)
        self.b_nd = nn.Parameter(torch.zeros(RELATIVE_BASIS, 0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, heads, F, E / heads]
            for layer in (self.q_layer, self.k_layer, self.v_layer)
        )
        mixed = F.scaled_dot_product_attention(queries, keys, values, scale=1 / queries.shape[-1])
        branch: Tensor = self.proj_layer(mixed.transpose(1, 2).flatten(2))
        return x + branch


def _scaled_linear(inputs: int, outputs: int, scale: float, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.mul_(scale / layer.weight.norm(dim=1, keepdim=True))
        if bias:
            layer.bias.zero_()
    return layer


class RecurrentBlock(nn.Module):
    def __init__(self, net: Json) -> None:
        super().__init__()
        hidden, heads, ratio = net["hidsize"], net["attention_heads"], net["pointwise_ratio"]
        scale = (2 * net["n_recurrence_layers"]) ** -0.5
        self.pre_r_ln = nn.LayerNorm(hidden)
        self.r = nn.ModuleDict({"orc_block": Attention(hidden, heads, scale)})
        self.mlp0 = _dense(hidden, ratio * hidden)
        self.mlp1 = NormedLayer(None, nn.Linear(ratio * hidden, hidden), scale, net["pointwise_use_activation"])

    def forward(self, x: Tensor) -> Tensor:
        # As published, the residual connection starts after the norm.
        x = self.r["orc_block"](self.pre_r_ln(x))
        branch: Tensor = self.mlp1(self.mlp0(x))
        return x + branch


def _start_with_differences(conv3d: nn.Module) -> None:
    """Start three quarters of the filters as differences between frames; otherwise still content hides the motion.

    The published code does not do this, because its training is long enough to learn such filters.
    """
    weight, bias = conv3d.get_parameter("weight"), conv3d.get_parameter("bias")  # [C, 3, k, 1, 1]
    still = len(weight) // 4
    with torch.no_grad():
        weight[still:] -= weight[still:].mean(2, keepdim=True)
        weight[still:] *= 4 / weight[still:].flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
        bias[:still] = -0.25 * weight[:still].flatten(1).sum(1)  # 0.25 is about the mean brightness


class InverseDynamicsNet(nn.Module):
    """Network without heads, uint8 frames [B, F, H, W, 3] -> [B, F, E]; `net` comes from `complete_net`."""

    def __init__(self, net: Json) -> None:
        super().__init__()
        conv3d, (height, width, channels), hidden = net["conv3d_params"], net["img_shape"], net["hidsize"]
        if conv3d is not None:
            kernel, padding = tuple(conv3d["kernel_size"]), tuple(conv3d["padding"])
            self.conv3d_layer = NormedLayer(None, nn.Conv3d(3, channels, kernel, padding=padding))
            _start_with_differences(self.conv3d_layer.layer)
        widths = [int(net["impala_width"] * size) for size in net["impala_chans"]]
        self.img_process = ImageProcess(ImpalaCNN(channels, height, width, widths, normed=conv3d is not None), hidden)
        blocks = [RecurrentBlock(net) for _ in range(net["n_recurrence_layers"])]
        self.recurrent_layer = nn.ModuleDict({"blocks": nn.Sequential(*blocks)})
        # The published forward pass ignores the output of lastlayer; the layer exists only so that the weights load.
        self.lastlayer = _dense(hidden, hidden).requires_grad_(False)
        self.final_ln = nn.LayerNorm(hidden)

    def forward(self, frames: Tensor, max_frames: int) -> Tensor:
        num_frames = frames.shape[1]
        rows = []
        for clips in frames.split(max(1, max_frames // num_frames)):
            # Process a clip that is longer than `max_frames` in parts, to bound the memory.
            parts = [self._features(clips, *part) for part in _spans(num_frames, max_frames)]
            rows.append(torch.cat(parts, 1))
        found: Tensor = self.final_ln(F.relu(self.recurrent_layer["blocks"](torch.cat(rows))))
        return found

    def _features(self, clips: Tensor, start: int, stop: int) -> Tensor:
        """Compute the features of the frames from start to stop, [B, stop - start, E]."""
        if not hasattr(self, "conv3d_layer"):
            images = clips[:, start:stop].flatten(0, 1).permute(0, 3, 1, 2).float() / 255  # channels_last memory format
            features: Tensor = self.img_process(images).unflatten(0, (len(clips), -1))
            return features
        layer = self.conv3d_layer.layer
        assert isinstance(layer, nn.Conv3d)
        half = layer.kernel_size[0] // 2
        # Pad with black frames at the ends of the clip, and with real neighbours at the ends of a part.
        seen = clips[:, max(0, start - half) : stop + half]
        missing = (max(0, half - start), max(0, stop + half - clips.shape[1]))
        pixels = F.pad(seen, (0, 0, 0, 0, 0, 0, *missing)).float()
        weight = layer.weight / 255  # for pixels 0..255
        if layer.kernel_size[1:] == (1, 1):
            # A kernel over time only is a 2D convolution over a picture of F rows and H * W columns. Channels are
            # already last in memory, so that no pixel is copied and all clips are one batch.
            picture = pixels.flatten(2, 3).permute(0, 3, 1, 2)
            volume = F.conv2d(picture, weight[..., 0], layer.bias).unflatten(3, pixels.shape[2:4])
        else:
            volume = F.conv3d(pixels.permute(0, 4, 1, 2, 3), weight, layer.bias, padding=(0, *layer.padding[1:]))
        images = F.relu(volume, inplace=True).transpose(1, 2).flatten(0, 1)  # [B * n, C, H, W]
        features = self.img_process(images).unflatten(0, (len(clips), -1))
        return features


def _spans(length: int, longest: int) -> list[tuple[int, int]]:
    """Split 0..length into spans of at most `longest`."""
    return [(start, min(start + longest, length)) for start in range(0, length, longest)]
