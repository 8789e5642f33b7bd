"""Losses on flow-matching errors, against numbers of the authors' own functions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlir_ray.algorithm.advantages import advantages_from_rewards, step_advantages
from rlir_ray.algorithm.flow_losses import cfm_log_ratio, dpo_loss, matching_errors, reward_weights
from rlir_ray.algorithm.surrogates import Clipped, Decisions, surrogate_loss

GOLDEN = load_file(Path(__file__).parents[1] / "golden/flow_objectives.safetensors")


def expect(found: Tensor, name: str, sign: int = 1) -> None:
    torch.testing.assert_close(found.detach(), sign * GOLDEN[name], rtol=1e-5, atol=1e-6)


def fpo_loss(old: Tensor, new: Tensor, clip: float, ratio: str, bound: float) -> tuple[Tensor, Tensor]:
    """Ratios [10, 6] and loss; one frame of six pairs."""
    mask = torch.ones_like(old, dtype=torch.bool)
    log_ratio = cfm_log_ratio(old - new, mask, 6, ratio, bound)
    advantages = GOLDEN["fpo.advantage"][:, None].expand_as(old)
    decisions = Decisions(
        log_ratio=log_ratio,
        logprobs=-new,
        advantages=advantages,
        loss_mask=mask,
        num_decisions=old.numel(),
        num_trajectories=len(old),
    )
    loss, _ = surrogate_loss(Clipped(clip, clip), decisions)
    return log_ratio.exp(), loss


def test_fpo_of_the_grid_world() -> None:
    # The authors' time runs the other way, so that their velocity has the other sign.
    levels, noise = 1 - GOLDEN["fpo.t"], GOLDEN["fpo.eps"]
    clean = GOLDEN["fpo.x1"][:, None].expand_as(noise)
    noisy = (1 - levels[..., None]) * clean + levels[..., None] * noise
    expect(noisy, "fpo.x_t")
    velocity = (-GOLDEN["fpo.v_new"]).requires_grad_()
    old, new = (matching_errors(each, clean, noise, levels, "velocity") for each in (-GOLDEN["fpo.v_old"], velocity))
    expect(old, "fpo.loss_old")
    expect(new, "fpo.loss_new")
    new.retain_grad()
    ratio, loss = fpo_loss(old, new, 0.2, "frame", 3.0)
    expect(ratio[:, 0], "fpo.ratio")
    expect(loss, "fpo.objective_loss")
    loss.backward()
    assert new.grad is not None and velocity.grad is not None
    expect(new.grad, "fpo.grad_loss_new")
    expect(velocity.grad, "fpo.grad_v_new", sign=-1)


@pytest.mark.parametrize(("name", "ratio", "bound"), [("mean", "frame", 0.0), ("each", "pair", 3.0)])
def test_fpo_of_the_playground(name: str, ratio: str, bound: float) -> None:
    new = GOLDEN["fpo_jax.loss_new"].clone().requires_grad_()
    found, loss = fpo_loss(GOLDEN["fpo_jax.loss_old"], new, 0.05, ratio, bound)
    expect(found if name == "each" else found[:, :1], f"fpo_jax_{name}.ratio")
    expect(loss, f"fpo_jax_{name}.objective_loss")
    loss.backward()
    assert new.grad is not None
    expect(new.grad, f"fpo_jax_{name}.grad_loss_new")


@pytest.mark.parametrize("error", ["velocity", "noise"])
def test_errors_of_the_playground(error: str) -> None:
    clean = GOLDEN["fpo_jax.x0"][:, None].expand_as(GOLDEN["fpo_jax.eps"])
    expect(
        matching_errors(GOLDEN["fpo_jax.v"], clean, GOLDEN["fpo_jax.eps"], GOLDEN["fpo_jax.t"], error),
        f"fpo_jax.cfm_{error}",
    )


def test_masked_pairs_count_neither_in_a_frames_ratio_nor_in_its_gradient() -> None:
    # Two frames of two pairs; the mean of the first frame is that of its one pair, 4 cut to 3.
    differences = torch.tensor([[4.0, float("inf"), 0.2, 0.4]], requires_grad=True)
    mask = torch.tensor([[True, False, True, True]])
    found = cfm_log_ratio(differences, mask, 2, "frame", 3.0)
    torch.testing.assert_close(found.detach(), torch.tensor([[3.0, 0.0, 0.3, 0.3]]))
    found.sum().backward()
    assert differences.grad is not None
    torch.testing.assert_close(differences.grad, torch.tensor([[0.0, 0.0, 1.0, 1.0]]))


@pytest.mark.parametrize("beta", [100, 5])
def test_flow_dpo(beta: int) -> None:
    levels = GOLDEN["dpo.sigma"]
    clean, noise, reference = (GOLDEN[f"dpo.{name}"].flatten(1) for name in ("x0", "noise", "v_ref"))
    velocity = GOLDEN["dpo.v_theta"].clone().requires_grad_()
    errors = matching_errors(velocity.flatten(1), clean, noise, levels, "velocity")
    ref_errors = matching_errors(reference, clean, noise, levels, "velocity")
    expect(errors, "dpo.mse_theta")
    expect(ref_errors, "dpo.mse_ref")
    winners, losers = (errors - ref_errors).chunk(2)
    losses, margins = dpo_loss(winners, losers, beta)
    torch.testing.assert_close(margins, GOLDEN[f"dpo.beta{beta}.inside"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses.mean().detach(), GOLDEN[f"dpo.beta{beta}.loss"], rtol=1e-5, atol=1e-5)
    losses.mean().backward()
    assert velocity.grad is not None
    torch.testing.assert_close(velocity.grad, GOLDEN[f"dpo.beta{beta}.grad_v_theta"], rtol=1e-4, atol=1e-5)


def test_the_best_and_the_worst_of_each_group_are_the_published_ones_and_constant_groups_are_left_out() -> None:
    for number, (rewards, best, pair) in enumerate(
        zip(*(GOLDEN[f"pairs.{name}"].unflatten(0, (3, 6)).numpy() for name in ("rewards", "sft", "dpo")), strict=True)
    ):
        advantages = advantages_from_rewards(
            np.repeat(rewards[:, None], 2, 1), credit="clip", discount=1, kind="grpo", min_reward_std=1e-6
        )
        if number == 1:
            assert advantages is None and (best == 1).all()
            continue
        assert advantages is not None
        (two,) = step_advantages([advantages], kind="grpo", num_best=1, num_worst=1)
        (one,) = step_advantages([advantages], kind="grpo", num_best=1)
        # Of equally good clips, the published choice is the first: the rewards are compared.
        assert best[one.rows].tolist() == [1]
        assert sorted(rewards[two.rows].tolist()) == [rewards[pair == -1].item(), rewards[pair == 1].item()]


def test_weights_of_regression_by_hand() -> None:
    # exp(1 / .5) = 7.389; exp(4) = 54.6 is cut to 20; exp(-2) = .1353; exp(1e30) is infinite and cut too.
    found = reward_weights(torch.tensor([1.0, 2.0, -1.0, 1e30]), 0.5, 20.0)
    torch.testing.assert_close(found, torch.tensor([7.389056, 20.0, 0.1353353, 20.0]))
