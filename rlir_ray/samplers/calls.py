"""Calls of a sampler, shared by all engines: check the prompts of a call, and build the groups from drawn tokens.

Legend: P prompts, G trajectories, T decisions, C context and F generated frames, N tokens a frame, A tokens an action,
L tokens in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rlir_ray.models.autoregressive import assemble
from rlir_ray.spaces.layouts import ActionLayout
from rlir_ray.trajectory import EncodedVideo, FrameShape, Prompt, TokenRecord, TrajectoryGroup, stored_codes


class TokenPolicy(Protocol):
    """A policy whose frames and actions are tokens."""

    @property
    def num_codes(self) -> int:
        """Number of image ids; the action ids lie behind them."""

    @property
    def layout(self) -> ActionLayout:
        """The form of its actions."""


def check_call(
    prompts: Sequence[Prompt], group_ids: Sequence[int], seeds: Sequence[int], frame_shape: FrameShape
) -> tuple[int, int]:
    """Check the arguments of a call; return the numbers of context frames and of generated frames.

    Args:
        prompts, group_ids, seeds: one of each for every group.
        frame_shape: shape of the policy's encoded frames: (tokens,) or (channels, height, width).

    Raises:
        ValueError: the arguments differ in number, the prompts differ in shape, or their frames do not fit the policy.
    """
    if not len(prompts) == len(group_ids) == len(seeds) >= 1:
        raise ValueError(
            f"a call needs as many group ids and seeds as prompts, at least one, got {len(prompts)} prompts, "
            f"{len(group_ids)} ids and {len(seeds)} seeds; give one of each for every group"
        )
    shapes = {(len(prompt.context), prompt.context.shape[1:], prompt.num_frames) for prompt in prompts}
    if len(shapes) > 1:
        raise ValueError(
            f"prompts of one call must agree on (context frames, encoded frame, frames), got {sorted(shapes)}; "
            "sample them in separate calls"
        )
    num_context, found, num_frames = shapes.pop()
    if tuple(found) != frame_shape:
        raise ValueError(
            f"prompts must have frames encoded as the policy's {frame_shape}, got {tuple(found)}; encode them with "
            "the policy's own tokenizer"
        )
    return num_context, num_frames


def token_inputs(prompts: Sequence[Prompt], policy: TokenPolicy) -> tuple[Tensor, Tensor]:
    """Return context tokens int64 [P, C, N] and action tokens int64 [P, C - 1 + F, A] of the prompts of a call.

    Raises:
        ValueError: a context token is not an image id of the policy, or the actions are of another space.
    """
    num_codes = policy.num_codes
    context = torch.from_numpy(np.stack([prompt.context for prompt in prompts]).astype(np.int64))
    if int(context.min()) < 0 or int(context.max()) >= num_codes:
        raise ValueError(
            f"context tokens must be in 0..{num_codes - 1}, the policy's {num_codes} codes, got {int(context.min())}.."
            f"{int(context.max())}; encode prompts with the policy's tokenizer"
        )
    actions = np.stack([policy.layout.tokens(prompt.actions, num_codes) for prompt in prompts])
    return context, torch.from_numpy(actions)


def prefixes(context: Tensor, actions: Tensor) -> Tensor:
    """Return the tokens before the first decision, shared by a group: the context and the first commanded action.

    Args:
        context: int64 [P, C, N].
        actions: int64 [P, C - 1 + F, A].

    Returns:
        int64 [P, C * (N + A)].
    """
    num_context = context.shape[1]
    return torch.cat([assemble(context, actions[:, : num_context - 1]), actions[:, num_context - 1]], 1)


def token_groups(
    prompts: Sequence[Prompt],
    group_ids: Sequence[int],
    seeds: Sequence[int],
    policy_version: int,
    context: Tensor,
    actions: Tensor,
    frames: Tensor,
    logprobs: Tensor,
) -> list[tuple[TrajectoryGroup, EncodedVideo]]:
    """Build the payload of a call from the drawn tokens, for any engine.

    Args:
        prompts, group_ids, seeds: one of each for every group.
        policy_version: version of the weights that sampled.
        context, actions: from `token_inputs`.
        frames: int64 [P * G, F, N], the drawn tokens, prompt after prompt.
        logprobs: float32 [P * G, T], log-probability of each drawn token.
    """
    size = len(frames) // len(prompts)
    clips = torch.cat([context.repeat_interleave(size, 0), frames], 1)  # [P * G, C + F, N]
    tokens = assemble(clips, actions.repeat_interleave(size, 0)).to("cpu", torch.int32).numpy()
    codes, scores = stored_codes(clips.cpu().numpy()), logprobs.cpu().numpy()
    pairs = []
    for number, (prompt, group_id, seed) in enumerate(zip(prompts, group_ids, seeds, strict=True)):
        rows = slice(number * size, (number + 1) * size)
        group = TrajectoryGroup(
            prompt_id=prompt.prompt_id,
            group_id=group_id,
            seed=seed,
            policy_version=policy_version,
            record=TokenRecord(tokens[rows]),
            behavior_logprobs=scores[rows],
            loss_mask=np.ones(scores[rows].shape, np.bool_),
        )
        num_context, commanded = len(prompt.context), prompt.actions
        video = EncodedVideo(group_id=group_id, codes=codes[rows], num_context=num_context, actions=commanded)
        pairs.append((group, video))
    return pairs
