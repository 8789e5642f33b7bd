"""How the decisions of a micro-batch are scored under some weights: one function for each family of world models.

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
"""The forward pass of a policy or a reference, through whatever engine holds it."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Decisions under some weights."""

    logprobs: Tensor
    """[B, T]."""
    means: Tensor | None = None
    """[B, T, N], of SDE steps; None for tokens."""
    stds: Tensor | None = None
    """[B, T], of SDE steps, the same under all weights."""
    gaps: Tensor | None = None
    """[B, T], how far an SDE step goes down in noise level."""


Rescore = Callable[[Forward, Any, int], Scores]
"""Forward pass, its family's record and T to scores."""


@dataclass(frozen=True, slots=True)
class TokenRescorer:
    """Tokens: softmax over the image ids, at the temperature of sampling."""

    temperature: float

    def __call__(self, forward: Forward, record: TokenRecord[Tensor], num_decisions: int) -> Scores:
        return Scores(forward(record.tokens.long(), num_decisions, self.temperature))


@dataclass(frozen=True, slots=True)
class FlowRescorer:
    """SDE steps: with the very latents, levels and history that they saw."""

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
    """Velocities of noisy generated frames [B, F, S, D, h, w] at levels [B, F, S] after a record's history."""
    num_frames, actions = record.latents.shape[1], record.actions.long()
    first = actions.shape[1] - num_frames
    return two_streams(
        forward, record.history, record.history_levels, actions[:, :-1], noisy, levels, actions[:, first:],
        first_place=first,
    )  # fmt: skip
