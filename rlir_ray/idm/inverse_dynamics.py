"""Inverse dynamics models: frames in, the action leading into each frame out.

`InverseDynamicsModel` is the published VPT network at any size. Legend: B clips, F frames, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rlir_ray.data.files import give_usual_mode
from rlir_ray.idm.vpt_config import NUM_BINS, complete_net
from rlir_ray.idm.vpt_network import Heads, InverseDynamicsNet, Logits
from rlir_ray.models.checkpoints import assign_weights, read_state_dict

if TYPE_CHECKING:
    from rlir_ray.idm.correlation_idm import CorrelationInverseDynamics

# Pixels in one pass of the convolutions: on a CPU bounded by the caches, on a GPU by the memory.
CPU_PIXELS, GPU_PIXELS = 1 << 17, 1 << 22


class InverseDynamicsModel(nn.Module):
    """The VPT inverse dynamics model, built from its published kwargs.

    Args:
        config: `net` (kwargs as published), `pi_head` (temperature) and, optionally, n_camera_bins;
            `VPT_CONFIG` is the published size. Keys that are left out take the published code's defaults.

    Raises:
        ValueError: this class cannot build the network that the config describes.
    """

    def __init__(self, config: dict[str, Any]) -> None:
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
        device = self.pi_head.buttons["linear_layer"].weight.device
        images = resize_frames(frames.to(device), self.height, self.width)
        return self.pi_head(self.net(images, max_frames or frames_at_once(images)))

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
    def from_state(cls, config: dict[str, Any], state: Mapping[str, Tensor]) -> InverseDynamicsModel:
        """Build a model from the given weights, converted to float32, in evaluation mode.

        Raises:
            ValueError: as in `from_pretrained`.
        """
        with torch.device("meta"):  # skips drawing random weights, which `state` would replace
            model = cls(config)
        assign_weights(model, state, "the inverse dynamics model", torch.float32)
        return model.eval()


def frames_at_once(frames: Tensor) -> int:
    """Return how many frames [..., H, W, 3] one pass should read on their device."""
    pixels = CPU_PIXELS if frames.device.type == "cpu" else GPU_PIXELS
    return max(1, pixels // (frames.shape[-3] * frames.shape[-2]))


def resize_frames(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize to uint8 [B, F, height, width, 3] as VPT does: bilinear without antialias, rounded."""
    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or not frames.numel():
        raise ValueError(
            f"frames must be uint8 [B, F, H, W, 3] and not empty, got {frames.dtype} {tuple(frames.shape)}; "
            "round generated frames to uint8 first, as a viewer would get them"
        )
    if frames.shape[2:4] == (height, width):
        return frames
    parts = []
    for part in frames.flatten(0, 1).split(frames_at_once(frames)):
        images = part.movedim(-1, 1).float()
        resized = F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=False)
        parts.append(resized.round().to(torch.uint8).movedim(1, -1))
    return torch.cat(parts).unflatten(0, frames.shape[:2])


# ---------------------------------------------------------------------------------------------------------------------
# Files


def save_model(model: nn.Module, config: dict[str, Any], path: str | Path) -> None:
    """Write config.json and model.safetensors; the weights as float32."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().float().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    give_usual_mode(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load_inverse_dynamics(path: str | Path) -> InverseDynamicsModel | CorrelationInverseDynamics:
    """Load the architecture that the folder's config.json names ("vpt" where it names none)."""
    architecture = json.loads((Path(path) / "config.json").read_text(encoding="utf-8")).get("architecture", "vpt")
    if architecture == "vpt":
        return InverseDynamicsModel.from_pretrained(path)
    if architecture == "correlation":
        from rlir_ray.idm.correlation_idm import CorrelationInverseDynamics

        return CorrelationInverseDynamics.from_pretrained(path)
    raise ValueError(f"architecture must be vpt or correlation, got {architecture!r}; see {path}/config.json")
