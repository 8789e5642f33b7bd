"""Off-policy correction: train on decisions that an older policy sampled. Tensors and floats in.

There are three policies: behavior (sampled the decisions), proximal (the centre of the clip) and current (carries the
gradient). The proximal policy is the learner's policy at the start of the step. In a step of one update it is the
current policy: the ratio of current to proximal policy is 1, and no clip can act.
Legend: B trajectories, T decisions.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rlir_ray.algorithm.losses import MAX_LOG_RATIO, Metrics
from rlir_ray.algorithm.surrogates import Decisions, Surrogate, surrogate_loss


def importance_weights(
    log_ratio: Tensor, loss_mask: Tensor, level: str, max_weight: float, min_ratio: float, max_ratio: float
) -> tuple[Tensor, Tensor]:
    """Compute truncated importance weights from the behavior to the proximal policy, and mask extreme ratios.

    `token`: the weight is the ratio itself, so that the clip does not depend on the age of the samples
    (https://arxiv.org/abs/2110.00641, for language models https://arxiv.org/abs/2505.24298).
    `sequence`: the weight is the geometric mean of a clip's ratios (https://arxiv.org/abs/2507.18071, eq. 7), because
    the plain product of hundreds of ratios is near zero or infinity.

    Args:
        log_ratio: float32 [B, T], proximal over behavior, without gradient.
        loss_mask: bool [B, T].
        level: `token`, one weight a decision, or `sequence`, one weight for all decisions of a clip.
        max_weight: truncate weights here; truncation bounds the variance and adds a little bias.
        min_ratio, max_ratio: a decision with a ratio outside of these bounds does not train.

    Returns:
        The weights, float32 [B, T], and the decisions that train, bool [B, T].
    """
    log_ratio = torch.where(loss_mask, log_ratio, 0.0)
    if level == "sequence":
        mean = log_ratio.sum(-1, keepdim=True) / loss_mask.sum(-1, keepdim=True).clamp(min=1)
        log_ratio = mean.expand_as(log_ratio)
    ratio = torch.exp(log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    return ratio.clamp(max=max_weight), loss_mask & (ratio >= min_ratio) & (ratio <= max_ratio)


def decoupled_loss(
    surrogate: Surrogate,
    decisions: Decisions,
    proximal_log_ratio: Tensor,
    *,
    level: str,
    max_weight: float,
    min_ratio: float,
    max_ratio: float,
) -> tuple[Tensor, Metrics]:
    """Compute the surrogate around the proximal policy, each decision weighted by `importance_weights`.

    Decisions with a ratio outside of the bounds still count in the normaliser: masking must not increase the gradient
    of the other decisions, and the loss must not depend on the split into micro-batches and ranks.

    Args:
        surrogate: the surrogate, whose clip acts on the ratio of current to proximal policy.
        decisions: the decisions; their log-ratio is that of current to behavior policy.
        proximal_log_ratio: float32 [B, T], proximal over behavior, without gradient.
        level, max_weight, min_ratio, max_ratio: as `importance_weights` takes them.

    Returns:
        The loss, a scalar to sum over micro-batches and ranks, and its metrics.
    """
    mask = decisions.loss_mask
    weights, train_mask = importance_weights(proximal_log_ratio, mask, level, max_weight, min_ratio, max_ratio)
    used_weights = torch.where(train_mask, weights, 0.0)
    # A weight is positive, so that weighting an advantage weighs the surrogate.
    weighted = replace(
        decisions,
        log_ratio=torch.where(train_mask, decisions.log_ratio - proximal_log_ratio, 0.0),
        logprobs=torch.where(train_mask, decisions.logprobs, 0.0),
        advantages=torch.where(train_mask, decisions.advantages * weights, 0.0),
    )
    loss, metrics = surrogate_loss(surrogate, weighted)
    return loss, metrics | {
        "correction/mean": used_weights.sum(),
        "correction/mean_square": used_weights.square().sum(),
        "correction/truncated": ((weights >= max_weight) & train_mask).float().sum(),
        "correction/masked": (mask & ~train_mask).float().sum(),
    }
