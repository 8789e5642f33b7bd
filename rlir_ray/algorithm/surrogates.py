"""Surrogates of the policy gradient: the loss of each decision from its ratio and its advantage. Tensors and floats in.

The ratio is policy over the centre of the clip: the behavior policy, or with importance weights the proximal policy.
Metrics are as those of `losses`. Legend: B trajectories, T decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from rlir_ray.algorithm.losses import MAX_LOG_RATIO, Metrics, same_shapes


@dataclass(frozen=True, kw_only=True, slots=True)
class Decisions:
    """The decisions of a micro-batch, and the counts of the whole optimiser step over all micro-batches and ranks."""

    log_ratio: Tensor
    """float32 [B, T], policy over the centre of the clip; carries the gradient."""
    logprobs: Tensor
    """[B, T], under the policy; carries the gradient."""
    advantages: Tensor
    """[B, T]."""
    loss_mask: Tensor
    """bool [B, T], the decisions that train. Masked entries may hold any value, even infinity."""
    num_decisions: int
    """Unmasked decisions."""
    num_trajectories: int
    """Trajectories with unmasked decisions."""

    def __post_init__(self) -> None:
        same_shapes(self.log_ratio, self.logprobs, self.advantages, self.loss_mask)


class Surrogate(Protocol):
    """A surrogate, called with the log-ratio, log-probabilities, advantages and mask of `Decisions`, [B, T] each."""

    by_trajectory: ClassVar[bool]
    """Whether the loss is the mean over trajectories of their mean losses; otherwise it is the mean over decisions."""

    def __call__(
        self, log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, loss_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of each decision, and whether the clip acts on the decision, [B, T] each."""


@dataclass(frozen=True, slots=True)
class Clipped:
    """The clipped ratio of PPO (https://arxiv.org/abs/1707.06347, eq. 7) with a separate upper clip (DAPO,
    https://arxiv.org/abs/2503.14476, eq. 8).

    Args:
        clip_low: the ratio is clipped at 1 - clip_low.
        clip_high: the ratio is clipped at 1 + clip_high.
        dual_clip: where the advantage is negative, the ratio counts at most this much (dual clip,
            https://arxiv.org/abs/1912.09729): PPO bounds the loss of a bad decision from one side only. verl
            uses 3. TRL's two-sided clip (`delta`) gives the same loss. 0: no bound.
    """

    clip_low: float
    clip_high: float
    dual_clip: float = 0.0
    by_trajectory: ClassVar[bool] = False

    def __call__(
        self, log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, loss_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        ratio = _ratio(log_ratio)
        gain = ratio * advantages
        clipped_gain = torch.clamp(ratio, 1 - self.clip_low, 1 + self.clip_high) * advantages
        is_clipped = clipped_gain < gain
        surrogate = torch.minimum(gain, clipped_gain)
        if self.dual_clip:
            is_bounded = (advantages < 0) & (ratio > self.dual_clip)
            surrogate = torch.where(is_bounded, self.dual_clip * advantages, surrogate)
            is_clipped = is_clipped | is_bounded
        return -surrogate, is_clipped


@dataclass(frozen=True, slots=True)
class SequenceClipped:
    """The clipped ratio of whole trajectories (GSPO, https://arxiv.org/abs/2507.18071, eq. 5 to 7).

    The ratio of a trajectory is the geometric mean of its decisions' ratios, and all its decisions are clipped
    together. Each decision keeps its own advantage and its own gradient (the paper's GSPO-token), which differs from
    GSPO only where advantages differ within a trajectory.

    Args:
        clip_low: the ratio is clipped at 1 - clip_low.
        clip_high: the ratio is clipped at 1 + clip_high.
    """

    clip_low: float
    clip_high: float
    by_trajectory: ClassVar[bool] = True

    def __call__(
        self, log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, loss_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        mean = log_ratio.detach().sum(-1, keepdim=True) / loss_mask.sum(-1, keepdim=True).clamp(min=1)  # [B, 1]
        return Clipped(self.clip_low, self.clip_high)(
            mean + log_ratio - log_ratio.detach(), logprobs, advantages, loss_mask
        )


@dataclass(frozen=True, slots=True)
class CappedWeight:
    """The log-probability, weighted by the clipped ratio without its gradient (CISPO, https://arxiv.org/abs/2506.13585,
    eq. 4): a decision whose ratio has left the clip range still trains.

    Args:
        clip_high: the weight is at most 1 + clip_high. TRL's `epsilon_high` is this whole number.
        clip_low: the weight is at least 1 - clip_low. The paper and TRL have no lower bound, which is 1 here.
    """

    clip_high: float
    clip_low: float = 1.0
    by_trajectory: ClassVar[bool] = False

    def __call__(
        self, log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, loss_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        ratio = _ratio(log_ratio.detach())
        weight = torch.clamp(ratio, 1 - self.clip_low, 1 + self.clip_high)
        return -weight * advantages * logprobs.float(), weight != ratio


def surrogate_loss(surrogate: Surrogate, decisions: Decisions) -> tuple[Tensor, Metrics]:
    """Compute the loss of a micro-batch.

    The mean over decisions is normalised by the global number of decisions (DAPO's token-level loss). The mean over
    trajectories leaves out trajectories without unmasked decisions, as verl does.

    Returns:
        The loss, a scalar to sum over micro-batches and ranks, and its metrics.
    """
    mask = decisions.loss_mask
    # Zeros keep masked entries out of the loss and its gradient.
    log_ratio, logprobs, advantages = (
        torch.where(mask, column, 0.0) for column in (decisions.log_ratio, decisions.logprobs, decisions.advantages)
    )
    losses, is_clipped = surrogate(log_ratio, logprobs, advantages, mask)
    if surrogate.by_trajectory:
        losses = losses.sum(-1) / mask.sum(-1).clamp(min=1)  # [B]
        loss = losses.sum() / decisions.num_trajectories
    else:
        loss = losses.sum() / decisions.num_decisions
    return loss, {
        "loss/policy": loss.detach() * decisions.num_decisions,
        "ratio/clip_fraction": (is_clipped & mask).float().sum(),
        "decisions": mask.sum().float(),
    }


def _ratio(log_ratio: Tensor) -> Tensor:
    return torch.exp(log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
