"""The published VPT inverse dynamics network at any size. Legend: B clips, F frames, H W pixels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rlir_ray.data.files import Json
from rlir_ray.idm.base import frames_at_once, resize_frames, save_model
from rlir_ray.idm.vpt_config import NUM_BINS, complete_net
from rlir_ray.idm.vpt_network import Heads, InverseDynamicsNet, Logits
from rlir_ray.models.checkpoints import assign_weights, read_state_dict


class InverseDynamicsModel(nn.Module):
    """The VPT inverse dynamics model, built from its published kwargs.

    Args:
        config: `net` (kwargs as published), `pi_head` (temperature) and, optionally, n_camera_bins;
            `VPT_CONFIG` is the published size. Keys that are left out take the published code's defaults.

    Raises:
        ValueError: this class cannot build the network that the config describes.
    """

    def __init__(self, config: Json) -> None:
        super().__init__()
        self.config = {"architecture": "vpt", **config}
        if config.get("n_camera_bins", NUM_BINS) != NUM_BINS:
            raise ValueError(f"n_camera_bins must be {NUM_BINS}, got {config['n_camera_bins']}; set it to {NUM_BINS}")
        net = complete_net(config["net"])
        self.height, self.width = net["img_shape"][:2]
        self.net = InverseDynamicsNet(net)
        self.pi_head = Heads(net["hidsize"], float(config["pi_head"]["temperature"]))

    def logits(self, frames: Tensor, max_frames: int | None = None) -> Logits:
        """Read the actions of clips of any length.

        Args:
            frames: uint8 [B, F, H, W, 3] RGB on any device; of another size than `img_shape` they are resized first.
            max_frames: frames that pass through the convolutions at once, which bounds the memory; None: by device.

        Returns:
            buttons float32 [B, F, 20, 2] and camera [B, F, 2, 11], normalised to log-probabilities as published;
            index k is the action leading INTO frame k.
        """
        device = self.pi_head.buttons["linear_layer"].get_parameter("weight").device
        images = resize_frames(frames.to(device), self.height, self.width)
        found: Logits = self.pi_head(self.net(images, max_frames or frames_at_once(images)))
        return found

    def save_pretrained(self, path: str | Path) -> None:
        """Write config.json and model.safetensors into the folder `path`."""
        save_model(self, self.config, path)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> InverseDynamicsModel:
        """Read a folder written by `save_pretrained`, or any with config.json and model.safetensors.

        Raises:
            ValueError: the config describes another network, or the weights do not fit it; all keys are named.
        """
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        return cls.from_state(config, read_state_dict(Path(path) / "model.safetensors"))

    @classmethod
    def from_state(cls, config: Json, state: Mapping[str, Tensor]) -> InverseDynamicsModel:
        """Build a model from the given weights, converted to float32, in evaluation mode.

        Raises:
            ValueError: as in `from_pretrained`.
        """
        with torch.device("meta"):  # skips drawing random weights, which `state` would replace
            model = cls(config)
        assign_weights(model, state, "the inverse dynamics model", torch.float32)
        return model.eval()
