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
from rlir_ray.idm.base import with_space
from rlir_ray.idm.model import DEFAULT_SIZES, NetworkSizes, working_size
from rlir_ray.idm.temporal_model import TemporalModel
from rlir_ray.spaces.space import ActionSpace

STRIDE = 8


class DifferenceInverseDynamics(TemporalModel):
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
        self._add_readout(hidden)

    @classmethod
    def small(cls, space: ActionSpace, height: int, width: int, sizes: NetworkSizes = DEFAULT_SIZES) -> Self:
        config = {
            "img_shape": list(working_size(height, width, STRIDE)),
            "channels": 32 * sizes.convolution_width,
            "hidden": sizes.hidden_size,
            "num_temporal_blocks": sizes.num_layers,
            "temperature": 1.0,
        }
        return cls(with_space(config, space))

    def embed_frames(self, frames: Tensor) -> Tensor:
        pixels = frames.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        # Frame 0 has no previous frame and is compared with itself.
        before = torch.cat([pixels[:, :1], pixels[:, :-1]], 1)
        stacked = torch.cat([pixels, before, pixels - before], 2).flatten(0, 1)
        embedded: Tensor = self.trunk(stacked.contiguous(memory_format=torch.channels_last))
        clips: Tensor = embedded.unflatten(0, frames.shape[:2])
        return clips
