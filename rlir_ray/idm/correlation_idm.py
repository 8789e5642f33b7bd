"""An inverse dynamics model of another design than VPT's: correlation volumes between neighbouring frames.

This model is the judge of the embedded world: it evaluates policies that were trained with VPT's model as the reward.
Another design does not make the same errors. The correlation layer follows FlowNet (arXiv 1504.06852).
Legend: B clips, F frames, N = B * F.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlir_ray.data.files import Json
from rlir_ray.idm.base import with_space
from rlir_ray.idm.model import DEFAULT_SIZES, NetworkSizes, working_size
from rlir_ray.idm.temporal_model import TemporalModel
from rlir_ray.spaces.space import ActionSpace

STRIDE = 4  # pixels a cell; displacements are measured in cells


class CorrelationInverseDynamics(TemporalModel):
    """Frame features, correlation with the previous frame, convolutions over time, and heads.

    Args:
        config: img_shape [H, W] (multiples of 4), channels (of the features), hidden, reach [vertical, horizontal]
            (largest displacement in cells of 4 pixels), num_temporal_blocks, temperature and,
            optionally, action_space; see `correlation_config`.
    """

    index: Tensor

    def __init__(self, config: Json) -> None:
        super().__init__({"architecture": "correlation", **config})
        height, width = self.size = config["img_shape"][0], config["img_shape"][1]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"img_shape must be multiples of {STRIDE}, got {config['img_shape']}; resize the frames")
        channels, hidden = config["channels"], config["hidden"]
        self.features = nn.Sequential(
            nn.Conv2d(3, channels // 2, 5, stride=2, padding=2),
            nn.GroupNorm(1, channels // 2),
            nn.GELU(),
            nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1),
            nn.GroupNorm(1, channels),
            nn.GELU(),
            nn.Conv2d(channels, channels, 1),
        )
        cells, index = displacement_index(height // STRIDE, width // STRIDE, *config["reach"])
        self.register_buffer("index", index, persistent=False)  # [cells, displacements], cells = the padding cell
        displacements = index.shape[1]
        self.motion = nn.Sequential(
            nn.Conv2d(displacements + 2 * channels, 64, 1),
            nn.GroupNorm(1, 64),
            nn.GELU(),
            nn.Conv2d(64, 96, 3, padding=1),
            nn.GroupNorm(1, 96),
            nn.GELU(),
            nn.Conv2d(96, 128, 3, stride=2, padding=1),
            nn.GroupNorm(1, 128),
            nn.GELU(),
            nn.Conv2d(128, 128, 3, stride=2, padding=1),
            nn.GroupNorm(1, 128),
            nn.GELU(),
        )
        self.cells = cells
        self.embed = nn.Linear(128 * -(-cells[0] // 4) * -(-cells[1] // 4), hidden)
        self._add_readout(hidden)

    @classmethod
    def small(cls, space: ActionSpace, height: int, width: int, sizes: NetworkSizes = DEFAULT_SIZES) -> Self:
        config = with_space(correlation_config(*working_size(height, width, STRIDE)), space)
        config |= {
            "channels": sizes.convolution_width * config["channels"],
            "hidden": sizes.hidden_size,
            "num_temporal_blocks": sizes.num_layers,
        }
        return cls(config)

    def embed_frames(self, frames: Tensor) -> Tensor:
        num_clips, num_frames = frames.shape[:2]
        images = (frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(
            memory_format=torch.channels_last
        )
        features = self.features(images)  # [N, C, h, w]
        current = features.permute(0, 2, 3, 1).flatten(1, 2).unflatten(0, (num_clips, num_frames))  # [B, F, cells, C]
        # Frame 0 has no previous frame and is compared with itself.
        before = torch.cat([current[:, :1], current[:, :-1]], 1)
        volume = correlation_volume(current.flatten(0, 1), before.flatten(0, 1), self.index)  # [N, cells, D]
        stacked = torch.cat([volume, current.flatten(0, 1), before.flatten(0, 1)], -1)
        planes = stacked.unflatten(1, self.cells).permute(0, 3, 1, 2)
        embedded: Tensor = self.embed(self.motion(planes).contiguous().flatten(1)).unflatten(0, (num_clips, num_frames))
        return embedded


def correlation_config(height: int = 48, width: int = 64) -> Json:
    """Return a config for small worlds, of about 1.3 M parameters."""
    return {
        "img_shape": [height, width],
        "channels": 64,
        "hidden": 256,
        "reach": [3, 5],
        "num_temporal_blocks": 2,
        "temperature": 1.0,
    }


def displacement_index(height: int, width: int, up: int, across: int) -> tuple[tuple[int, int], Tensor]:
    """Compute the flat index of each cell's neighbours within reach.

    Returns:
        (height, width), and int64 [height * width, (2 up + 1)(2 across + 1)]; a neighbour outside the picture has the
        index of a padding cell, height * width.
    """
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    down, right = torch.meshgrid(torch.arange(-up, up + 1), torch.arange(-across, across + 1), indexing="ij")
    row, column = rows.reshape(-1, 1) + down.reshape(1, -1), columns.reshape(-1, 1) + right.reshape(1, -1)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return (height, width), torch.where(inside, row * width + column, height * width)


def correlation_volume(current: Tensor, before: Tensor, index: Tensor) -> Tensor:
    """Compute the cosine similarity of each cell with its neighbourhood in the previous frame.

    Args:
        current, before: [N, cells, C].
        index: int64 [cells, D] of `displacement_index`.

    Returns:
        [N, cells, D]; 0 where the neighbour lies outside the picture.
    """
    similarity = F.normalize(current, dim=-1) @ F.normalize(before, dim=-1).transpose(1, 2)  # [N, cells, cells]
    padded = F.pad(similarity, (0, 1))
    return padded.gather(2, index.expand(len(current), -1, -1))
