"""What all inverse dynamics models share: the size of their frames and their files. Knows no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rlir_ray.data.files import give_usual_mode

# Pixels that pass through the convolutions at once: on a CPU as many as its caches hold, on a GPU as its memory bears.
CPU_PIXELS, GPU_PIXELS = 1 << 17, 1 << 22


def frames_at_once(frames: Tensor) -> int:
    """How many frames [..., H, W, 3] are best read together on their device."""
    pixels = CPU_PIXELS if frames.device.type == "cpu" else GPU_PIXELS
    return max(1, pixels // (frames.shape[-3] * frames.shape[-2]))


def resize_frames(frames: Tensor, height: int, width: int) -> Tensor:
    """uint8 [B, F, H, W, 3] -> uint8 [B, F, height, width, 3], bilinear without antialias, rounded, as VPT resizes."""
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


def save_model(model: nn.Module, config: dict[str, Any], path: str | Path) -> None:
    """Writes config.json and model.safetensors; the weights as float32."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().float().cpu().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    give_usual_mode(folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
