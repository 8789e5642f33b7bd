"""Rescoring: score the decisions of a micro-batch under given weights, one function for each family of world models.

Legend: B trajectories, T decisions, F generated frames, S SDE steps of each, N numbers of a latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rlir_ray.algorithm.flow_steps import sde_step
from rlir_ray.config import FlowConfig
from rlir_ray.models.flow_streams import two_streams
from rlir_ray.trajectory import FlowRecord, TokenRecord

Forward = Callable[..., Tensor]
"""The forward pass of a policy or a reference, called through its engine."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of decisions under given weights."""

    logprobs: Tensor
    """[B, T]."""
    means: Tensor | None = None
    """[B, T, N], of SDE steps; None for tokens."""
    stds: Tensor | None = None
    """[B, T], of SDE steps, the same under all weights."""
    gaps: Tensor | None = None
    """[B, T], the drop in noise level of each SDE step."""


Rescore = Callable[[Forward, Any, int], Scores]
"""Function from a forward pass, a record of the same family (Any: each family has its own class) and T to scores."""


@dataclass(frozen=True, slots=True)
class TokenRescorer:
    """Rescorer of tokens: softmax over the image ids at the sampling temperature."""

    temperature: float

    def __call__(self, forward: Forward, record: TokenRecord[Tensor], num_decisions: int) -> Scores:
        return Scores(forward(record.tokens.long(), num_decisions, self.temperature))


@dataclass(frozen=True, slots=True)
class FlowRescorer:
    """Rescorer of SDE steps: uses exactly the stored latents, levels and history of each step."""

    config: FlowConfig

    def __call__(self, forward: Forward, record: FlowRecord[Tensor], num_decisions: int) -> Scores:
        before, after = record.latents[:, :, :-1], record.latents[:, :, 1:]  # [B, F, S, D, h, w]
        levels, following = record.levels[:, :, :-1], record.levels[:, :, 1:]
        velocities = stream_velocities(forward, record, before, levels)
        step = sde_step(
            self.config.sde, before, velocities, levels, following, self.config.noise_level, next_latents=after
        )
        return Scores(
            logprobs=step.logprobs.flatten(1),
            means=step.mean.flatten(1, 2).flatten(2),
            stds=step.std[..., 0, 0, 0].flatten(1),
            gaps=(levels - following).flatten(1),
        )


def stream_velocities(forward: Forward, record: FlowRecord[Tensor], noisy: Tensor, levels: Tensor) -> Tensor:
    """Compute velocities of noisy generated frames [B, F, S, D, h, w] at levels [B, F, S] after a record's history."""
    num_frames, actions = record.latents.shape[1], record.actions.long()
    first = actions.shape[1] - num_frames
    return two_streams(
        forward,
        record.history,
        record.history_levels,
        actions[:, :-1],
        noisy,
        levels,
        actions[:, first:],
        first_place=first,
    )
