from __future__ import annotations

from math import log

import pytest
import torch
from torch import Tensor

from rlir_ray.algorithm.losses import (
    combine,
    entropy_bonus,
    guarded_log_ratio,
    kl_loss,
    mean_kl_loss,
    nft_errors,
    normalise,
    optimality,
    plain_log_ratio,
    ratio_metrics,
)
from rlir_ray.algorithm.surrogates import Clipped, Decisions, surrogate_loss


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


def clipped_loss(
    log_ratio: Tensor, advantages: Tensor, mask: Tensor, num_decisions: int, low: float, high: float
) -> tuple[Tensor, dict[str, Tensor]]:
    decisions = Decisions(
        log_ratio=log_ratio,
        logprobs=log_ratio,
        advantages=advantages,
        loss_mask=mask,
        num_decisions=num_decisions,
        num_trajectories=1,
    )
    loss, metrics = surrogate_loss(Clipped(low, high), decisions)
    return loss, metrics | ratio_metrics(log_ratio.detach(), mask)


def test_the_surrogate_is_clipped_on_the_side_that_the_advantage_pushes_to() -> None:
    # ratios 2, 0.5, 2, 0.5 with advantages 1, 1, -1, -1, clipped to [0.8, 1.28]:
    # min(2, 1.28) = 1.28; min(.5, .8) = .5; min(-2, -1.28) = -2; min(-.5, -.8) = -.8; sum -1.02, loss 1.02 / 4
    policy = row(log(2), log(0.5), log(2), log(0.5)).requires_grad_()
    loss, metrics = clipped_loss(
        plain_log_ratio(policy, row(0, 0, 0, 0)), row(1, 1, -1, -1), torch.ones(1, 4, dtype=torch.bool), 4, 0.2, 0.28
    )
    assert loss.item() == pytest.approx(0.255)
    assert metrics["ratio/clip_fraction"] == 2
    assert metrics["ratio/max"] == pytest.approx(2) and metrics["ratio/max_abs_log"] == pytest.approx(log(2))
    assert metrics["ratio/mean"] == pytest.approx(5) and metrics["ratio/mean_abs_log"] == pytest.approx(4 * log(2))
    loss.backward()
    # clipped decisions carry no gradient; the others -advantage * ratio / 4
    torch.testing.assert_close(policy.grad, row(0, -0.125, 0.5, 0))


def test_the_loss_is_normalised_by_the_global_count() -> None:
    columns = (row(0, 0), row(1, 3), torch.ones(1, 2, dtype=torch.bool))
    assert clipped_loss(*columns, 2, 0.2, 0.2)[0].item() == pytest.approx(-2)
    assert clipped_loss(*columns, 8, 0.2, 0.2)[0].item() == pytest.approx(-0.5)


def test_masked_decisions_touch_neither_loss_nor_gradient_nor_metrics() -> None:
    policy = torch.tensor([[-1.0, -1.0, float("-inf")]], requires_grad=True)
    mask = torch.tensor([[True, False, False]])
    loss, metrics = clipped_loss(policy - row(-1, 50, 0), row(1, 1e9, 1e9), mask, 1, 0.2, 0.2)
    penalty, _ = kl_loss(policy, row(-1, 50, 0), mask, 1)
    (loss + penalty).backward()
    assert loss.item() == -1 and penalty.item() == 0
    torch.testing.assert_close(policy.grad, row(-1, 0, 0))
    assert metrics["decisions"] == 1 and metrics["ratio/max"] == 1 and metrics["ratio/max_abs_log"] == 0


def test_k3_is_zero_at_the_reference_and_positive_elsewhere() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert kl_loss(row(-1, -2), row(-1, -2), mask, 2)[0].item() == 0
    # d = log 2 and -log 2: (2 - log 2 - 1) + (0.5 + log 2 - 1) = 0.5, over 2 decisions
    policy = row(0, 0).requires_grad_()
    loss, metrics = kl_loss(policy, row(log(2), -log(2)), mask, 2)
    assert loss.item() == pytest.approx(0.25) and metrics["loss/kl"] == pytest.approx(0.5)
    loss.backward()
    # derivative by log policy: 1 - exp(d), over 2
    torch.testing.assert_close(policy.grad, row(-0.5, 0.25))


def test_metrics_of_parts_combine_to_those_of_the_whole() -> None:
    torch.manual_seed(0)
    columns = [torch.randn(6, 5) for _ in range(2)]
    mask = torch.rand(6, 5) > 0.3
    total = int(mask.sum())
    whole_loss, whole = clipped_loss(*columns, mask, total, 0.2, 0.3)
    parts = [
        clipped_loss(*(column[rows] for column in columns), mask[rows], total, 0.2, 0.3)
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole_loss)
    together = combine([metrics for _, metrics in parts])
    for name, value in whole.items():
        torch.testing.assert_close(together[name], value)
    means = normalise(together, total)
    assert means["loss/policy"] == pytest.approx(whole_loss.item(), rel=1e-5)
    assert means["decisions"] == total and means["ratio/max"] == pytest.approx(float(whole["ratio/max"]))


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        clipped_loss(row(0, 0), torch.ones(1, 1), torch.ones(1, 2, dtype=torch.bool), 2, 0.2, 0.2)


def test_guarded_ratio_of_one_step_by_hand() -> None:
    # One latent of two numbers, std 0.5, behavior mean (0, 0), policy mean (0.2, 0.4), drawn (1, 0): log-densities
    # -((.8^2 + .4^2) - (1 + 0)) / 2 / (2 * .25) = 0.2 over; |d|^2 = (.04 + .16) / 2 = 0.1:
    # 0.5 * 0.2 + 0.1 / (2 * 0.5) = 0.2
    drawn, behavior, policy = torch.tensor([[[1.0, 0.0]]]), torch.zeros(1, 1, 2), torch.tensor([[[0.2, 0.4]]])
    logprobs = [-((drawn - mean) ** 2).mean(-1) / (2 * 0.25) for mean in (policy, behavior)]
    found = guarded_log_ratio(*logprobs, policy, behavior, row(0.5))
    assert found.item() == pytest.approx(0.2)


def test_guarded_ratio_has_mean_zero_where_the_plain_one_is_below() -> None:
    generator = torch.Generator().manual_seed(0)
    stds = torch.full((20000, 1), 0.3)
    behavior = torch.zeros(20000, 1, 4)
    policy = behavior + 0.2
    drawn = behavior + 0.3 * torch.randn(behavior.shape, generator=generator)
    logprobs = [-((drawn - mean) ** 2).mean(-1) / (2 * 0.09) for mean in (policy, behavior)]
    assert plain_log_ratio(*logprobs).mean() == pytest.approx(-0.04 / 0.18, abs=0.01)
    assert guarded_log_ratio(*logprobs, policy, behavior, stds).mean() == pytest.approx(0, abs=0.005)


def test_kl_of_means_by_hand() -> None:
    # |d|^2 / (2 std^2): (.04 + .16) / 2 / (2 * .25) = 0.2; the second decision is masked
    policy = torch.tensor([[[0.2, 0.4], [9.0, 9.0]]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    loss, metrics = mean_kl_loss(policy, torch.zeros(1, 2, 2), row(0.5, 0.5), mask, 1)
    assert loss.item() == pytest.approx(0.2) and metrics["loss/kl"] == pytest.approx(0.2)
    loss.backward()
    torch.testing.assert_close(policy.grad, torch.tensor([[[0.4, 0.8], [0.0, 0.0]]]))


def test_nft_loss_and_gradient_of_a_worked_example() -> None:
    # One number: level 0.5, clean 1, noise 3, so noisy 2 and true velocity 2. Old velocity 1: predicts 2 - .5 = 1.5.
    # beta 1, policy velocity v: v+ = v, v- = 2 - v. At v = 1 both errors are 0.5: each term 0.25 / 0.5 = 0.5.
    # d/dv of r (2 - .5 v - 1)^2 / .5 = -r * 2 * .5 * .5 / .5 = -r; of the other, with v- = 2 - v: +(1 - r).
    for good in (1.0, 0.5, 0.0):
        velocity = torch.tensor([[1.0]], requires_grad=True)
        columns = [torch.tensor([[value]]) for value in (1.0, 2.0)]
        loss = nft_errors(velocity, *columns, torch.tensor([0.5]), torch.tensor([[1.0]]), torch.tensor([good]), 1.0)
        loss.sum().backward()
        assert loss.item() == pytest.approx(0.5)
        # A good clip pulls the velocity up to the true one, a bad one pushes it away, an average one does nothing.
        assert velocity.grad.item() == pytest.approx(1 - 2 * good)


def test_optimality_is_the_place_of_an_advantage_in_its_bounds() -> None:
    assert optimality(torch.tensor([-9.0, -5.0, 0.0, 2.5, 9.0]), 5.0).tolist() == [0, 0, 0.5, 0.75, 1]


def test_entropy_of_drawn_decisions_and_its_gradient() -> None:
    logits = torch.tensor([0.5, -0.3, 1.2], dtype=torch.float64, requires_grad=True)
    logprobs = torch.log_softmax(logits, 0)
    entropy = -(logprobs.exp() * logprobs).sum()
    (wanted,) = torch.autograd.grad(entropy, logits, retain_graph=True)
    # The mean over all draws, each with its probability.
    found, value = torch.zeros_like(logits), 0.0
    for draw in range(3):
        bonus, metrics = entropy_bonus(logprobs[draw][None, None], torch.ones(1, 1, dtype=torch.bool), 1)
        (gradient,) = torch.autograd.grad(bonus, logits, retain_graph=True)
        found += logprobs[draw].exp().detach() * gradient
        value += float((logprobs[draw].exp() * metrics["entropy/mean"]).detach())
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    assert value == pytest.approx(float(entropy), abs=1e-6)


def test_masked_decisions_have_no_entropy() -> None:
    logprobs = torch.tensor([[-1.0, -torch.inf], [-3.0, -2.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    bonus, metrics = entropy_bonus(logprobs, mask, 3)
    assert float(metrics["entropy/mean"]) == 6 and float(bonus.detach()) == pytest.approx(-(1 + 9 + 4) / 3)
