"""Surrogates and advantages against those of verl and TRL (golden files), and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlir_ray.algorithm.advantages import group_advantages, over_batch_std
from rlir_ray.algorithm.losses import KL_ESTIMATORS, kl_loss
from rlir_ray.algorithm.surrogates import CappedWeight, Clipped, Decisions, SequenceClipped, Surrogate, surrogate_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "objectives"
TENSORS = load_file(GOLDEN / "io.safetensors")
SETTINGS = json.loads((GOLDEN / "config.json").read_text())
MASK = TENSORS["tok.mask"].bool()  # [12, 10]; the last row is masked as a whole
NUM_DECISIONS, NUM_ROWS = 82, 12


def golden_decisions(
    policy: Tensor, advantages: Tensor, num_decisions: int = NUM_DECISIONS, num_trajectories: int = NUM_ROWS - 1
) -> Decisions:
    return Decisions(
        log_ratio=policy - TENSORS["tok.old_logp"],
        logprobs=policy,
        advantages=advantages,
        loss_mask=MASK,
        num_decisions=num_decisions,
        num_trajectories=num_trajectories,
    )


class RowMean(Clipped):
    """The clipped ratio, aggregated by trajectories."""

    by_trajectory = True


# Surrogate, and the divisor of the sum over decisions (or over trajectories). The other aggregations of verl and TRL
# are sums over decisions with another divisor: the number of sequences, or of all their tokens, masked ones included.
VERL: dict[str, tuple[Surrogate, int]] = {
    "dual_clip": (Clipped(0.2, 0.28, 3.0), NUM_DECISIONS),
    "dual_clip_seq_mean_token_sum": (Clipped(0.2, 0.2, 3.0), NUM_ROWS - 1),
    "dual_clip_seq_mean_token_mean": (RowMean(0.2, 0.2, 3.0), NUM_ROWS - 1),
    "dual_clip_token_sum_norm": (Clipped(0.2, 0.2, 3.0), 10),
    "gspo": (SequenceClipped(3e-4, 4e-4), NUM_ROWS - 1),
    "gspo_wide": (SequenceClipped(0.2, 0.2), NUM_ROWS - 1),
    "cispo": (CappedWeight(0.28, 0.2), NUM_DECISIONS),
    "cispo_wide": (CappedWeight(4.0), NUM_DECISIONS),
}
TRL: dict[str, tuple[Surrogate, int]] = {
    # TRL counts the sequence that is masked as a whole.
    "sequence": (SequenceClipped(3e-4, 4e-4), NUM_ROWS),
    "sequence_wide": (SequenceClipped(0.2, 0.2), NUM_ROWS),
    "token": (RowMean(0.2, 0.2), NUM_ROWS),
    "token_delta": (Clipped(0.2, 0.2, 3.0), NUM_DECISIONS),
    "dr_grpo": (Clipped(0.2, 0.2), NUM_ROWS * 10),
    "cispo": (CappedWeight(4.0), NUM_DECISIONS),
    "cispo_tight": (CappedWeight(0.28), NUM_DECISIONS),
}


@pytest.mark.parametrize(
    ("name", "surrogate", "divisor"),
    [(f"tok.{name}", *each) for name, each in VERL.items()] + [(f"trl.{name}", *each) for name, each in TRL.items()],
)
def test_losses_and_gradients_are_the_published_ones(name: str, surrogate: Surrogate, divisor: int) -> None:
    policy = TENSORS["tok.new_logp"].clone().requires_grad_()
    advantages = TENSORS["tok.advantage"] if name[:3] == "tok" else TENSORS["trl.advantage"][:, None].expand(12, 10)
    loss, metrics = surrogate_loss(surrogate, golden_decisions(policy, advantages, divisor, divisor))
    loss.backward()
    torch.testing.assert_close(loss.detach(), TENSORS[f"{name}.loss"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(policy.grad, TENSORS[f"{name}.grad_new_logp"], rtol=1e-5, atol=1e-6)
    if name[:3] == "tok":
        published = SETTINGS[name]["actor/pg_clipfrac"] + SETTINGS[name]["actor/pg_clipfrac_lower"]
        assert float(metrics["ratio/clip_fraction"]) / NUM_DECISIONS == pytest.approx(published)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_group_advantages_are_the_published_ones(kind: str) -> None:
    scores, groups = TENSORS["tok.score"].double().numpy()[:, None], TENSORS["tok.group"].numpy()
    published = TENSORS[f"tok.adv_{kind}"].numpy()
    for group in (0, 1, 2):
        rows = groups == group
        found = group_advantages(scores[rows], kind)
        if kind == "grpo":
            # Ours divides by the population's deviation, theirs by the sample's plus 1e-6.
            found = found * (1 - 1 / rows.sum()) ** 0.5
        np.testing.assert_allclose(found * MASK.numpy()[rows], published[rows], atol=5e-6)


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_kl_estimates_are_the_published_ones(name: str) -> None:
    columns = (TENSORS["tok.new_logp"], TENSORS["tok.ref_logp"])
    found = KL_ESTIMATORS[name](columns[1] - columns[0])
    # verl cuts each decision's k3 at 10, which also stops its gradient; ours is not cut.
    expected = TENSORS[f"tok.kl_{name}"]
    torch.testing.assert_close(found.clamp(max=10), expected, rtol=1e-6, atol=1e-6)
    mask, count = torch.ones_like(columns[0], dtype=torch.bool), columns[0].numel()
    torch.testing.assert_close(kl_loss(*columns, mask, count, name)[0], found.mean())


def test_gradients_of_kl_estimates_in_expectation() -> None:
    """Over all tokens of a vocabulary, each with its probability under the policy."""
    generator = torch.Generator().manual_seed(0)
    logits, reference = (torch.randn(50, generator=generator, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_()
    ref = torch.log_softmax(reference, 0)
    policy = torch.log_softmax(logits, 0)
    exact = (policy.exp() * (policy - ref)).sum()
    (slope,) = torch.autograd.grad(exact, logits)
    values, slopes = {}, {}
    for name, estimate in KL_ESTIMATORS.items():
        policy = torch.log_softmax(logits, 0)
        expected = (policy.detach().exp() * estimate(ref - policy)).sum()
        values[name], slopes[name] = float(expected.detach()), torch.autograd.grad(expected, logits)[0]
    for name in ("k1", "k3", "unbiased"):
        assert values[name] == pytest.approx(float(exact.detach()))
    for name in ("k2", "unbiased"):
        torch.testing.assert_close(slopes[name], slope)
    torch.testing.assert_close(slopes["k1"], torch.zeros_like(slope), atol=1e-12, rtol=0)
    assert (slopes["k3"] - slope).abs().max() > 0.1 * slope.abs().max()


def test_rloo_subtracts_the_mean_of_the_others() -> None:
    # 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2
    np.testing.assert_allclose(group_advantages(np.array([[1.0], [2.0], [6.0]]), "rloo"), [[-3], [-1.5], [4.5]])


def test_batch_std_is_the_baseline_form_of_reinforce_plus_plus() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 8, 1))
    found = np.stack(over_batch_std([group_advantages(group, "batch_std") for group in scores]))
    # Its steps: subtract the group mean; subtract the mean of the step and divide by its sample deviation.
    centred = scores - scores.mean(1, keepdims=True)
    whitened = (centred - centred.mean()) / centred.std(ddof=1)
    np.testing.assert_allclose(found, whitened * (24 / 23) ** 0.5, rtol=1e-5, atol=1e-6)


def test_micro_batches_add_up_to_the_whole_whatever_the_aggregation() -> None:
    for surrogate in (Clipped(0.2, 0.28, 3.0), SequenceClipped(0.01, 0.01), CappedWeight(0.5)):
        whole = golden_decisions(TENSORS["tok.new_logp"], TENSORS["tok.advantage"])
        parts = [
            Decisions(
                **{name: getattr(whole, name)[rows] for name in ("log_ratio", "logprobs", "advantages", "loss_mask")},
                num_decisions=whole.num_decisions,
                num_trajectories=whole.num_trajectories,
            )
            for rows in (slice(0, 5), slice(5, 12))
        ]
        summed = sum(surrogate_loss(surrogate, part)[0] for part in parts)
        torch.testing.assert_close(summed, surrogate_loss(surrogate, whole)[0])


def test_masked_decisions_touch_no_surrogate() -> None:
    for surrogate in (Clipped(0.2, 0.28, 3.0), SequenceClipped(0.01, 0.01), CappedWeight(0.5)):
        policy = torch.tensor([[-1.0, float("-inf"), -2.0], [-1.0, -1.0, -1.0]], requires_grad=True)
        mask = torch.tensor([[True, False, True], [False, False, False]])
        decisions = Decisions(
            log_ratio=policy - torch.tensor([[-1.0, 50.0, -2.0], [float("inf"), 0, 0]]),
            logprobs=policy,
            advantages=torch.tensor([[1.0, 1e9, 1.0], [1e9, 1e9, 1e9]]),
            loss_mask=mask,
            num_decisions=2,
            num_trajectories=1,
        )
        loss, metrics = surrogate_loss(surrogate, decisions)
        loss.backward()
        # Ratios of 1: each of two decisions has the gradient -1 / 2.
        torch.testing.assert_close(policy.grad, torch.tensor([[-0.5, 0, -0.5], [0, 0, 0]]))
        assert metrics["decisions"] == 2 and metrics["ratio/clip_fraction"] == 0


def test_a_decision_beyond_the_clip_trains_with_a_capped_weight_alone() -> None:
    gradients = []
    for surrogate in (Clipped(0.2, 0.28), CappedWeight(0.28)):
        policy = torch.tensor([[2.0]], requires_grad=True)
        decisions = Decisions(
            log_ratio=policy,
            logprobs=policy,
            advantages=torch.ones(1, 1),
            loss_mask=torch.ones(1, 1, dtype=torch.bool),
            num_decisions=1,
            num_trajectories=1,
        )
        surrogate_loss(surrogate, decisions)[0].backward()
        gradients.append(policy.grad.item())
    assert gradients == pytest.approx([0, -1.28])
