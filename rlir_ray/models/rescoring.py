"""Rescoring: score the decisions of a micro-batch under given weights, one function for each family of world models.

Legend: B trajectories, T decisions, P frames of history, F generated frames, S noise levels of each (of its SDE steps),
N numbers of a latent, D h w a latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlir_ray.algorithm.flow_steps import sde_step
from rlir_ray.algorithm.guidance import NO_GUIDANCE, guided_velocity
from rlir_ray.config import FlowConfig
from rlir_ray.spaces.layouts import NO_ACTION
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
    """Rescorer of tokens: softmax over the image ids, or over all ids, at the sampling temperature."""

    temperature: float
    restrict: bool = True
    guidance: float = NO_GUIDANCE
    """Scale of the action guidance with which the tokens were drawn."""

    def __call__(self, forward: Forward, record: TokenRecord[Tensor], num_decisions: int) -> Scores:
        # Only a policy that can draw from all ids, or be guided, has these arguments.
        options: tuple[float, ...] = () if self.restrict else (False,)
        if self.guidance != NO_GUIDANCE:
            options = (self.restrict, self.guidance)
        return Scores(forward(record.tokens.long(), num_decisions, self.temperature, *options))


@dataclass(frozen=True, slots=True)
class FlowRescorer:
    """Rescorer of SDE steps: uses exactly the stored latents, levels and history of each step."""

    config: FlowConfig
    span: int | None = None
    """Of the policy, see `first_read`."""
    guidance: float = NO_GUIDANCE
    """Scale of the action guidance with which the steps were drawn."""

    def __call__(self, forward: Forward, record: FlowRecord[Tensor], num_decisions: int) -> Scores:
        before, after = record.latents[:, :, :-1], record.latents[:, :, 1:]  # [B, F, S, D, h, w]
        levels, following = record.levels[:, :, :-1], record.levels[:, :, 1:]
        velocities = self._velocities(forward, record, before, levels)
        step = sde_step(
            self.config.sde, before, velocities, levels, following, self.config.noise_level, next_latents=after
        )
        return Scores(
            logprobs=step.logprobs.flatten(1),
            means=step.mean.flatten(1, 2).flatten(2),
            stds=step.std[..., 0, 0, 0].flatten(1),
            gaps=(levels - following).flatten(1),
        )

    def _velocities(self, forward: Forward, record: FlowRecord[Tensor], noisy: Tensor, levels: Tensor) -> Tensor:
        """Compute velocities as the sampler did; with guidance each frame stands twice after one history."""
        if self.guidance == NO_GUIDANCE:
            return stream_velocities(forward, record, noisy, levels, self.span)
        noisy, twice = torch.cat([noisy, noisy], 2), torch.cat([levels, levels], 2)
        hides = torch.arange(twice.shape[2], device=levels.device) >= levels.shape[2]
        action, null = stream_velocities(forward, record, noisy, twice, self.span, hides).chunk(2, 2)
        return guided_velocity(action, null, self.guidance, self.config.guidance_rescale)


def stream_velocities(
    forward: Forward,
    record: FlowRecord[Tensor],
    noisy: Tensor,
    levels: Tensor,
    span: int | None,
    hides: Tensor | None = None,
) -> Tensor:
    """Compute velocities of noisy generated frames [B, F, S, D, h, w] at levels [B, F, S] after a record's history.

    `hides`, bool [S], says at which levels the action that leads into the frame itself is hidden; None: at none.
    """
    num_frames, actions = record.latents.shape[1], record.actions.long()
    leading = actions[:, -num_frames:]  # [B, F, columns]
    if hides is not None:
        leading = torch.where(hides[:, None], NO_ACTION, leading[:, :, None])  # [B, F, S, columns]
    return two_streams(
        forward,
        record.history,
        record.history_levels,
        actions[:, :-1],
        noisy,
        levels,
        leading,
        span,
    )


def first_read(place: int, span: int | None) -> int:
    """Return the earliest frame that a frame reads; the model is told places that count from there.

    Args:
        place: index of the frame in the clip.
        span: most frames that the model reads at once, the frame itself included; None: any number.
    """
    return 0 if span is None else max(0, place + 1 - span)


def two_streams(
    velocity: Forward,
    history: Tensor,
    history_levels: Tensor,
    history_actions: Tensor,
    noisy: Tensor,
    levels: Tensor,
    actions: Tensor,
    span: int | None = None,
) -> Tensor:
    """Compute velocities of frames at several noise levels each, after the frames that a rollout reads before them.

    Training and rescoring use these passes. Frames that read from the start of the clip share one pass. A later frame
    is a row of a second pass, with the frames of its own window.

    Args:
        velocity: the forward pass of a `FlowWorldModel`, or of an engine around one.
        history: [B, P, D, h, w], the frames at places 0 to P - 1, with the noise that later frames see.
        history_levels: [B, P].
        history_actions: int64 [B, P, columns], the classes of the model's layout.
        noisy: [B, F, S, D, h, w], the frames at places P + 1 - F to P at S noise levels each.
        levels: [B, F, S].
        actions: int64 [B, F, columns] or [B, F, S, columns], leading into those frames.
        span: of the model, see `first_read`.

    Returns:
        float32 [B, F, S, D, h, w].
    """
    past, current = (history, history_levels, history_actions), (noisy, levels, actions)
    first = history.shape[1] + 1 - noisy.shape[1]
    starts = torch.tensor([first_read(first + frame, span) for frame in range(noisy.shape[1])])
    shared = int((starts == 0).sum())
    parts = []
    if shared:
        before = first + shared - 1
        parts.append(_one_pass(velocity, *(part[:, :before] for part in past), *(part[:, :shared] for part in current)))
    if shared < len(starts):
        assert span is not None, "without a span all frames read from the start"
        windows = starts[shared:, None] + torch.arange(span - 1)  # [R, span - 1]
        rows = (part[:, windows].flatten(0, 1) for part in past)
        last = (part[:, shared:].flatten(0, 1)[:, None] for part in current)
        found = _one_pass(velocity, *rows, *last)  # [B * R, 1, S, D, h, w]
        parts.append(found[:, 0].unflatten(0, (len(noisy), len(windows))))
    return torch.cat(parts, 1)


def _one_pass(
    velocity: Forward,
    history: Tensor,
    history_levels: Tensor,
    history_actions: Tensor,
    noisy: Tensor,
    levels: Tensor,
    actions: Tensor,
) -> Tensor:
    """Compute velocities as `two_streams` does, of frames that all read from the start of the history.

    The frames of the history attend to each other as in a rollout; a noisy frame attends to the history before it and
    to itself. This gives what a rollout computes frame by frame, at every frame and level.
    """
    num_history, (num_frames, num_levels) = history.shape[1], noisy.shape[1:3]
    past = torch.arange(num_history)
    current = (num_history + 1 - num_frames + torch.arange(num_frames)).repeat_interleave(num_levels)
    places = torch.cat([past, current])
    visible = torch.zeros(len(places), len(places), dtype=torch.bool)
    visible[:, :num_history] = past < places[:, None]
    visible |= torch.eye(len(places), dtype=torch.bool)
    leading = actions.flatten(1, 2) if actions.ndim == 4 else actions.repeat_interleave(num_levels, 1)
    velocities = velocity(
        torch.cat([history, noisy.flatten(1, 2)], 1),
        torch.cat([history_levels, levels.flatten(1)], 1),
        torch.cat([history_actions, leading], 1),
        places,
        visible,
    )
    found: Tensor = velocities[:, num_history:].unflatten(1, (num_frames, num_levels))
    return found
