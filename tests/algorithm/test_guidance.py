"""Action guidance against Vid2World's sampler (golden file) and against numbers worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from rlir_ray.algorithm.diffusion_steps import ddim_step
from rlir_ray.algorithm.guidance import guided, guided_velocity

GOLDEN = Path(__file__).parents[1] / "golden" / "action_guidance.safetensors"


@pytest.mark.parametrize("name", ["plain", "rescaled"])
def test_velocities_and_steps_equal_the_published_ones(name: str) -> None:
    with safe_open(GOLDEN, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        settings = {key: float(value) for key, value in file.metadata().items()}
    # There the deviation is over channels, frames, height and width together.
    action, null = (tensors[key].flatten(3) for key in ("v_action", "v_null"))
    rescale = settings["rescale"] if name == "rescaled" else 0.0
    found = guided_velocity(action, null, settings["scale"], rescale).view_as(tensors["v_null"])
    torch.testing.assert_close(found, tensors[f"{name}.v"], atol=1e-6, rtol=0)
    # Only the last frame of the window is made.
    after = ddim_step(tensors["x"][:, :, -1], found[:, :, -1], *tensors["shares"])
    torch.testing.assert_close(after, tensors[f"{name}.x_prev_last"], atol=1e-6, rtol=0)


def test_guided_logits_move_the_odds_by_the_scale() -> None:
    # With the action the odds of the ids are 6 : 2, without it 3 : 3; guided by 2 they are 36/3 : 4/3 = 9 : 1.
    logits = guided(torch.tensor([6.0, 2.0]).log(), torch.tensor([3.0, 3.0]).log(), 2.0)
    torch.testing.assert_close(logits.softmax(-1), torch.tensor([0.9, 0.1]))


def test_a_rescaled_velocity_keeps_its_direction_and_part_of_its_deviation() -> None:
    action, null = torch.tensor([1.0, -1.0]).view(2, 1, 1), torch.zeros(2, 1, 1)
    # Guided by 3 the velocity is (3, -3): its deviation is 3 times that with the action. 0.7 * 3 / 3 + 0.3 * 3 = 1.6.
    torch.testing.assert_close(guided_velocity(action, null, 3.0, 0.7).flatten(), torch.tensor([1.6, -1.6]))
    assert guided_velocity(null, null, 3.0, 0.7).abs().max() == 0
