"""Inverse dynamics models: frames in, the action leading into each frame out.

`InverseDynamicsModel` is the published VPT network (arXiv 2206.11795), parameter names included, at any size.
Legend: B clips, F frames, C channels, E hidden width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rlir_ray.actions import JUDGED_BUTTONS, VPT_CAMERA

if TYPE_CHECKING:
    from rlir_ray.models.correlation import CorrelationInverseDynamics

Logits = dict[str, Tensor]
NUM_BUTTONS, NUM_BINS = len(JUDGED_BUTTONS), VPT_CAMERA.num_bins
CNN_OUTSIZE = 256  # of the published network, whatever its other sizes
RELATIVE_BASIS = 10
# Frames that pass through the convolutions at once: bounds the memory of a large batch of clips.
MAX_FRAMES = 1024

# The published sizes (4x_idm.model).
VPT_CONFIG: dict[str, Any] = {
    "net": {
        "attention_heads": 32, "attention_mask_style": "none", "attention_memory_size": 128, "timesteps": 128,
        "conv3d_params": {"inchan": 3, "outchan": 128, "kernel_size": [5, 1, 1], "padding": [2, 0, 0]},
        "hidsize": 4096, "img_shape": [128, 128, 128], "impala_chans": [16, 32, 32], "impala_width": 16,
        "impala_kwargs": {"post_pool_groups": 1},
        "init_norm_kwargs": {"batch_norm": False, "group_norm_groups": 1}, "n_recurrence_layers": 2,
        "only_img_input": True, "pointwise_ratio": 4, "pointwise_use_activation": False,
        "recurrence_is_residual": True, "recurrence_type": "transformer", "single_output": True,
        "use_pointwise_layer": True, "use_pre_lstm_ln": False,
    },
    "pi_head": {"temperature": 2.0},
    "n_camera_bins": 11,
}  # fmt: skip

# What this network computes; a config that says otherwise describes another network.
FIXED = {
    "attention_mask_style": "none", "impala_kwargs": {"post_pool_groups": 1}, "only_img_input": True,
    "init_norm_kwargs": {"batch_norm": False, "group_norm_groups": 1}, "pointwise_use_activation": False,
    "recurrence_is_residual": True, "recurrence_type": "transformer", "single_output": True,
    "use_pointwise_layer": True, "use_pre_lstm_ln": False,
}  # fmt: skip


class NormedLayer(nn.Module):
    """Norm, then the layer, then ReLU; a layer with a norm has no bias. Rows start at length `scale`."""

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
        return F.relu(x) if self.activation else x


def _conv(inputs: int, outputs: int, scale: float = 1.0) -> NormedLayer:
    return NormedLayer(nn.GroupNorm(1, inputs), nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), scale)


def _dense(inputs: int, outputs: int, scale: float = 1.0) -> NormedLayer:
    return NormedLayer(nn.LayerNorm(inputs), nn.Linear(inputs, outputs, bias=False), scale)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.conv0, self.conv1 = _conv(channels, channels, scale**0.5), _conv(channels, channels, scale**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv1(self.conv0(x))


class DownStack(nn.Module):
    """Convolution, max-pool by 2, norm, two residual blocks."""

    def __init__(self, inputs: int, outputs: int, num_stacks: int) -> None:
        super().__init__()
        self.firstconv = _conv(inputs, outputs)
        self.n = nn.GroupNorm(1, outputs)
        self.blocks = nn.Sequential(*(ResidualBlock(outputs, (num_stacks / 2) ** 0.5) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(self.firstconv(x), kernel_size=3, stride=2, padding=1)
        return self.blocks(self.n(pooled))


class ImpalaCNN(nn.Module):
    """[N, C, H, W] -> [N, 256]."""

    def __init__(self, inputs: int, height: int, width: int, channels: Sequence[int]) -> None:
        super().__init__()
        sizes = [inputs, *channels]
        self.stacks = nn.Sequential(*(DownStack(a, b, len(channels)) for a, b in zip(sizes, channels, strict=False)))
        for _ in channels:
            height, width = (height + 1) // 2, (width + 1) // 2
        self.dense = _dense(channels[-1] * height * width, CNN_OUTSIZE, scale=1.4)

    def forward(self, x: Tensor) -> Tensor:
        # contiguous: the dense layer's columns run over C, H, W in this order whatever the memory format.
        return self.dense(self.stacks(x).contiguous().flatten(1))


class ImageProcess(nn.Module):
    def __init__(self, cnn: ImpalaCNN, hidden: int) -> None:
        super().__init__()
        self.cnn, self.linear = cnn, _dense(CNN_OUTSIZE, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.cnn(x))


class Attention(nn.Module):
    """Unmasked self-attention with its residual inside and muP's scale of 1 / head size.

    `r_layer` and `b_nd` are the published relative positions over a memory of length 0: they add nothing to the
    logits and are held so that the published weights load.
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
        return x + self.proj_layer(mixed.transpose(1, 2).flatten(2))


def _scaled_linear(inputs: int, outputs: int, scale: float, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        layer.weight.mul_(scale / layer.weight.norm(dim=1, keepdim=True))
        if bias:
            layer.bias.zero_()
    return layer


class RecurrentBlock(nn.Module):
    def __init__(self, hidden: int, heads: int, ratio: int, num_blocks: int) -> None:
        super().__init__()
        scale = (2 * num_blocks) ** -0.5
        self.pre_r_ln = nn.LayerNorm(hidden)
        self.r = nn.ModuleDict({"orc_block": Attention(hidden, heads, scale)})
        self.mlp0 = _dense(hidden, ratio * hidden)
        self.mlp1 = NormedLayer(None, nn.Linear(ratio * hidden, hidden), scale, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        # The published residual starts behind the norm.
        x = self.r["orc_block"](self.pre_r_ln(x))
        return x + self.mlp1(self.mlp0(x))


def _start_with_differences(conv3d: nn.Module) -> None:
    """Three quarters of the filters begin as differences between frames, lest still pictures drown the motion.

    Not in the published code: there, training is long enough to find them.
    """
    weight, bias = conv3d.get_parameter("weight"), conv3d.get_parameter("bias")  # [C, 3, k, 1, 1]
    still = len(weight) // 4
    with torch.no_grad():
        weight[still:] -= weight[still:].mean(2, keepdim=True)
        weight[still:] *= 4 / weight[still:].flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
        bias[:still] = -0.25 * weight[:still].flatten(1).sum(1)  # a quarter is about the mean brightness


class InverseDynamicsNet(nn.Module):
    """float frames 0..1 [B, F, H, W, 3] -> [B, F, E]."""

    def __init__(self, net: dict[str, Any]) -> None:
        super().__init__()
        conv3d, (height, width, channels) = net["conv3d_params"], net["img_shape"]
        taps, hidden = conv3d["kernel_size"][0], net["hidsize"]
        if conv3d["outchan"] != channels or conv3d["kernel_size"][1:] != [1, 1] or conv3d["padding"][0] != taps // 2:
            raise ValueError(
                "conv3d_params must have a kernel [k, 1, 1], padding [k // 2, 0, 0] and outchan equal to img_shape[2], "
                f"got {conv3d} and img_shape {net['img_shape']}; take the published kwargs"
            )
        self.conv3d_layer = NormedLayer(None, nn.Conv3d(3, channels, (taps, 1, 1)))
        _start_with_differences(self.conv3d_layer.layer)
        widths = [int(net["impala_width"] * size) for size in net["impala_chans"]]
        self.img_process = ImageProcess(ImpalaCNN(channels, height, width, widths), hidden)
        num_blocks = net["n_recurrence_layers"]
        blocks = [
            RecurrentBlock(hidden, net["attention_heads"], net["pointwise_ratio"], num_blocks)
            for _ in range(num_blocks)
        ]
        self.recurrent_layer = nn.ModuleDict({"blocks": nn.Sequential(*blocks)})
        # The published forward evaluates lastlayer and drops the result: here for the file's sake only.
        self.lastlayer = _dense(hidden, hidden).requires_grad_(False)
        self.final_ln = nn.LayerNorm(hidden)

    def forward(self, frames: Tensor, max_frames: int) -> Tensor:
        layer = self.conv3d_layer.layer
        taps = layer.kernel_size[0]
        # A (k, 1, 1) convolution is a 1x1 convolution over k frames' channels: the same sums, channels last throughout.
        kernel = layer.weight[..., 0, 0].transpose(1, 2).flatten(1)[..., None, None]  # [C, k * 3, 1, 1]
        padded = F.pad(frames, (0, 0, 0, 0, 0, 0, taps // 2, taps // 2))
        num_clips = max(1, max_frames // frames.shape[1])
        features = []
        for clips in padded.split(num_clips):
            stacked = clips.unfold(1, taps, 1).movedim(-1, -2).flatten(-2).flatten(0, 1)  # [N, H, W, k * 3]
            images = stacked.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
            features.append(self.img_process(F.relu(F.conv2d(images, kernel, layer.bias))))
        x = torch.cat(features).unflatten(0, frames.shape[:2])
        return self.final_ln(F.relu(self.recurrent_layer["blocks"](x)))


class Heads(nn.Module):
    """[B, F, E] -> logits of 20 buttons x 2 and 2 camera axes x 11 bins: over the temperature, then log-softmax."""

    def __init__(self, hidden: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.buttons = nn.ModuleDict({"linear_layer": nn.Linear(hidden, NUM_BUTTONS * 2)})
        self.camera = nn.ModuleDict({"linear_layer": nn.Linear(hidden, 2 * NUM_BINS)})

    def forward(self, x: Tensor) -> Logits:
        buttons = self.buttons["linear_layer"](x).unflatten(-1, (NUM_BUTTONS, 2)).float()
        camera = self.camera["linear_layer"](x).unflatten(-1, (2, NUM_BINS)).float()
        return {
            "buttons": (buttons / self.temperature).log_softmax(-1),
            "camera": (camera / self.temperature).log_softmax(-1),
        }


class InverseDynamicsModel(nn.Module):
    """The VPT inverse dynamics model, built from its published kwargs.

    Args:
        config: `net` (kwargs as published), `pi_head` (temperature) and, optionally, n_camera_bins;
            `VPT_CONFIG` is the published size. Height and width of `img_shape` may differ.

    Raises:
        ValueError: the config describes a network that this class is not.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = {"architecture": "vpt", **config}
        net = config["net"]
        for key, value in FIXED.items():
            if net.get(key, value) != value:
                raise ValueError(f"net.{key} must be {value}, got {net[key]}; only the published IDM form is built")
        if net["attention_memory_size"] != net["timesteps"]:
            raise ValueError(
                "net.attention_memory_size must equal net.timesteps (no memory between windows), got "
                f"{net['attention_memory_size']} and {net['timesteps']}; take the published kwargs"
            )
        if config.get("n_camera_bins", NUM_BINS) != NUM_BINS:
            raise ValueError(f"n_camera_bins must be {NUM_BINS}, got {config['n_camera_bins']}; set it to {NUM_BINS}")
        self.net = InverseDynamicsNet(net)
        self.pi_head = Heads(net["hidsize"], config["pi_head"]["temperature"])

    def logits(self, frames: Tensor, max_frames: int = MAX_FRAMES) -> Logits:
        """Reads the actions of clips of any length.

        Args:
            frames: uint8 [B, F, H, W, 3] RGB; of another size than `img_shape` they are resized first.
            max_frames: frames that pass through the convolutions at once (whole clips, at least one).

        Returns:
            buttons float32 [B, F, 20, 2] and camera [B, F, 2, 11], normalised to log-probabilities as published;
            index k is the action leading INTO frame k.
        """
        height, width = self.config["net"]["img_shape"][:2]
        images = resize_frames(frames, height, width)
        return self.pi_head(self.net(images.float() / 255, max_frames))

    def save_pretrained(self, path: str | Path) -> None:
        """Writes config.json and model.safetensors into the folder `path`."""
        save_model(self, self.config, path)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> InverseDynamicsModel:
        """Reads a folder written by `save_pretrained`, or any with config.json and model.safetensors."""
        model = cls(json.loads((Path(path) / "config.json").read_text()))
        load_weights(model, path)
        return model.eval()


def small_vpt_config(height: int = 48, width: int = 64) -> dict[str, Any]:
    """A VPT-form config of about 2 M parameters for small worlds, with temperature 1 (soft rewards read it)."""
    net = {
        **VPT_CONFIG["net"], "attention_heads": 4, "attention_memory_size": 16, "timesteps": 16, "hidsize": 256,
        "conv3d_params": {"inchan": 3, "outchan": 16, "kernel_size": [5, 1, 1], "padding": [2, 0, 0]},
        "img_shape": [height, width, 16], "impala_chans": [16, 32, 32], "impala_width": 1,
    }  # fmt: skip
    return {"net": net, "pi_head": {"temperature": 1.0}, "n_camera_bins": NUM_BINS}


def resize_frames(frames: Tensor, height: int, width: int) -> Tensor:
    """uint8 [B, F, H, W, 3] -> uint8 [B, F, height, width, 3], bilinear without antialias, rounded, as VPT resizes."""
    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
        raise ValueError(
            f"frames must be uint8 [B, F, H, W, 3], got {frames.dtype} {tuple(frames.shape)}; "
            "round generated frames to uint8 first, as a viewer would get them"
        )
    if frames.shape[2:4] == (height, width):
        return frames
    images = frames.flatten(0, 1).movedim(-1, 1).float()
    resized = F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=False)
    return resized.round().to(torch.uint8).movedim(1, -1).unflatten(0, frames.shape[:2])


# ---------------------------------------------------------------------------------------------------------------------
# Files


def save_model(model: nn.Module, config: dict[str, Any], path: str | Path) -> None:
    """Writes config.json and model.safetensors; the weights as float32."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().float().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def load_weights(model: nn.Module, path: str | Path) -> None:
    weights = load_file(Path(path) / "model.safetensors")
    model.load_state_dict({name: value.float() for name, value in weights.items()})


def load_inverse_dynamics(path: str | Path) -> InverseDynamicsModel | CorrelationInverseDynamics:
    """Loads the architecture that the folder's config.json names ("vpt" where it names none)."""
    architecture = json.loads((Path(path) / "config.json").read_text()).get("architecture", "vpt")
    if architecture == "vpt":
        return InverseDynamicsModel.from_pretrained(path)
    if architecture == "correlation":
        from rlir_ray.models.correlation import CorrelationInverseDynamics

        return CorrelationInverseDynamics.from_pretrained(path)
    raise ValueError(f"architecture must be vpt or correlation, got {architecture!r}; see {path}/config.json")
