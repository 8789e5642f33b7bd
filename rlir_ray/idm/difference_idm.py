"""An inverse dynamics model on pairs of frames: both frames and their difference through plain convolutions.

For worlds of few small objects on a plain background. The convolutions have no normalisation, so that a plain
background does not hide the few pixels that change.
Legend: B clips, F frames, E width.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from rlir_ray.data.files import Json
from rlir_ray.idm.base import frames_at_once, resize_frames, space_of, with_space
from rlir_ray.idm.correlation_idm import TemporalBlock
from rlir_ray.idm.heads import Logits
from rlir_ray.idm.model import InverseDynamicsModel, build_heads, working_size
from rlir_ray.spaces.space import ActionSpace

STRIDE = 8


class DifferenceInverseDynamics(InverseDynamicsModel):
    """Convolutions over a frame, the previous frame and their difference, convolutions over time, and heads.

    Args:
        config: img_shape [H, W] (multiples of 8), channels (of the first convolution), hidden, num_temporal_blocks,
            temperature and, optionally, action_space.
    """

    def __init__(self, config: Json) -> None:
        super().__init__({"architecture": "difference", **config})
        height, width = self.size = config["img_shape"][0], config["img_shape"][1]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"img_shape must be multiples of {STRIDE}, got {config['img_shape']}; resize the frames")
        channels, hidden = config["channels"], config["hidden"]
        self.trunk = nn.Sequential(
            nn.Conv2d(9, channels, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(channels, 3 * channels // 2, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(3 * channels // 2, 2 * channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * channels * (height // STRIDE) * (width // STRIDE), hidden),
        )
        self.temporal = nn.Sequential(*(TemporalBlock(hidden) for _ in range(config["num_temporal_blocks"])))
        self.norm = nn.LayerNorm(hidden)
        self.pi_head = build_heads(space_of(config), hidden, config["temperature"])

    @classmethod
    def small(
        cls,
        space: ActionSpace,
        height: int,
        width: int,
        *,
        hidden_size: int = 256,
        num_layers: int = 2,
        num_heads: int = 4,
        convolution_width: int = 1,
    ) -> Self:
        config = {
            "img_shape": list(working_size(height, width, STRIDE)),
            "channels": 32 * convolution_width,
            "hidden": hidden_size,
            "num_temporal_blocks": num_layers,
            "temperature": 1.0,
        }
        return cls(with_space(config, space))

    def logits(self, frames: Tensor, max_frames: int | None = None) -> Logits:
        images = resize_frames(frames.to(self.device), *self.size)
        at_once = max(1, (max_frames or frames_at_once(images)) // images.shape[1])
        x = torch.cat([self._embed(clips) for clips in images.split(at_once)]).transpose(1, 2)  # [B, E, F]
        found: Logits = self.pi_head(self.norm(self.temporal(x).transpose(1, 2)))
        return found

    def _embed(self, frames: Tensor) -> Tensor:
        """Embed frames, uint8 [B, F, H, W, 3] -> [B, F, E]."""
        pixels = frames.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        # Frame 0 has no previous frame and is compared with itself.
        before = torch.cat([pixels[:, :1], pixels[:, :-1]], 1)
        stacked = torch.cat([pixels, before, pixels - before], 2).flatten(0, 1)
        embedded: Tensor = self.trunk(stacked.contiguous(memory_format=torch.channels_last))
        clips: Tensor = embedded.unflatten(0, frames.shape[:2])
        return clips
