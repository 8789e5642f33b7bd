"""A reward of one's own: generated frames shall be as bright as asked for. It reads no inverse dynamics model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rlir_ray.rewards.base import RewardContext
from rlir_ray.trajectory import EncodedVideo, RewardScores, codes_tensor


class Brightness:
    def __init__(self, codec: Any, device: str, target: float) -> None:
        self.codec, self.device, self.target = codec, device, target

    @classmethod
    def from_context(cls, context: RewardContext, target: float = 0.5) -> Brightness:
        """Called in each replica of the reward pool; `target` comes from reward.args."""
        return cls(context.open_codec().to(context.device), context.device, target)

    @torch.no_grad()
    def score(self, videos: Sequence[EncodedVideo]) -> list[RewardScores]:
        return [RewardScores(group_id=video.group_id, frame_rewards=self._rewards(video)) for video in videos]

    def _rewards(self, video: EncodedVideo) -> np.ndarray:
        codes = codes_tensor([video])[:, video.num_context :].to(self.device)  # [G, F, ...]
        frames = self.codec.decode(codes.flatten(0, 1))  # uint8 [G * F, H, W, 3]
        brightness = frames.float().mean((1, 2, 3)).unflatten(0, codes.shape[:2]) / 255
        return (1 - (brightness - self.target).abs()).cpu().numpy().astype(np.float32)  # [G, F]
