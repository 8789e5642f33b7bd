"""Oasis' form against outputs of the published code; the cache and the change of variables against plain passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlir_ray.algorithm.diffusion_steps import (
    data_shares,
    ddim_step,
    flow_level,
    flow_velocity,
    from_flow,
    share_at,
    step_times,
    times_of,
)
from rlir_ray.algorithm.flow_steps import ode_step
from rlir_ray.models.oasis import OasisAutoencoder, OasisWorldModel, sample_published
from rlir_ray.published.oasis import load_oasis

SMALL = Path(__file__).parents[1] / "golden" / "oasis_small"
CONFIG = SMALL.with_suffix(".config.json")
WEIGHTS = {part: SMALL.with_name(f"oasis_small_{part}.safetensors") for part in ("dit", "vae")}
NEAR = 1e-4


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(SMALL.with_suffix(".io.safetensors"))


@pytest.fixture(scope="module")
def model() -> OasisWorldModel:
    found = load_oasis("dit", WEIGHTS["dit"], CONFIG)
    assert isinstance(found, OasisWorldModel)
    return found


def largest(difference: Tensor) -> float:
    return float(difference.abs().max())


@torch.inference_mode()
def test_the_world_model_gives_the_published_outputs(model: OasisWorldModel, golden: dict[str, Tensor]) -> None:
    found = model(golden["dit.x"], golden["dit.t"], golden["dit.actions"])
    assert largest(found - golden["dit.out"]) < NEAR


@torch.inference_mode()
def test_the_autoencoder_gives_the_published_outputs(golden: dict[str, Tensor]) -> None:
    model = load_oasis("vae", WEIGHTS["vae"], CONFIG)
    assert isinstance(model, OasisAutoencoder)
    mean, logvar = model.moments(golden["vae.image"])
    assert largest(mean - golden["vae.mean"]) < NEAR and largest(logvar - golden["vae.logvar"]) < NEAR
    assert largest(model.decode_latents(golden["vae.z"]) - golden["vae.decoded"]) < NEAR


def test_the_schedule_is_the_published_one(golden: dict[str, Tensor]) -> None:
    assert largest(data_shares() - golden["alphas_cumprod"]) < 1e-6
    assert step_times(5).flip(0).tolist() == golden["sample.timesteps"].int().tolist()
    assert step_times(10).tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, -1]


def test_the_published_sampler_gives_the_published_frames_while_its_window_slides(
    model: OasisWorldModel, golden: dict[str, Tensor]
) -> None:
    arguments = (golden[f"sample.{name}"] for name in ("prompt", "actions", "noise"))
    assert largest(sample_published(model, *arguments, num_steps=5) - golden["sample.frames"]) < NEAR


def test_a_window_without_an_earlier_frame_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_frames must be at least 2, .*, got 1; use 32"):
        OasisWorldModel(depth=1, max_frames=1)


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        sizes = [sum(part.numel() for part in kind().parameters()) for kind in (OasisWorldModel, OasisAutoencoder)]
    assert sizes == [607_943_744, 229_246_160]


@torch.inference_mode()
def test_frames_after_a_cache_are_those_of_one_pass(model: OasisWorldModel, golden: dict[str, Tensor]) -> None:
    x, times, actions = (golden[f"dit.{name}"] for name in ("x", "t", "actions"))
    _, cache = model.read(x[:, :3], times[:, :3], actions[:, :3])
    _, more = model.read(x[:, 3:4], times[:, 3:4], actions[:, 3:4], torch.tensor([3]), cache=cache)
    cache = cache.append(more).repeat(2)
    last = (part[:, 4:].repeat_interleave(2, 0) for part in (x, times, actions))
    found = model(*last, torch.tensor([4, 5]), cache=cache)
    wanted = model(x, times, actions)[:, 4:].repeat_interleave(2, 0)
    assert largest(found - wanted) < 1e-5


def test_no_frame_depends_on_a_later_one(model: OasisWorldModel, golden: dict[str, Tensor]) -> None:
    x = golden["dit.x"].clone().requires_grad_()
    model(x, golden["dit.t"], golden["dit.actions"])[:, 2].sum().backward()
    assert x.grad is not None
    assert bool(x.grad[:, :3].abs().amax((2, 3, 4)).all()) and not bool(x.grad[:, 3:].any())


def test_gradient_checkpointing_changes_no_gradient(model: OasisWorldModel, golden: dict[str, Tensor]) -> None:
    arguments = [golden[f"dit.{name}"] for name in ("x", "t", "actions")]

    def gradient() -> Tensor:
        model.zero_grad()
        model(*arguments).square().mean().backward()
        return torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])

    plain = gradient()
    model.enable_gradient_checkpointing()
    try:
        torch.testing.assert_close(gradient(), plain, rtol=1e-5, atol=1e-8)
    finally:
        model.disable_gradient_checkpointing()


def to_flow(latents: Tensor, share: Tensor) -> Tensor:
    """A diffusion model's latents in a flow model's variables."""
    return latents / (share.sqrt() + (1 - share).sqrt())


@pytest.mark.parametrize("number", range(10))
def test_a_ddim_step_is_a_euler_step_between_flow_levels(number: int) -> None:
    x, v = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)).unbind(0)
    here, there = share_at(step_times(10))[number : number + 2]
    wanted = to_flow(ddim_step(x, v, here, there), there)
    found = ode_step(to_flow(x, here), flow_velocity(x, v, here), flow_level(here), flow_level(there))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(from_flow(to_flow(x, here), here), x)


def test_the_first_level_lies_below_one_and_the_last_is_zero() -> None:
    found = flow_level(share_at(step_times(10)))
    assert torch.equal(times_of(found), step_times(10))
    levels = found.tolist()
    assert levels[0] == pytest.approx(0.99945, abs=1e-5) and levels[-1] == 0
    assert [round(level, 4) for level in levels[1:4]] == [0.8314, 0.7456, 0.6644]


def test_a_folder_opens_again_with_the_same_outputs(
    tmp_path: Path, model: OasisWorldModel, golden: dict[str, Tensor]
) -> None:
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["max_frames"] == 5
    opened = OasisWorldModel.from_pretrained(tmp_path).eval()
    arguments = [golden[f"dit.{name}"] for name in ("x", "t", "actions")]
    with torch.inference_mode():
        assert torch.equal(opened(*arguments), model(*arguments))
