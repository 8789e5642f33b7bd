"""Losses on flow-matching errors, against numbers of the authors' own functions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlir_ray.algorithm.flow_losses import cfm_log_ratio, matching_errors
from rlir_ray.algorithm.losses import policy_gradient_loss

GOLDEN = load_file(Path(__file__).parents[1] / "golden/flow_objectives.safetensors")


def expect(found: Tensor, name: str, sign: int = 1) -> None:
    torch.testing.assert_close(found.detach(), sign * GOLDEN[name], rtol=1e-5, atol=1e-6)


def fpo_loss(old: Tensor, new: Tensor, clip: float, ratio: str, bound: float) -> tuple[Tensor, Tensor]:
    """Ratios [10, 6] and loss; one frame of six pairs."""
    mask = torch.ones_like(old, dtype=torch.bool)
    log_ratio = cfm_log_ratio(old - new, mask, 6, ratio, bound)
    advantages = GOLDEN["fpo.advantage"][:, None].expand_as(old)
    loss, _ = policy_gradient_loss(log_ratio, advantages, mask, old.numel(), clip, clip)
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
