"""VPT's inverse dynamics model at any size and for any action space, and OpenAI's published files of it.

The published files are `4x_idm.model` and `4x_idm.weights`.
Legend: B clips, F frames, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from rlir_ray.data.files import Json
from rlir_ray.idm.base import frames_at_once, resize_frames, space_of, with_space
from rlir_ray.idm.model import DEFAULT_SIZES, InverseDynamicsModel, NetworkSizes, build_heads, working_size
from rlir_ray.idm.vpt_config import complete_net, small_vpt_config
from rlir_ray.idm.vpt_heads import NUM_BINS
from rlir_ray.idm.vpt_network import InverseDynamicsNet
from rlir_ray.models.checkpoints import assign_weights, read_plain_pickle, read_state_dict
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE


class VptInverseDynamics(InverseDynamicsModel):
    """The VPT inverse dynamics model, built from its published kwargs.

    Args:
        config: `net` (kwargs as published), `pi_head` (temperature) and, optionally, n_camera_bins and action_space;
            `VPT_CONFIG` is the published size. Missing keys get the published code's defaults. With another action
            space than VPT's, the heads are `FieldHeads`.

    Raises:
        ValueError: this class cannot build the network of the config.
    """

    def __init__(self, config: Json) -> None:
        super().__init__({"architecture": "vpt", **config})
        if config.get("n_camera_bins", NUM_BINS) != NUM_BINS:
            raise ValueError(f"n_camera_bins must be {NUM_BINS}, got {config['n_camera_bins']}; set it to {NUM_BINS}")
        net = complete_net(config["net"])
        self.size = net["img_shape"][0], net["img_shape"][1]
        self.net = InverseDynamicsNet(net)
        self.pi_head = build_heads(space_of(config), net["hidsize"], float(config["pi_head"]["temperature"]))

    @classmethod
    def small(cls, space: ActionSpace, height: int, width: int, sizes: NetworkSizes = DEFAULT_SIZES) -> Self:
        height, width = working_size(height, width)
        config = with_space(small_vpt_config(height, width), space)
        if space != VPT_SPACE:
            del config["n_camera_bins"]
        channels = sizes.convolution_width * config["net"]["img_shape"][2]
        config["net"] |= {
            "hidsize": sizes.hidden_size,
            "n_recurrence_layers": sizes.num_layers,
            "attention_heads": sizes.num_heads,
            "impala_width": sizes.convolution_width,
            "img_shape": [height, width, channels],
            "conv3d_params": {**config["net"]["conv3d_params"], "outchan": channels},
        }
        return cls(config)

    def frame_features(self, frames: Tensor, max_frames: int | None = None) -> Tensor:
        images = resize_frames(frames.to(self.device), *self.size)
        found: Tensor = self.net(images, max_frames or frames_at_once(images))
        return found

    @classmethod
    def from_state(cls, config: Json, state: Mapping[str, Tensor]) -> Self:
        with torch.device("meta"):  # skips drawing random weights, which `state` would replace
            model = cls(config)
        assign_weights(model, state, "the inverse dynamics model", torch.float32)
        return model.eval()


# ---------------------------------------------------------------------------------------------------------------------
# Published files


def load_vpt(weights: Path | str, *, model: Path | str = "", config: Path | str = "") -> VptInverseDynamics:
    """Load the published model, in evaluation mode on the CPU.

    Args:
        weights: the `.weights` file, or the same tensors as safetensors.
        model: the `.model` file of these weights.
        config: a JSON file with the same kwargs: `{"net": {...}, "pi_head": {"temperature": ...}}`. Give exactly one of
            `model` and `config`.

    Raises:
        ValueError: both or neither of `model` and `config` are given, a file has another format, or the weights do not
            fit.
    """
    if bool(model) == bool(config):
        raise ValueError("a VPT model needs its .model file or a config, got both or neither; give exactly one")
    settings = read_kwargs(model) if model else read_config(config)
    return VptInverseDynamics.from_state(settings, read_state_dict(weights))


def read_kwargs(path: Path | str) -> Json:
    """Return the config that a published `.model` file describes.

    Raises:
        ValueError: the file is no pickle of plain values, or has another layout than the published file.
    """
    return _layout(read_plain_pickle(path), path)


def read_config(path: Path | str) -> Json:
    """Read the config from a JSON file: the config of this class, or the content of a `.model` file as JSON.

    Raises:
        ValueError: the file does not exist, is no JSON, or has neither layout.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"a VPT config must be a readable JSON file, got {error}; check the path") from None
    return content if isinstance(content, dict) and "net" in content else _layout(content, path)


# Any: parsed from a file of another program; what it lacks is an error in here.
def _layout(content: Any, path: Path | str) -> Json:
    try:
        arguments = content["model"]["args"]
        net, head = arguments["net"]["args"], arguments["pi_head_opts"]
        temperature = float(head["temperature"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} must hold model.args.net.args and model.args.pi_head_opts.temperature, got no {error}; give the "
            "file that belongs to the inverse dynamics model's weights"
        ) from None
    # Convert to JSON's types (tuples become lists), so that a saved config reads back the same.
    layout: Json = json.loads(
        json.dumps({"net": net, "pi_head": {"temperature": temperature}, "n_camera_bins": NUM_BINS})
    )
    return layout
