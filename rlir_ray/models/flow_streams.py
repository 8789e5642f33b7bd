"""One pass over a history and the noisy frames that follow it; training and rescoring use this pass.

Depends only on the arguments of a flow model's forward pass. Legend: B clips, P frames of history, F denoised frames,
S noise levels of each, D h w a latent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[..., Tensor]
"""Latents [B, M, D, h, w], levels [B, M], actions [B, M, 9], places [M], visible [M, M] -> [B, M, D, h, w]."""


def interpolate(latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Mix latents and noise [..., D, h, w] at levels [...]; the result is [..., D, h, w]."""
    share = levels[..., None, None, None]
    return (1 - share) * latents + share * noise


def two_streams(
    velocity: Velocity,
    history: Tensor,
    history_levels: Tensor,
    history_actions: Tensor,
    noisy: Tensor,
    levels: Tensor,
    actions: Tensor,
    first_place: int,
) -> Tensor:
    """Compute velocities of frames at several noise levels each, all after the same history, in one pass.

    The frames of the history attend to each other as in a rollout; a noisy frame attends to the history before it and
    to gives what a rollout computes frame by frame, at every frame and level.

    Args:
        velocity: the forward pass of a `FlowWorldModel`, or of an engine around one.
        history: [B, P, D, h, w], the frames at places 0 to P - 1 as later frames read them.
        history_levels: [B, P].
        history_actions: int64 [B, P, 9].
        noisy: [B, F, S, D, h, w], the frames from `first_place` on at S noise levels each.
        levels: [B, F, S].
        actions: int64 [B, F, 9], leading into those frames.
        first_place: of the noisy frames; at most P.

    Returns:
        float32 [B, F, S, D, h, w].
    """
    num_history, (num_frames, num_levels) = history.shape[1], noisy.shape[1:3]
    past = torch.arange(num_history)
    current = (first_place + torch.arange(num_frames)).repeat_interleave(num_levels)
    places = torch.cat([past, current])
    visible = torch.zeros(len(places), len(places), dtype=torch.bool)
    visible[:, :num_history] = past < places[:, None]
    visible |= torch.eye(len(places), dtype=torch.bool)
    velocities = velocity(
        torch.cat([history, noisy.flatten(1, 2)], 1),
        torch.cat([history_levels, levels.flatten(1)], 1),
        torch.cat([history_actions, actions.repeat_interleave(num_levels, 1)], 1),
        places,
        visible,
    )
    found: Tensor = velocities[:, num_history:].unflatten(1, (num_frames, num_levels))
    return found
