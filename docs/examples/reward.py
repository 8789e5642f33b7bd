"""A reward of one's own: generated frames shall be as bright as asked for. It reads no inverse dynamics model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rlir_ray.rewards.base import RewardContext
from rlir_ray.trajectory import EncodedVideo, RewardScores, encoded_clips


class Brightness:
    def __init__(self, codec: Any, target: float) -> None:
        self.codec, self.target = codec, target

    @classmethod
    def from_context(cls, context: RewardContext, target: float = 0.5) -> Brightness:
        """Called in each replica of the reward pool; `target` comes from reward.args."""
        return cls(context.open_codec().to(context.device), target)

    @torch.no_grad()
    def score(self, videos: Sequence[EncodedVideo]) -> list[RewardScores]:
        return [RewardScores(group_id=video.group_id, frame_rewards=self._rewards(video)) for video in videos]

    def _rewards(self, video: EncodedVideo) -> np.ndarray:
        clips = self.codec.decode_clips(encoded_clips([video]))  # uint8 [G, C + F, H, W, 3]
        brightness = clips[:, video.num_context :].float().mean((2, 3, 4)) / 255
        return (1 - (brightness - self.target).abs()).cpu().numpy().astype(np.float32)  # [G, F]
