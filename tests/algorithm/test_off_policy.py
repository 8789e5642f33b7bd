"""Importance weights of stale decisions, by hand, and what they are for."""

from __future__ import annotations

from math import exp, isfinite, log

import pytest
import torch
from torch import Tensor

from rlir_ray.algorithm.losses import combine, normalise, ratio_metrics, ratio_quantiles
from rlir_ray.algorithm.off_policy import decoupled_loss, importance_weights
from rlir_ray.algorithm.surrogates import Clipped, Decisions, surrogate_loss
from rlir_ray.config import GrpoConfig, OffPolicyConfig, TrainConfig

WIDE = {"max_weight": 1e9, "min_ratio": 0.0, "max_ratio": 1e9}


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.bool)


def loss_of(
    log_ratio: Tensor, advantages: Tensor, mask: Tensor, num_decisions: int, **correction: object
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one update a step, around the behavior policy or with importance weights."""
    decisions = Decisions(
        log_ratio=log_ratio,
        logprobs=log_ratio,
        advantages=advantages,
        loss_mask=mask,
        num_decisions=num_decisions,
        num_trajectories=len(mask),
    )
    surrogate, before = Clipped(0.2, 0.28), log_ratio.detach()
    if correction.get("level", "none") == "none":
        loss, metrics = surrogate_loss(surrogate, decisions)
    else:
        loss, metrics = decoupled_loss(surrogate, decisions, before, **correction)  # type: ignore[arg-type]
    return loss, metrics | ratio_metrics(before, mask)


def test_weights_by_token_are_the_ratios_truncated_and_outliers_do_not_train() -> None:
    log_ratio = row(log(0.5), log(3), log(10), log(0.1))
    weights, trains = importance_weights(log_ratio, ones(1, 4), "token", 2.0, 0.125, 8.0)
    torch.testing.assert_close(weights, row(0.5, 2, 2, 0.1))
    assert trains.tolist() == [[True, True, False, False]]


def test_weights_by_sequence_are_the_geometric_mean_of_the_decisions_that_train() -> None:
    # Masked: the last one. (4 * 1)^(1/2) = 2 for the first clip; (9 * 9)^(1/2) = 9 for the second, an outlier.
    log_ratio = torch.tensor([[log(4), 0.0, 50.0], [log(9), log(9), 0.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    weights, trains = importance_weights(log_ratio, mask, "sequence", 3.0, 0.125, 8.0)
    torch.testing.assert_close(weights, torch.tensor([[2.0] * 3, [3.0] * 3]))
    assert trains.tolist() == [[True, True, False], [False, False, False]]


def test_with_fresh_groups_the_gradient_is_that_of_the_plain_surrogate() -> None:
    gradients = []
    for level in ("none", "token", "sequence"):
        policy = row(-1.0, -2.0, -0.5).requires_grad_()
        loss, _ = loss_of(policy - policy.detach(), row(1, -2, 0.5), ones(1, 3), 3, level=level, **WIDE)
        loss.backward()
        gradients.append(policy.grad)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0])


def test_the_weighted_gradient_by_hand() -> None:
    # Weights .5 and 2 (3 truncated); the third ratio is masked. -w * A / 3.
    policy = row(log(0.5), log(3), log(20)).requires_grad_()
    loss, metrics = loss_of(
        policy - row(0, 0, 0),
        row(1, -1, 1),
        ones(1, 3),
        3,
        level="token",
        max_weight=2.0,
        min_ratio=0.125,
        max_ratio=8.0,
    )
    loss.backward()
    torch.testing.assert_close(policy.grad, row(-0.5 / 3, 2 / 3, 0))
    assert metrics["correction/truncated"] == 1 and metrics["correction/masked"] == 1
    # The masked one still counts, and the ratios are those to the behavior policy.
    assert metrics["decisions"] == 3 and metrics["ratio/max"] == pytest.approx(20)


def test_weights_make_the_gradient_of_stale_samples_that_of_the_current_policy() -> None:
    """A bandit with three arms, every arm counted with its probability: no draw, no noise."""
    rewards, behavior = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0.6, 0.3, 0.1])
    logits = torch.tensor([0.2, -0.1, 0.4], requires_grad=True)
    (torch.softmax(logits, 0) * rewards).sum().backward()
    assert logits.grad is not None
    exact, found = logits.grad.clone(), {}
    for level in ("none", "token"):
        logits.grad = None
        policy = torch.log_softmax(logits, 0)
        # One row for each arm, weighed by how often the old policy draws it.
        log_ratio = (policy - behavior.log())[:, None]
        loss, _ = loss_of(log_ratio, (behavior * rewards)[:, None], ones(3, 1), 1, level=level, **WIDE)
        (-loss).backward()
        found[level] = logits.grad.clone()
    torch.testing.assert_close(found["token"], exact, rtol=1e-5, atol=1e-6)
    # The clip around the behavior policy drops what has moved far from it.
    assert (found["none"] - exact).abs().max() > 0.01


def test_metrics_of_parts_give_the_sample_size_and_the_quantiles_of_the_whole() -> None:
    torch.manual_seed(0)
    log_ratio, mask = torch.randn(6, 50) * 0.3, torch.rand(6, 50) > 0.3
    total = int(mask.sum())
    bounds = {"max_weight": 1.2, "min_ratio": 0.5, "max_ratio": 1.5}
    parts = [
        loss_of(log_ratio[rows], torch.ones(len(log_ratio[rows]), 50), mask[rows], total, level="token", **bounds)[1]
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    found = normalise(combine(parts), total)
    ratio = torch.exp(log_ratio[mask])
    # The weights that were used: truncated, and none for what lies outside the bounds.
    used = torch.where((ratio >= 0.5) & (ratio <= 1.5), ratio.clamp(max=1.2), 0.0)
    assert found["effective_sample_size"] == pytest.approx(float(used.sum() ** 2 / (total * used.square().sum())))
    for name, share in (("ratio/q01", 0.01), ("ratio/q50", 0.5), ("ratio/q99", 0.99)):
        assert log(found[name]) == pytest.approx(float(torch.quantile(log_ratio[mask], share)), rel=0.15, abs=0.02)
    assert not any("histogram" in name or "square" in name for name in found)


@pytest.mark.parametrize("outlier", [9.2, 25.0, 90.0])
def test_one_outlier_among_many_leaves_the_sample_size_and_every_figure_finite(outlier: float) -> None:
    log_ratio = torch.zeros(1, 12_288)
    log_ratio[0, 0] = outlier
    policy = log_ratio.clone().requires_grad_()
    loss, metrics = loss_of(
        policy,
        ones(1, 12_288).float(),
        ones(1, 12_288),
        12_288,
        level="token",
        max_weight=2.0,
        min_ratio=0.125,
        max_ratio=8.0,
    )
    loss.backward()
    assert policy.grad is not None and bool(policy.grad.isfinite().all())
    found = normalise(metrics, 12_288)
    # It does not train; of the raw ratios the outlier alone would have counted.
    assert found["effective_sample_size"] == pytest.approx(12_287 / 12_288)
    assert all(isfinite(value) for value in found.values())
    assert found["ratio/clip_fraction"] == 0


def test_without_weights_an_outlier_leaves_loss_and_figures_finite_and_there_is_no_sample_size() -> None:
    loss, metrics = loss_of(row(90.0, 0.0), row(-1, 1), ones(1, 2), 2)
    assert isfinite(float(loss)) and all(isfinite(value) for value in normalise(metrics, 2).values())
    assert "effective_sample_size" not in normalise(metrics, 2)


@pytest.mark.parametrize(("noise", "expected"), [(0.05, 0.00125), (0.3, 0.0460), (1.0, 0.5)])
def test_ratio_kl_is_that_of_the_behavior_policy_to_the_current_one(noise: float, expected: float) -> None:
    """Over all tokens of a wide vocabulary, each as often as the behavior policy draws it."""
    generator = torch.Generator().manual_seed(0)
    behavior = torch.log_softmax(torch.zeros(20_000), 0)
    policy = torch.log_softmax(behavior + noise * torch.randn(20_000, generator=generator), 0)
    exact = float((behavior.exp() * (behavior - policy)).sum())
    found = normalise(ratio_metrics((policy - behavior)[None], ones(1, 20_000)), 20_000)["ratio/kl"]
    assert found == pytest.approx(exact, rel=0.02) and found == pytest.approx(expected, rel=0.05)


def test_quantiles_of_few_values() -> None:
    log_ratio = row(-0.1, 0.0, 0.1)
    found = ratio_quantiles(ratio_metrics(log_ratio, ones(1, 3))["ratio/histogram"])
    assert found["ratio/q50"] == pytest.approx(1.0, abs=1e-5)
    assert found["ratio/q01"] == pytest.approx(exp(-0.1), rel=0.01)
    assert found["ratio/q99"] == pytest.approx(exp(0.1), rel=0.01)


def test_auto_corrects_what_can_be_stale_and_has_a_ratio() -> None:
    guard, sequence = GrpoConfig(ratio="guard"), OffPolicyConfig(importance="sequence")
    assert TrainConfig(max_staleness=0).importance_level == "none"
    assert TrainConfig(max_staleness=1).importance_level == "token"
    assert TrainConfig(max_staleness=1, grpo=guard).importance_level == "none"
    assert TrainConfig(max_staleness=0, off_policy=sequence).importance_level == "sequence"
    with pytest.raises(ValueError, match=r"train.grpo.ratio must be plain with train.off_policy.importance"):
        TrainConfig(grpo=guard, off_policy=sequence)
    with pytest.raises(ValueError, match=r"train.off_policy.max_weight must be a finite number >= 1, got 0.5"):
        OffPolicyConfig(max_weight=0.5)
