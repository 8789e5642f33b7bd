"""An inverse dynamics model of one's own: linear heads on the difference of neighbouring frames."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlir_ray.idm.base import resize_frames, save_model
from rlir_ray.models.checkpoints import assign_weights, read_state_dict

GRID = (6, 8)


class FrameDifference(nn.Module):
    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        # A checkpoint names its class: whoever opens it needs this module on the path.
        self.config = {"architecture": f"{__name__}:FrameDifference", "height": height, "width": width}
        self.buttons = nn.Linear(3 * GRID[0] * GRID[1], 20 * 2)
        self.camera = nn.Linear(3 * GRID[0] * GRID[1], 2 * 11)

    def logits(self, frames: Tensor) -> dict[str, Tensor]:
        """uint8 [B, F, H, W, 3] to buttons [B, F, 20, 2] and camera [B, F, 2, 11]; index k leads into frame k."""
        frames = resize_frames(frames.to(self.buttons.weight.device), self.config["height"], self.config["width"])
        pictures = frames.flatten(0, 1).movedim(-1, 1).float() / 255  # [B * F, 3, H, W]
        cells = F.adaptive_avg_pool2d(pictures, GRID).flatten(1).unflatten(0, frames.shape[:2])
        change = cells.diff(dim=1, prepend=cells[:, :1])  # the first frame shows no action
        buttons, camera = self.buttons(change), self.camera(change)
        return {"buttons": buttons.unflatten(-1, (20, 2)), "camera": camera.unflatten(-1, (2, 11))}

    def save_pretrained(self, path: str | Path) -> None:
        save_model(self, self.config, path)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> FrameDifference:
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        model = cls(config["height"], config["width"])
        state = read_state_dict(Path(path) / "model.safetensors")
        assign_weights(model, state, "the inverse dynamics model", torch.float32)
        return model.eval()
