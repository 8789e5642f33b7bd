"""Losses over decisions: tensors and floats in, a loss and metrics out. They do not depend on the model family.

Metrics are sums over decisions, or maxima if the name contains `max`, so that micro-batches and ranks can be combined.
Legend: B trajectories, T decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Metrics = dict[str, Tensor]

# The bounds of a log-ratio before `exp`, and of a decision's KL (both as in verl): one decision that sampler and
# learner score very differently must not make a loss or a metric infinite.
MAX_LOG_RATIO, MAX_KL = 20.0, 10.0


def plain_log_ratio(policy_logprobs: Tensor, behavior_logprobs: Tensor) -> Tensor:
    """Compute log(policy / behavior), [B, T] each; `policy_logprobs` carries the gradient."""
    # In bfloat16 the difference of two log-probabilities is mostly rounding error.
    return policy_logprobs.float() - behavior_logprobs.float()


def guarded_log_ratio(
    policy_logprobs: Tensor, behavior_logprobs: Tensor, policy_means: Tensor, behavior_means: Tensor, stds: Tensor
) -> Tensor:
    """Compute GRPO-Guard's normalised log-ratio of SDE steps (https://arxiv.org/abs/2510.22319, RatioNorm).

    Its mean is zero and its variance is the same at every step. A plain log-ratio has the mean -|d|^2 / (2 std^2),
    where d is the difference of the means: most ratios are below 1, and the upper clip does not act on good samples.

    Args:
        policy_logprobs, behavior_logprobs: [B, T], means over the latent's numbers.
        policy_means, behavior_means: [B, T, N], means of the steps' distributions; N numbers a latent.
        stds: [B, T], standard deviations of both distributions.
    """
    same_shapes(policy_logprobs, behavior_logprobs, stds)
    distance = (policy_means.float() - behavior_means.float()).square().mean(-1)  # [B, T]
    return stds * (policy_logprobs.float() - behavior_logprobs.float()) + distance / (2 * stds)


def noise_weights(stds: Tensor) -> Tensor:
    """Compute TempFlow-GRPO's weights of SDE steps (https://arxiv.org/abs/2508.04324): the noise, with the mean 1.

    Without weights, a step's gradient grows as its noise falls, so that late steps, which change the picture least,
    train most.

    Args:
        stds: [B, T], standard deviations of the noise of a trajectory's steps.
    """
    return stds / stds.mean(1, keepdim=True)


def ratio_metrics(log_ratio: Tensor, loss_mask: Tensor) -> Metrics:
    """Measure the distance between the current policy and the behavior policy.

    `ratio/kl` estimates KL(behavior || policy) by k3, ratio - 1 - log ratio (http://joschu.net/blog/kl-approx.html),
    clamped as in verl. `ratio/histogram` counts decisions by log-ratio; `normalise` computes quantiles from this
    histogram, because quantiles themselves cannot be summed over micro-batches and ranks.

    Args:
        log_ratio: [B, T], policy over behavior, without gradient.
        loss_mask: bool [B, T].
    """
    log_ratio = torch.where(loss_mask, log_ratio, 0.0)
    cut = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = torch.exp(cut)
    edges = _log_ratio_edges().to(log_ratio.device)
    bins = torch.bucketize(log_ratio[loss_mask].float(), edges)
    return {
        "ratio/mean": (ratio * loss_mask).sum(),
        "ratio/kl": ((ratio - 1 - cut).clamp(max=MAX_KL) * loss_mask).sum(),
        "ratio/max": _maximum(ratio * loss_mask),
        "ratio/mean_abs_log": log_ratio.abs().sum(),
        "ratio/max_abs_log": _maximum(log_ratio.abs()),
        "ratio/histogram": torch.bincount(bins, minlength=len(edges) + 1).float(),
    }


def _log_ratio_edges() -> Tensor:
    """Return the edges of the histogram's bins: twenty a decade of |log ratio|, from 1e-6 to 10, on both sides of 0."""
    positive = torch.logspace(-6, 1, 7 * 20 + 1)
    return torch.cat([-positive.flip(0), positive])


def ratio_quantiles(histogram: Tensor) -> dict[str, float]:
    """Compute the ratio's quantiles from `ratio/histogram`; a log-ratio is exact to a tenth of its size.

    Example: a third of the decisions each at the log-ratios -.1, 0 and .1: `ratio/q50` is 1, `ratio/q99` about 1.1.
    """
    edges = _log_ratio_edges()
    middles = torch.cat([edges[:1], (edges[:-1] + edges[1:]) / 2, edges[-1:]])
    shares = histogram.cumsum(0) / histogram.sum().clamp(min=1)
    places = {name: int((shares >= share - 1e-6).float().argmax()) for name, share in QUANTILES.items()}
    return {name: float(torch.exp(middles[place])) for name, place in places.items()}


def kl_loss(
    policy_logprobs: Tensor, ref_logprobs: Tensor, loss_mask: Tensor, num_decisions: int, estimator: str = "k3"
) -> tuple[Tensor, dict[str, Tensor]]:
    """Estimate KL(policy || reference); the mean over the global number of decisions.

    Args:
        policy_logprobs: [B, T], carries the gradient.
        ref_logprobs: [B, T], under the frozen reference policy.
        loss_mask: bool [B, T].
        num_decisions: unmasked decisions of the whole step.
        estimator: a key of `KL_ESTIMATORS`.
    """
    same_shapes(policy_logprobs, ref_logprobs, loss_mask)
    log_ratio = torch.where(loss_mask, ref_logprobs.float() - policy_logprobs.float(), 0.0)  # [B, T]
    divergence = KL_ESTIMATORS[estimator](log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
    loss = (divergence * loss_mask).sum() / num_decisions
    return loss, {"loss/kl": loss.detach() * num_decisions}


def _k2(log_ratio: Tensor) -> Tensor:
    return log_ratio.square() / 2


def _k3(log_ratio: Tensor) -> Tensor:
    return torch.exp(log_ratio) - log_ratio - 1


def _unbiased(log_ratio: Tensor) -> Tensor:
    k2 = _k2(log_ratio)
    return k2 - k2.detach() + _k3(log_ratio).detach()


KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": torch.neg,
    "k2": _k2,
    "k3": _k3,
    "unbiased": _unbiased,
}
"""train.kl_estimator -> function of d = log reference - log policy, [B, T] (http://joschu.net/blog/kl-approx.html).

k1 = -d is unbiased and has a high variance; its gradient is zero in expectation. k2 = d^2 / 2 is biased, but the
expectation of its gradient is the gradient of the KL. k3 = exp(d) - d - 1 (GRPO, https://arxiv.org/abs/2402.03300,
eq. 4) is unbiased and never negative, but its gradient is not that of the KL. `unbiased` has k3's value and k2's
gradient (verl's `k3+`). All of this holds for decisions that the policy itself has sampled.
"""


def entropy_bonus(policy_logprobs: Tensor, loss_mask: Tensor, num_decisions: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Estimate the entropy of the policy's draws from the drawn decisions alone; the mean over the global number.

    The metric `entropy/mean` is the mean of -log p, which is unbiased for decisions that the policy has drawn. The
    gradient of the returned number is -log p times the gradient of log p, whose mean is the gradient of the entropy
    (the score-function estimator): no second pass over all ids is needed.

    Args:
        policy_logprobs: [B, T], of the drawn decisions; carries the gradient.
        loss_mask: bool [B, T].
        num_decisions: unmasked decisions of the whole update.

    Returns:
        A scalar to add to the objective and to sum over micro-batches and ranks, and its metric.
    """
    same_shapes(policy_logprobs, loss_mask)
    logprobs = torch.where(loss_mask, policy_logprobs.float(), 0.0)  # [B, T]
    drawn = logprobs.detach()
    return -(drawn * logprobs).sum() / num_decisions, {"entropy/mean": -drawn.sum()}


def mean_kl_loss(
    policy_means: Tensor, ref_means: Tensor, stds: Tensor, loss_mask: Tensor, num_decisions: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute KL(policy || reference) of SDE steps exactly: both are normal distributions with the same deviation.

    Flow-GRPO (https://arxiv.org/abs/2505.05470, section 4.3). The KL is the mean over the latent's numbers, like the
    log-probabilities. The authors' code omits the step's length in the deviation: the same coefficient acts several
    times weaker there.

    Args:
        policy_means: [B, T, N], means of the steps' distributions, N numbers a latent; carries the gradient.
        ref_means: [B, T, N], under the frozen reference policy.
        stds: [B, T], standard deviations of both distributions.
        loss_mask: bool [B, T].
        num_decisions: unmasked decisions of the whole step.
    """
    same_shapes(stds, loss_mask)
    divergence = (policy_means.float() - ref_means.float()).square().mean(-1) / (2 * stds.square())  # [B, T]
    loss = torch.where(loss_mask, divergence, 0.0).sum() / num_decisions
    return loss, {"loss/kl": loss.detach() * num_decisions}


def nft_errors(
    velocities: Tensor,
    old_velocities: Tensor,
    noisy: Tensor,
    levels: Tensor,
    clean: Tensor,
    optimality: Tensor,
    beta: float,
) -> Tensor:
    """Compute DiffusionNFT's errors (https://arxiv.org/abs/2509.16117, eq. 8), which need no log-probabilities.

    NFT defines two implicit policies: the positive one lies on the current policy's side of the sampling policy, the
    negative one on the other side. The positive policy learns to predict good clips, the negative policy bad clips.
    Each squared error is divided by the mean absolute error, so that all noise levels weigh the same (as in the
    authors' code).

    Args:
        velocities: [..., N], the policy's velocities, N numbers a latent; carries the gradient.
        old_velocities: [..., N], the sampling policy's velocities.
        noisy: [..., N], the clip's latents at `levels`.
        levels: [...].
        clean: [..., N], the sampled latents.
        optimality: [...], in [0, 1], the paper's r: one half is an average clip.
        beta: distance of the implicit policies from the sampling policy.

    Returns:
        [...], the error of each noised latent; the objective weighs and sums the errors.
    """
    implicit = (beta * velocities + (1 - beta) * old_velocities, (1 + beta) * old_velocities - beta * velocities)
    errors = []
    for velocity in implicit:
        error = noisy - levels[..., None] * velocity - clean
        weight = error.detach().abs().mean(-1).clamp(min=1e-5)
        errors.append(error.square().mean(-1) / weight)
    return (optimality * errors[0] + (1 - optimality) * errors[1]) / beta


def optimality(advantages: Tensor, max_advantage: float) -> Tensor:
    """Compute DiffusionNFT's r: map advantages from ± `max_advantage` to [0, 1]."""
    return (advantages / (2 * max_advantage) + 0.5).clamp(0, 1)


QUANTILES = {"ratio/q01": 0.01, "ratio/q50": 0.5, "ratio/q99": 0.99}


def is_maximum(name: str) -> bool:
    """Return whether a metric is combined by maximum; all others are summed."""
    return "max" in name


def combine(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Combine the metrics of several micro-batches."""
    return {
        name: torch.stack([part[name] for part in parts]).amax(0) if is_maximum(name) else sum(p[name] for p in parts)  # type: ignore[misc]  # not 0: `parts` is not empty
        for name in parts[0]
    }


def normalise(totals: Mapping[str, Tensor], num_decisions: int) -> dict[str, float]:
    """Turn sums into means over the step's decisions; keep maxima and the count of decisions.

    Add the ratio's quantiles. If decisions were weighted, add Kish's effective sample size, as a share of the
    decisions: the squared mean weight over the mean squared weight.
    """
    metrics = {name: float(value) for name, value in totals.items() if name != "ratio/histogram"}
    kept = {name for name in metrics if is_maximum(name) or name == "decisions"}
    means = {name: value if name in kept else value / num_decisions for name, value in metrics.items()}
    if "ratio/histogram" in totals:
        means |= ratio_quantiles(totals["ratio/histogram"].cpu())
    if "correction/mean_square" in totals:
        mean, mean_square = means["correction/mean"], means.pop("correction/mean_square")
        means["effective_sample_size"] = mean**2 / max(mean_square, 1e-12)
    return means


def _maximum(values: Tensor) -> Tensor:
    return values.amax() if values.numel() else values.sum()


def same_shapes(first: Tensor, *others: Tensor) -> None:
    """Check that all columns have one shape [B, T].

    Raises:
        ValueError: a column would be broadcast.
    """
    shapes = [tuple(tensor.shape) for tensor in (first, *others)]
    if first.ndim != 2 or len(set(shapes)) != 1:
        raise ValueError(f"losses take tensors of one shape [B, T], got {shapes}; repeat or slice them first")
