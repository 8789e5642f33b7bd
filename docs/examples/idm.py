"""An inverse dynamics model of one's own: linear heads on the difference of neighbouring frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlir_ray.idm.base import Reading, resize_frames, save_model, space_of, with_space
from rlir_ray.idm.heads import FieldHeads
from rlir_ray.models.checkpoints import assign_weights, read_state_dict
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE

GRID = (6, 8)


class FrameDifference(nn.Module):
    def __init__(self, height: int, width: int, space: ActionSpace = VPT_SPACE) -> None:
        super().__init__()
        self.space = space
        # A checkpoint names its class: whoever opens it needs this module on the path.
        config = {"architecture": f"{__name__}:FrameDifference", "height": height, "width": width}
        self.config = with_space(config, space)
        self.heads = FieldHeads(space, hidden=3 * GRID[0] * GRID[1], temperature=1.0)

    def logits(self, frames: Tensor) -> dict[str, Tensor]:
        """uint8 [B, F, H, W, 3] to log-probabilities of each field's classes; index k leads into frame k."""
        frames = resize_frames(frames.to(self.heads.linear_layer.weight.device), *self.size)
        pictures = frames.flatten(0, 1).movedim(-1, 1).float() / 255  # [B * F, 3, H, W]
        cells = F.adaptive_avg_pool2d(pictures, GRID).flatten(1).unflatten(0, frames.shape[:2])
        return self.heads(cells.diff(dim=1, prepend=cells[:, :1]))  # the first frame shows no action

    def read(self, frames: Tensor, names: Sequence[str]) -> Reading:
        """Read some fields of `space`."""
        return self.heads.read(self.logits(frames), names)

    @property
    def size(self) -> tuple[int, int]:
        return self.config["height"], self.config["width"]

    def save_pretrained(self, path: str | Path) -> None:
        save_model(self, self.config, path)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> FrameDifference:
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        model = cls(config["height"], config["width"], space_of(config))
        state = read_state_dict(Path(path) / "model.safetensors")
        assign_weights(model, state, "the inverse dynamics model", torch.float32)
        return model.eval()
