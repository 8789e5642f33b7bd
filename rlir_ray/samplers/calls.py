"""Calls of a sampler, shared by all engines: check the prompts of a call, and build the groups from drawn tokens.

Legend: P prompts, G trajectories, T decisions, C context and F generated frames, N tokens a frame, A tokens an action,
M tokens of a keyframe, L tokens in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.models.token_sequence import TokenSequence
from rlir_ray.trajectory import EncodedVideo, FrameShape, Prompt, TokenRecord, TrajectoryGroup, stored_codes


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


@dataclass(frozen=True, slots=True)
class TokenInputs:
    """The prompts of a call as tokens."""

    sequence: TokenSequence
    """The form of the policy's sequences."""
    context: Tensor
    """int64 [P, C, N]."""
    actions: Tensor
    """int64 [P, C - 1 + F, A]."""
    keyframes: Tensor | None
    """int64 [P, M]; None: the form has none."""

    def to(self, device: torch.device) -> TokenInputs:
        keyframes = None if self.keyframes is None else self.keyframes.to(device)
        return TokenInputs(self.sequence, self.context.to(device), self.actions.to(device), keyframes)

    def prefixes(self) -> Tensor:
        """Return the tokens before the first decision, shared by a group: the context and the first commanded action.

        Returns:
            int64 [P, L].
        """
        return self.sequence.prefix(self.context, self.actions[:, : self.context.shape[1]], self.keyframes)

    def assemble(self, clips: Tensor) -> Tensor:
        """Return the whole sequences of clips int64 [P * G, C + F, N], prompt after prompt: int64 [P * G, L]."""
        size = len(clips) // len(self.context)
        keyframes = None if self.keyframes is None else self.keyframes.repeat_interleave(size, 0)
        return self.sequence.assemble(clips, self.actions.repeat_interleave(size, 0), keyframes)


def token_inputs(prompts: Sequence[Prompt], sequence: TokenSequence) -> TokenInputs:
    """Return the prompts of a call as tokens of a policy's sequences.

    Raises:
        ValueError: a token of a context or keyframe is not an id of the policy, keyframes are missing or not wanted,
            the actions are of another space, or the policy does not generate so many frames.
    """
    sequence.check_generated(prompts[0].num_frames)
    context = _ids("context", [prompt.context for prompt in prompts], sequence.shape.num_codes)
    given = [prompt.keyframe for prompt in prompts if prompt.keyframe is not None]
    found = {len(keyframe) for keyframe in given} | ({0} if len(given) < len(prompts) else set())
    if found != {sequence.shape.tokens_per_keyframe}:
        raise ValueError(
            f"prompts must have keyframes of the policy's {sequence.shape.tokens_per_keyframe} tokens (0: none), got "
            f"{sorted(found)}; encode them with the policy's own tokenizer"
        )
    actions = np.stack([sequence.layout.tokens(prompt.actions, sequence.first_action_id) for prompt in prompts])
    keyframes = _ids("keyframe", given, sequence.shape.num_keyframe_codes) if given else None
    return TokenInputs(sequence, context, torch.from_numpy(actions), keyframes)


def _ids(name: str, given: Sequence[npt.NDArray[np.generic]], num_codes: int) -> Tensor:
    ids = torch.from_numpy(np.stack(given).astype(np.int64))
    if int(ids.min()) < 0 or int(ids.max()) >= num_codes:
        raise ValueError(
            f"{name} tokens must be in 0..{num_codes - 1}, the policy's {num_codes} codes, got {int(ids.min())}.."
            f"{int(ids.max())}; encode prompts with the policy's tokenizer"
        )
    return ids


def image_ids(tokens: Tensor, sequence: TokenSequence) -> Tensor:
    """Return the ids to decode: an unrestricted policy's other ids count as the last image id (as RLVR-World)."""
    return tokens.clamp(max=sequence.shape.num_codes - 1)


def token_groups(
    prompts: Sequence[Prompt],
    group_ids: Sequence[int],
    seeds: Sequence[int],
    policy_version: int,
    inputs: TokenInputs,
    frames: Tensor,
    logprobs: Tensor,
) -> list[tuple[TrajectoryGroup, EncodedVideo]]:
    """Build the payload of a call from the drawn tokens, for any engine.

    Args:
        prompts, group_ids, seeds: one of each for every group.
        policy_version: version of the weights that sampled.
        inputs: from `token_inputs`.
        frames: int64 [P * G, F, N], the drawn tokens, prompt after prompt.
        logprobs: float32 [P * G, T], log-probability of each drawn token.
    """
    size = len(frames) // len(prompts)
    clips = torch.cat([inputs.context.repeat_interleave(size, 0), frames], 1)  # [P * G, C + F, N]
    tokens = inputs.assemble(clips).to("cpu", torch.int32).numpy()
    codes, scores = stored_codes(image_ids(clips, inputs.sequence).cpu().numpy()), logprobs.cpu().numpy()
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
            recorded=prompt.recorded_clip,
        )
        video = EncodedVideo(
            group_id=group_id,
            codes=codes[rows],
            num_context=len(prompt.context),
            actions=prompt.actions,
            keyframe=prompt.keyframe,
            policy_version=policy_version,
            recorded=prompt.recorded,
        )
        pairs.append((group, video))
    return pairs
