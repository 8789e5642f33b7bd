"""An inverse dynamics model that follows points: where each feature lies in a frame, and how far it has moved.

For worlds of few small objects on a plain background, where a shift of one pixel is the whole motion. The points are
the expected positions of feature maps (spatial softmax, Finn et al., arXiv 1509.06113).
Legend: B clips, F frames, P points, E width.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from rlir_ray.data.files import Json
from rlir_ray.idm.base import with_space
from rlir_ray.idm.model import DEFAULT_SIZES, NetworkSizes, working_size
from rlir_ray.idm.temporal_model import TemporalModel
from rlir_ray.spaces.space import ActionSpace

# Positions are in half frames; a motion of one pixel is some hundredths of it.
MOTION_SCALE = 20.0


class KeypointInverseDynamics(TemporalModel):
    """Feature maps, the expected position in each, its change since the previous frame, convolutions over time, heads.

    Args:
        config: img_shape [H, W], channels, num_points, hidden, num_temporal_blocks, temperature and, optionally,
            action_space.
    """

    def __init__(self, config: Json) -> None:
        super().__init__({"architecture": "keypoints", **config})
        self.size = config["img_shape"][0], config["img_shape"][1]
        channels, num_points, hidden = config["channels"], config["num_points"], config["hidden"]
        self.maps = nn.Sequential(
            nn.Conv2d(3, channels, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(channels, num_points, 1),
        )
        self.sharpness = nn.Parameter(torch.ones(num_points))
        self.embed = nn.Sequential(nn.Linear(4 * num_points, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self._add_readout(hidden)

    @classmethod
    def small(cls, space: ActionSpace, height: int, width: int, sizes: NetworkSizes = DEFAULT_SIZES) -> Self:
        config = {
            "img_shape": list(working_size(height, width)),
            "channels": 32 * sizes.convolution_width,
            "num_points": 32 * sizes.convolution_width,
            "hidden": sizes.hidden_size,
            "num_temporal_blocks": sizes.num_layers,
            "temperature": 1.0,
        }
        return cls(with_space(config, space))

    def embed_frames(self, frames: Tensor) -> Tensor:
        points = self._points(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])  # [B, F, 2 P]
        # Frame 0 has no previous frame and is compared with itself.
        motion = points - torch.cat([points[:, :1], points[:, :-1]], 1)
        embedded: Tensor = self.embed(torch.cat([MOTION_SCALE * motion, points], -1))
        return embedded

    def _points(self, images: Tensor) -> Tensor:
        """Return the expected positions in all maps of frames uint8 [N, H, W, 3], in half frames, [N, 2 P]."""
        pixels = (images.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        maps = self.maps(pixels).float() * self.sharpness.exp()[:, None, None]
        rows, columns = (torch.linspace(-1, 1, length, device=maps.device) for length in maps.shape[2:])
        weights = maps.flatten(2).softmax(-1).unflatten(2, maps.shape[2:])
        return torch.cat([weights.sum(3) @ rows, weights.sum(2) @ columns], -1)
