"""SDE steps against the published systems' (golden files) and against what they promise."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from rlir_ray.algorithm.flow_steps import SDE_KINDS, noise_levels, ode_step, sde_step

GOLDEN = Path(__file__).parents[1] / "golden" / "flow_sde_steps.safetensors"


def golden() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(GOLDEN, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize(("kind", "strength"), [("flow_grpo", "noise_level"), ("dance_grpo", "eta")])
def test_steps_equal_the_published_ones(kind: str, strength: str) -> None:
    tensors, settings = golden()
    levels = tensors[f"{kind}.sigmas"]
    for number in range(int(settings["steps"]) - 1):  # the last one, to pictures, is not in the file
        step = {name.rsplit(".", 1)[1]: t for name, t in tensors.items() if name.startswith(f"{kind}.{number}.")}
        level, following = (levels[number + i].expand(len(step["sample"])) for i in (0, 1))
        found = sde_step(
            kind,
            step["sample"],
            step["velocity"],
            level,
            following,
            float(settings[strength]),
            next_latents=step["prev_sample"],
        )
        torch.testing.assert_close(found.logprobs, step["log_prob"], atol=1e-5, rtol=0)
        if "prev_sample_mean" in step:
            torch.testing.assert_close(found.mean, step["prev_sample_mean"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", SDE_KINDS)
def test_what_was_drawn_scores_the_same_to_the_bit(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, v, noise = torch.randn(3, 2, 3, 4, 2, 2, generator=generator).unbind(0)
    levels = noise_levels(4)
    level, following = levels[1].expand(2, 3), levels[2].expand(2, 3)
    drawn = sde_step(kind, x, v, level, following, 0.4, noise=noise)
    again = sde_step(kind, x, v, level, following, 0.4, next_latents=drawn.latents)
    assert torch.equal(drawn.logprobs, again.logprobs) and drawn.logprobs.shape == (2, 3)


@pytest.mark.parametrize("kind", SDE_KINDS)
def test_noise_is_normal_with_the_stated_mean_and_deviation(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, v, noise = (
        torch.ones(1, 2, 50, 50),
        torch.full((1, 2, 50, 50), 0.5),
        torch.randn(1, 2, 50, 50, generator=generator),
    )
    step = sde_step(kind, x, v, torch.tensor([0.8]), torch.tensor([0.6]), 0.5, noise=noise)
    assert (step.latents - step.mean).std() == pytest.approx(float(step.std), rel=0.03)


@pytest.mark.parametrize("kind", SDE_KINDS)
def test_without_noise_it_is_nearly_the_ode(kind: str) -> None:
    x, v = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0)).unbind(0)
    level, following = torch.full((3,), 0.7), torch.full((3,), 0.5)
    step = sde_step(kind, x, v, level, following, 1e-4, noise=torch.zeros_like(x))
    torch.testing.assert_close(step.latents, ode_step(x, v, level, following), atol=1e-5, rtol=0)


def test_exact_velocity_leads_from_noise_to_data() -> None:
    data, noise = torch.randn(2, 5, 2, 3, 3, generator=torch.Generator().manual_seed(0)).unbind(0)
    x, levels = noise, noise_levels(3, shift=2.0)
    for level, following in itertools.pairwise(levels):
        x = ode_step(x, noise - data, level.expand(5), following.expand(5))
    torch.testing.assert_close(x, data, atol=1e-6, rtol=0)


def test_cps_keeps_the_scheduled_share_of_noise() -> None:
    """With exact answers the latents after a step are (1 - s) data + s noise of unit variance."""
    generator = torch.Generator().manual_seed(0)
    noise, fresh = torch.randn(2, 1, 4, 60, 60, generator=generator).unbind(0)
    data = torch.full_like(noise, 3.0)
    step = sde_step(
        "cps", 0.2 * data + 0.8 * noise, noise - data, torch.tensor([0.8]), torch.tensor([0.5]), 0.6, noise=fresh
    )
    left = (step.latents - 0.5 * data) / 0.5
    assert left.std() == pytest.approx(1, abs=0.02) and left.mean() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("kind", SDE_KINDS)
def test_gradient_pulls_the_mean_towards_what_was_drawn(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, v, noise = torch.randn(3, 2, 4, 2, 2, generator=generator).unbind(0)
    v.requires_grad_(True)
    level, following = torch.full((2,), 0.7), torch.full((2,), 0.5)
    step = sde_step(kind, x, v, level, following, 0.5, noise=noise)
    step.logprobs.sum().backward()
    # d mean / d velocity < 0 in all kinds: a draw above the mean asks for a lower velocity.
    assert torch.equal(v.grad.sign(), -(step.latents - step.mean).detach().sign())


def test_levels_are_the_published_ones_and_those_of_diffusers() -> None:
    tensors, settings = golden()
    levels = noise_levels(int(settings["steps"]), float(settings["shift"]))
    torch.testing.assert_close(levels, tensors["dance_grpo.sigmas"], atol=1e-6, rtol=0)
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(noise_levels(4, 3.0), scheduler.sigmas, atol=1e-6, rtol=0)


def test_step_is_either_drawn_or_scored() -> None:
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="either drawn or scored"):
        sde_step("cps", x, x, torch.ones(1), torch.zeros(1), 0.5)
