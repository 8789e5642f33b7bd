"""Inverse dynamics models, which recover the action that leads into each frame: protocol, readings, files, resizing.

Legend: B clips, F frames, H W pixels, E features of a frame, K classes of a field (of an axis: its bins).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rlir_ray.data.files import Json, give_usual_mode
from rlir_ray.registry import load
from rlir_ray.spaces.fields import ActionField, Axis
from rlir_ray.spaces.layouts import SPACE_KEY
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE

# Pixels that pass through the convolutions at once: on a CPU they fit into its caches, on a GPU into its memory.
CPU_PIXELS, GPU_PIXELS = 1 << 17, 1 << 22


@dataclass(frozen=True)
class Reading:
    """What an inverse dynamics model reads in clips."""

    probabilities: Mapping[str, Tensor]
    """Field -> float32 [B, F, K], on the model's device; sums to 1 over the classes."""
    classes: Mapping[str, Tensor]
    """Field -> int64 [B, F], on the CPU."""


class InverseDynamics(Protocol):
    """Member of the axis `idms`: a torch module whose class also has `from_pretrained(folder)`."""

    @property
    def space(self) -> ActionSpace:
        """The space of the actions that the model recovers."""

    def read(self, frames: Tensor, names: Sequence[str]) -> Reading:
        """Read some fields of `space` in frames uint8 [B, F, H, W, 3] of any size; index k leads into frame k.

        Raises:
            ValueError: the space has no field of a name.
        """

    def to(self, device: torch.device | str, /) -> Self:
        """As `nn.Module.to`."""


@runtime_checkable
class FrameReader(Protocol):
    """An inverse dynamics model that also gives what its heads read; `InverseDynamicsModel` is one."""

    def frame_features(self, frames: Tensor) -> Tensor:
        """Compute the features of frames uint8 [B, F, H, W, 3] of any size, float [B, F, E] on the model's device."""

    def to(self, device: torch.device | str, /) -> Self:
        """As `nn.Module.to`."""


def stack_classes(reading: Reading, names: Sequence[str]) -> Tensor:
    """Return the classes of fields as columns, int64 [B, F, len(names)]."""
    return torch.stack([reading.classes[name] for name in names], -1)


def axis_values(probabilities: Tensor, axis: Axis) -> Tensor:
    """Return the expected value over an axis's bins, [..., K] to float32 [...] in the unit of the axis."""
    centres = torch.from_numpy(axis.centres(np.arange(axis.num_classes))).to(probabilities.device, torch.float32)
    return probabilities.float() @ centres


def one_hot_classes(classes: Tensor, fields: Sequence[ActionField]) -> dict[str, Tensor]:
    """Encode classes int [..., len(fields)] one-hot: field -> float32 [..., K]."""
    return {
        field.name: F.one_hot(classes[..., column].long(), field.num_classes).float()
        for column, field in enumerate(fields)
    }


# ---------------------------------------------------------------------------------------------------------------------
# Frames


def frames_at_once(frames: Tensor) -> int:
    """Return the number of frames [..., H, W, 3] to process together on their device."""
    pixels = CPU_PIXELS if frames.device.type == "cpu" else GPU_PIXELS
    return max(1, pixels // (frames.shape[-3] * frames.shape[-2]))


def resize_frames(frames: Tensor, height: int, width: int) -> Tensor:
    """Resize uint8 [B, F, H, W, 3] to [B, F, height, width, 3] as VPT does: bilinear without antialiasing, rounded."""
    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or not frames.numel():
        raise ValueError(
            f"frames must be uint8 [B, F, H, W, 3] and not empty, got {frames.dtype} {tuple(frames.shape)}; "
            "convert generated frames to uint8 first"
        )
    if frames.shape[2:4] == (height, width):
        return frames
    parts = []
    for part in frames.flatten(0, 1).split(frames_at_once(frames)):
        images = part.movedim(-1, 1).float()
        resized = F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=False)
        parts.append(resized.round().to(torch.uint8).movedim(1, -1))
    resized_frames: Tensor = torch.cat(parts).unflatten(0, frames.shape[:2])
    return resized_frames


# ---------------------------------------------------------------------------------------------------------------------
# Files


def architecture_of(settings: Json) -> str:
    """Return the architecture that a config.json names; empty: the checkpoint is no inverse dynamics model."""
    return str(settings.get("architecture", "vpt" if "net" in settings else ""))


def load_inverse_dynamics(path: str | Path) -> InverseDynamics:
    """Open a checkpoint with the architecture that its config.json names: an `InverseDynamics` and `nn.Module`.

    Raises:
        ValueError: there is no such checkpoint, the architecture is unknown or cannot be imported, or the weights do
            not fit.
    """
    try:
        settings = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = "no such folder" if not Path(path).is_dir() else f"{type(error).__name__} in it"
        raise ValueError(
            f"an inverse dynamics model must be a folder with a readable config.json, got {path} ({found}); check the "
            "path"
        ) from None
    if not architecture_of(settings):
        raise ValueError(
            f"an inverse dynamics model's config.json must name its architecture, got none in {path}; give the folder "
            "of `pretrain idm` or `convert vpt-idm`"
        )
    try:
        member = load("idms", architecture_of(settings))
    except ValueError as error:
        raise ValueError(f"{error}; see {path}/config.json") from error
    model: InverseDynamics = member.from_pretrained(path)
    return model


def load_frame_reader(path: str | Path) -> FrameReader:
    """Open a checkpoint as `load_inverse_dynamics` does, for its features.

    Raises:
        ValueError: see `load_inverse_dynamics`, or the model's class gives no features.
    """
    model = load_inverse_dynamics(path)
    if not isinstance(model, FrameReader):
        raise ValueError(
            f"features need an inverse dynamics model with the method frame_features, got {type(model).__name__} in "
            f"{path}; add the method to the class, or give a model of `pretrain idm`"
        )
    return model


def space_of(settings: Json) -> ActionSpace:
    """Return the action space that a config.json holds; without one, VPT's.

    Raises:
        ValueError: the config.json holds another content as the space.
    """
    return ActionSpace.from_plain(settings[SPACE_KEY]) if SPACE_KEY in settings else VPT_SPACE


def with_space(settings: Json, space: ActionSpace) -> Json:
    """Return settings from which `space_of` reads the space; VPT's space needs no entry."""
    return settings if space == VPT_SPACE else {**settings, SPACE_KEY: space.to_plain()}


def save_model(model: nn.Module, config: Json, path: str | Path) -> None:
    """Write config.json and model.safetensors, with weights in float32."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().float().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    give_usual_mode(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
