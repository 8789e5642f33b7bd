"""The flow-matching error of recorded clips: the loss of a flow world model's training.

Diffusion forcing (https://arxiv.org/abs/2407.01392): every frame has its own noise level. The model reads each frame
twice: denoised from its drawn level, and at a low level as history of the later frames, as in a rollout.
Legend: B clips, W frames of a clip, F frames that the model predicts, P = W - 1 frames of history, D h w a latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rlir_ray.algorithm.flow_steps import interpolate
from rlir_ray.models.rescoring import Forward, two_streams

if TYPE_CHECKING:
    from rlir_ray.models.flow import FlowWorldModel
    from rlir_ray.models.oasis_policy import OasisPolicy

    FlowPolicy = FlowWorldModel | OasisPolicy


class FlowNoise(NamedTuple):
    """The draws for some clips, on the CPU."""

    history_levels: Tensor
    """float32 [B, P]."""
    levels: Tensor
    """float32 [B, F], of the predicted frames."""
    frames: Tensor
    """float32 [B, F, D, h, w], noise of the predicted frames."""
    history: Tensor
    """float32 [B, P, D, h, w], noise of the history."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseLevels:
    """The distributions of noise levels."""

    history_noise: float
    """Highest level of a history frame; the level is uniform between 0 and this value."""
    mean: float = 0.0
    """Mean of the logit of a predicted frame's level."""
    std: float = 1.0
    """Standard deviation of this logit (logit-normal, https://arxiv.org/abs/2403.03206)."""

    def draw(self, shape: Sequence[int], num_frames: int, generator: torch.Generator) -> FlowNoise:
        """Draw levels and noise for clips of the shape [B, W, D, h, w], whose last `num_frames` are predicted."""
        num_clips, length, *latent = shape
        history_levels = torch.rand(num_clips, length - 1, generator=generator) * self.history_noise
        logits = torch.randn(num_clips, num_frames, generator=generator) * self.std + self.mean
        frames = torch.randn(num_clips, num_frames, *latent, generator=generator)
        history = torch.randn(num_clips, length - 1, *latent, generator=generator)
        return FlowNoise(history_levels, torch.sigmoid(logits), frames, history)


def flow_matching_errors(
    velocity: Forward, policy: FlowPolicy, latents: Tensor, actions: Tensor, noise: FlowNoise
) -> Tensor:
    """Compute the mean squared error of the velocities of each clip's last F frames, float32 [B].

    Flow matching (https://arxiv.org/abs/2210.02747).

    Args:
        velocity: the forward pass of the policy, or of an engine around it.
        policy: knows its span and the levels that it can be told.
        latents: float32 [B, W, D, h, w].
        actions: int64 [B, W, columns], classes of the action that leads into each frame.
        noise: the draws, moved to the device of the latents here.
    """
    history_levels, levels, frame_noise, history_noise = (part.to(latents.device) for part in noise)
    num_frames = levels.shape[1]
    past, frames, levels = latents[:, :-1], latents[:, -num_frames:], policy.exact_levels(levels)
    velocities = two_streams(
        velocity,
        interpolate(past, history_noise, history_levels),
        history_levels,
        actions[:, :-1],
        interpolate(frames, frame_noise, levels)[:, :, None],
        levels[:, :, None],
        actions[:, -num_frames:],
        policy.span,
    )[:, :, 0]
    return (velocities - (frame_noise - frames)).square().flatten(1).mean(1)
