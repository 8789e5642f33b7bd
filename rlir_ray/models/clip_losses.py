"""The pretraining loss of recorded clips, one class for each family of world models.

Legend: B clips, C context and F generated frames, L tokens of a sequence, N tokens a frame, D h w a latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlir_ray.models.flow_matching import FlowNoise, NoiseLevels, flow_matching_errors
from rlir_ray.models.rescoring import Forward, TokenRescorer
from rlir_ray.trajectory import FlowRecord, TokenRecord

if TYPE_CHECKING:
    from rlir_ray.models.autoregressive import WorldModel
    from rlir_ray.models.flow_matching import FlowPolicy

ClipLoss = Callable[[Forward, Any, Tensor, list[int]], Tensor]
"""Function from a forward pass, the record of a rollout after each clip's prompt (Any: each family has its own class),
the recorded clips [B, C + F, N] or [B, C + F, D, h, w], and a seed for each clip's draws, to losses float32 [B]."""


@dataclass(frozen=True, slots=True)
class TokenClipLoss:
    """Cross entropy of the recorded frames' tokens, in nats a token, given the context and the actions.

    Args:
        policy: knows the form of its sequences.
        num_frames: F.
        restrict: compute the probabilities over the image ids only, as rollouts do.
    """

    policy: WorldModel
    num_frames: int
    restrict: bool = True

    def __call__(self, forward: Forward, record: TokenRecord[Tensor], recorded: Tensor, seeds: list[int]) -> Tensor:
        # Context and actions are those of the rollout; the recorded frames take the places of the generated ones.
        tokens = record.tokens.long()
        num_decisions = self.num_frames * self.policy.tokens_per_frame
        places = self.policy.sequence.decision_positions(tokens.shape[1], num_decisions).to(tokens.device)
        tokens = tokens.index_copy(1, places, recorded[:, -self.num_frames :].flatten(1).long())
        # Pretraining has no temperature.
        rescore = TokenRescorer(1.0, self.restrict)
        return -rescore(forward, TokenRecord(tokens), num_decisions).logprobs.mean(1)


@dataclass(frozen=True, slots=True)
class FlowClipLoss:
    """Flow-matching error of the recorded frames, at one drawn noise level each.

    Args:
        policy: knows its span and the levels that it can be told.
        num_frames: F.
        levels: the distributions of the levels.
    """

    policy: FlowPolicy
    num_frames: int
    levels: NoiseLevels

    def __call__(self, forward: Forward, record: FlowRecord[Tensor], recorded: Tensor, seeds: list[int]) -> Tensor:
        draws = [
            self.levels.draw((1, *recorded.shape[1:]), self.num_frames, torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        noise = FlowNoise(*(torch.cat(parts) for parts in zip(*draws, strict=True)))
        return flow_matching_errors(forward, self.policy, recorded.float(), record.actions.long(), noise)
