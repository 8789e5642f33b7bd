"""Inverse dynamics models, which recover the action that leads into each frame: protocol, loading, saving, resizing.

Legend: B clips, F frames, H W pixels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rlir_ray.data.files import Json, give_usual_mode
from rlir_ray.registry import load

# Pixels that pass through the convolutions at once: on a CPU they fit into its caches, on a GPU into its memory.
CPU_PIXELS, GPU_PIXELS = 1 << 17, 1 << 22


class InverseDynamics(Protocol):
    """Member of the axis `idms`: a torch module whose class also has `from_pretrained(folder)`."""

    def logits(self, frames: Tensor) -> dict[str, Tensor]:
        """Map uint8 [B, F, H, W, 3] to buttons [B, F, 20, 2] and camera [B, F, 2, 11]; index k leads into frame k."""

    def to(self, device: torch.device | str, /) -> Self:
        """As `nn.Module.to`."""


def architecture_of(settings: Json) -> str:
    """Return the architecture that a config.json names; empty: the checkpoint is no inverse dynamics model."""
    return str(settings.get("architecture", "vpt" if "net" in settings else ""))


def load_inverse_dynamics(path: str | Path) -> InverseDynamics:
    """Open a checkpoint with the architecture that its config.json names: an `InverseDynamics` and `nn.Module`.

    Raises:
        ValueError: the architecture is unknown or cannot be imported, or the weights do not fit.
    """
    settings = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    try:
        member = load("idms", architecture_of(settings) or "vpt")
    except ValueError as error:
        raise ValueError(f"{error}; see {path}/config.json") from error
    model: InverseDynamics = member.from_pretrained(path)
    return model


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


def save_model(model: nn.Module, config: Json, path: str | Path) -> None:
    """Write config.json and model.safetensors, with weights in float32."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().float().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    give_usual_mode(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
