"""Off-policy correction: what to make of decisions that an older policy took. Tensors and floats in.

Three policies: behavior (that sampled), proximal (around which the clip lies) and current (that the gradient is of).
There is one update for each set of groups, so that the proximal policy is the learner's at the start of the step: its
log-probabilities are the current ones without their gradient.
Legend: B trajectories, T decisions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlir_ray.algorithm.losses import MAX_LOG_RATIO, Metrics, ratio_metrics


def importance_weights(
    log_ratio: Tensor, loss_mask: Tensor, level: str, max_weight: float, min_ratio: float, max_ratio: float
) -> tuple[Tensor, Tensor]:
    """Truncated importance weights from the behavior to the proximal policy, and which decisions they let train.

    By decision: the ratio itself, which decouples the clip from the age of the samples
    (https://arxiv.org/abs/2110.00641, for language models https://arxiv.org/abs/2505.24298).
    By sequence: the geometric mean of a clip's ratios
    (https://arxiv.org/abs/2507.18071, eq. 7): the plain product of hundreds of them is zero or infinity.

    Args:
        log_ratio: float32 [B, T], proximal over behavior, without gradient.
        loss_mask: bool [B, T].
        level: `token`, a decision's own weight, or `sequence`, the same one for all of a clip.
        max_weight: weights are truncated here, which bounds the variance for a little bias.
        min_ratio, max_ratio: what lies outside does not train at all.

    Returns:
        float32 [B, T], and bool [B, T]: true where it trains.
    """
    log_ratio = torch.where(loss_mask, log_ratio, 0.0)
    if level == "sequence":
        mean = log_ratio.sum(-1, keepdim=True) / loss_mask.sum(-1, keepdim=True).clamp(min=1)
        log_ratio = mean.expand_as(log_ratio)
    ratio = torch.exp(log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    return ratio.clamp(max=max_weight), loss_mask & (ratio >= min_ratio) & (ratio <= max_ratio)


def decoupled_loss(
    log_ratio: Tensor,
    advantages: Tensor,
    loss_mask: Tensor,
    num_decisions: int,
    *,
    level: str,
    max_weight: float,
    min_ratio: float,
    max_ratio: float,
) -> tuple[Tensor, Metrics]:
    """The surrogate around the proximal policy, each decision weighed by `importance_weights`.

    With one update for each set of groups the proximal policy is the current one: its ratio is 1, and no clip can act.
    What is left out still counts in the normaliser: the gradient of the others must not grow because of it, nor depend
    on which micro-batch or rank it fell into.

    Args:
        log_ratio: float32 [B, T], current over behavior; carries the gradient.
        advantages, loss_mask, num_decisions: as `policy_gradient_loss` takes them.
        level, max_weight, min_ratio, max_ratio: as `importance_weights` takes them.
    """
    behind = log_ratio.detach()
    weights, trains = importance_weights(behind, loss_mask, level, max_weight, min_ratio, max_ratio)
    # The value is a constant 1, the gradient that of the log-probability.
    ratio = torch.exp(torch.where(trains, log_ratio - behind, 0.0))
    loss = -torch.where(trains, ratio * weights * advantages, 0.0).sum() / num_decisions
    used = torch.where(trains, weights, 0.0)
    metrics = {
        "loss/policy": loss.detach() * num_decisions,
        "correction/mean": used.sum(),
        "correction/mean_square": used.square().sum(),
    }
    return loss, {
        **metrics,
        **ratio_metrics(behind, loss_mask),
        "decisions": loss_mask.sum().float(),
        "correction/truncated": ((weights >= max_weight) & trains).float().sum(),
        "correction/masked": (loss_mask & ~trains).float().sum(),
    }
