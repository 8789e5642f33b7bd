"""DIAMOND's form against outputs of the published code, and its change of variables against plain steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlir_ray.algorithm.flow_steps import ode_step
from rlir_ray.algorithm.karras_steps import conditioners, flow_velocity, karras_sigmas, level_of, sigma_of
from rlir_ray.models.diamond import Churn, DiamondWorldModel, cut_to_bytes, sample_published
from rlir_ray.models.diamond_network import AdaGroupNorm, SelfAttention

SMALL = Path(__file__).parents[1] / "golden" / "diamond_small"
SETTINGS = json.loads(SMALL.with_suffix(".config.json").read_text())
WEIGHTS = SMALL.with_suffix(".safetensors")
PREFIX = "denoiser.inner_model."
NEAR = 1e-4
LEVEL = 2 / 255


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(SMALL.with_suffix(".io.safetensors"))


@pytest.fixture(scope="module")
def model() -> DiamondWorldModel:
    found = DiamondWorldModel(height=16, width=20, **SETTINGS["inner_model"])
    found.load_state_dict({name.removeprefix(PREFIX): value for name, value in load_file(WEIGHTS).items()})
    return found.eval()


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


def check_bytes(found: Tensor, wanted: Tensor) -> None:
    """Equal, or one level off in fewer than one of a thousand pixels."""
    levels = ((found - wanted) / LEVEL).round()
    assert largest(found - wanted - levels * LEVEL) < 1e-5 and largest(levels) <= 1
    assert float(levels.ne(0).float().mean()) < 1e-3


def given(golden: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return golden["obs"], golden["act"].long()


@torch.inference_mode()
def test_the_denoiser_gives_the_published_outputs(model: DiamondWorldModel, golden: dict[str, Tensor]) -> None:
    wanted = {name.removeprefix("denoise."): value for name, value in golden.items() if name.startswith("denoise.")}
    factors = conditioners(wanted["sigma"], 0.5, 0.3)
    for name in ("c_in", "c_out", "c_skip", "c_noise"):
        assert largest(getattr(factors, name) - wanted[name]) < 1e-6
    arguments = (wanted["noisy"], wanted["sigma"], *given(golden))
    assert largest(model.network_output(*arguments) - wanted["model_output"]) < NEAR
    assert largest(model(*arguments) - wanted["unquantised"]) < NEAR
    check_bytes(cut_to_bytes(model(*arguments)), wanted["quantised"])


@torch.inference_mode()
def test_sizes_that_the_levels_do_not_divide_are_padded(model: DiamondWorldModel, golden: dict[str, Tensor]) -> None:
    (obs, act), noisy = given(golden), golden["denoise.noisy"]
    found = model.network_output(noisy[..., :13, :19], golden["denoise.sigma"], obs[..., :13, :19], act)
    assert largest(found - golden["odd.model_output"]) < NEAR


def part(golden: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    skipped = ("x", "cond", "out")
    names = [name for name in golden if name.startswith(prefix) and name.removeprefix(prefix) not in skipped]
    return {name.removeprefix(prefix): golden[name] for name in names}


@torch.inference_mode()
def test_norm_and_attention_with_several_groups(golden: dict[str, Tensor]) -> None:
    norm, attention = AdaGroupNorm(96, 10), SelfAttention(64)
    norm.load_state_dict(part(golden, "unit.ada."))
    attention.load_state_dict(part(golden, "unit.attn."))
    assert largest(norm(golden["unit.ada.x"], golden["unit.ada.cond"]) - golden["unit.ada.out"]) < NEAR
    assert largest(attention(golden["unit.attn.x"]) - golden["unit.attn.out"]) < NEAR


@torch.inference_mode()
def test_the_loss_of_training_is_the_published_one(model: DiamondWorldModel, golden: dict[str, Tensor]) -> None:
    noisy, sigma = golden["train.noisy"], golden["train.sigma"]
    factors = conditioners(sigma, 0.5, 0.3)
    c_skip, c_out = (factor[:, None, None, None] for factor in (factors.c_skip, factors.c_out))
    target = (golden["train.next_obs"] - c_skip * noisy) / c_out
    loss = (model.network_output(noisy, sigma, *given(golden)) - target).square().mean()
    assert float(loss) == pytest.approx(float(golden["train.loss"]), abs=1e-5)


def test_the_noise_of_the_steps_is_the_published_one(golden: dict[str, Tensor]) -> None:
    for num_steps, name in ((3, "sigmas"), (1, "sigmas_1"), (2, "sigmas_2"), (3, "sigmas_3"), (10, "sigmas_10")):
        torch.testing.assert_close(karras_sigmas(num_steps), golden[name], rtol=1e-5, atol=0)
    found = karras_sigmas(10, sigma_min=1.0, sigma_max=5.0)
    torch.testing.assert_close(found, golden["sigmas_10_max5_min1"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["euler", "heun", "churn"])
def test_the_published_sampler(model: DiamondWorldModel, golden: dict[str, Tensor], name: str) -> None:
    options = SETTINGS["churn_run"]
    churn = Churn(options["s_churn"], options["s_tmin"], options["s_tmax"], options["s_noise"])
    trajectory, denoised = sample_published(
        model,
        *given(golden),
        golden[f"{name}.noise"],
        order=2 if name == "heun" else 1,
        churn=churn if name == "churn" else None,
        churn_noise=golden["churn.eps"],
    )
    check_bytes(denoised, golden[f"{name}.denoised"])
    # A prediction that is one level off moves the step by as much.
    apart = (trajectory - golden[f"{name}.trajectory"]).abs()
    assert float((apart > NEAR).float().mean()) < 1e-3 and largest(apart) < LEVEL + NEAR


def test_the_cut_to_bytes_loses_63_of_256_levels() -> None:
    pictures = torch.arange(256) / 255 * 2 - 1
    cut = cut_to_bytes(pictures)
    assert int(((cut - pictures).abs() > 1e-6).sum()) == 63
    assert cut_to_bytes(torch.tensor([-3.0, 1.01, -1 + 1.9 / 255, -1 + 2.1 / 255])).tolist() == pytest.approx(
        [-1, 1, -1, -1 + 2 / 255]
    )


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        model = DiamondWorldModel()
    assert len(model.state_dict()) == 236
    assert sum(value.numel() for value in model.parameters()) == pytest.approx(4.41e6, abs=5e3)


@pytest.mark.parametrize("number", range(3))
def test_a_euler_step_in_sigma_is_a_euler_step_between_flow_levels(number: int) -> None:
    x, denoised = torch.randn(2, 3, 3, 4, 4, generator=torch.Generator().manual_seed(1)).unbind(0)
    here, there = karras_sigmas(3)[number : number + 2]
    wanted = (x + (there - here) * (x - denoised) / here) / (1 + there)
    found = ode_step(x / (1 + here), flow_velocity(x, denoised, here), level_of(here), level_of(there))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sigma_of(level_of(here)), here)


def test_gradient_checkpointing_changes_no_gradient(model: DiamondWorldModel, golden: dict[str, Tensor]) -> None:
    arguments = [golden["denoise.noisy"], golden["denoise.sigma"], *given(golden)]

    def gradient() -> Tensor:
        model.zero_grad()
        model(*arguments).square().mean().backward()
        return torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])

    plain = gradient()
    calls = 0
    block = model.unet.mid_blocks.resblocks[0]

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = block.register_forward_pre_hook(count)
    model.enable_gradient_checkpointing()
    try:
        torch.testing.assert_close(gradient(), plain, rtol=1e-5, atol=1e-8)
    finally:
        model.disable_gradient_checkpointing()
        hook.remove()
    # Once forward, once again for the gradient.
    assert calls == 2


def test_a_folder_opens_again_with_the_same_outputs(
    tmp_path: Path, model: DiamondWorldModel, golden: dict[str, Tensor]
) -> None:
    model.save_pretrained(tmp_path)
    opened = DiamondWorldModel.from_pretrained(tmp_path).eval()
    arguments = [golden["denoise.noisy"], golden["denoise.sigma"], *given(golden)]
    with torch.inference_mode():
        assert torch.equal(opened(*arguments), model(*arguments))
