"""Off-policy correction: train on decisions that an older policy sampled. Tensors and floats in.

There are three policies: behavior (sampled the decisions), proximal (the centre of the clip) and current (carries the
gradient). Each set of groups is used for one update. Therefore the proximal policy is the learner's policy at the start
of the step, and its log-probabilities are the current ones without their gradient.
Legend: B trajectories, T decisions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlir_ray.algorithm.losses import MAX_LOG_RATIO, Metrics, ratio_metrics


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
    """Compute the surrogate around the proximal policy, each decision weighted by `importance_weights`.

    With one update for each set of groups, the ratio of current to proximal policy is 1, and no clip can act.
    Masked decisions still count in the normaliser `num_decisions`: masking must not increase the gradient of the other
    decisions, and the loss must not depend on the split into micro-batches and ranks.

    Args:
        log_ratio: float32 [B, T], current over behavior; carries the gradient.
        advantages, loss_mask, num_decisions: as `policy_gradient_loss` takes them.
        level, max_weight, min_ratio, max_ratio: as `importance_weights` takes them.
    """
    proximal_log_ratio = log_ratio.detach()
    weights, train_mask = importance_weights(proximal_log_ratio, loss_mask, level, max_weight, min_ratio, max_ratio)
    # The value of the ratio is always 1; its gradient is the gradient of the log-probability.
    ratio = torch.exp(torch.where(train_mask, log_ratio - proximal_log_ratio, 0.0))
    loss = -torch.where(train_mask, ratio * weights * advantages, 0.0).sum() / num_decisions
    used_weights = torch.where(train_mask, weights, 0.0)
    metrics = {
        "loss/policy": loss.detach() * num_decisions,
        "correction/mean": used_weights.sum(),
        "correction/mean_square": used_weights.square().sum(),
    }
    return loss, {
        **metrics,
        **ratio_metrics(proximal_log_ratio, loss_mask),
        "decisions": loss_mask.sum().float(),
        "correction/truncated": ((weights >= max_weight) & train_mask).float().sum(),
        "correction/masked": (loss_mask & ~train_mask).float().sum(),
    }
