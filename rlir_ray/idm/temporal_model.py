"""Base of inverse dynamics models that embed each frame beside its neighbours: convolutions over time, then heads.

Legend: B clips, F frames, E width.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlir_ray.idm.base import frames_at_once, resize_frames, space_of
from rlir_ray.idm.model import InverseDynamicsModel, build_heads


class TemporalBlock(nn.Module):
    """Residual convolution over time, [B, E, F] -> [B, E, F]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(1, hidden), nn.Conv1d(hidden, hidden, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.conv(F.gelu(self.norm(x)))
        return x + branch


class TemporalModel(InverseDynamicsModel):
    """Embeddings of frames, convolutions over time, and heads.

    A subclass builds what `embed_frames` needs, and then calls `_add_readout`. Its config.json holds
    num_temporal_blocks and temperature.
    """

    temporal: nn.Sequential
    norm: nn.LayerNorm

    def _add_readout(self, hidden: int) -> None:
        """Add the layers after the embedding of E = `hidden` numbers."""
        blocks = (TemporalBlock(hidden) for _ in range(self.config["num_temporal_blocks"]))
        self.temporal, self.norm = nn.Sequential(*blocks), nn.LayerNorm(hidden)
        self.pi_head = build_heads(space_of(self.config), hidden, self.config["temperature"])

    @abstractmethod
    def embed_frames(self, frames: Tensor) -> Tensor:
        """Embed frames of the model's size, uint8 [B, F, H, W, 3] to [B, F, E]."""

    def frame_features(self, frames: Tensor, max_frames: int | None = None) -> Tensor:
        images = resize_frames(frames.to(self.device), *self.size)
        at_once = max(1, (max_frames or frames_at_once(images)) // images.shape[1])
        x = torch.cat([self.embed_frames(clips) for clips in images.split(at_once)]).transpose(1, 2)  # [B, E, F]
        found: Tensor = self.norm(self.temporal(x).transpose(1, 2))
        return found
