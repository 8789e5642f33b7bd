"""What all trainings of base models share."""

from __future__ import annotations

import pytest
import torch

from rlir_ray.pretrain.loop import clip_gradients


def test_a_gradient_that_is_not_finite_ends_the_training_before_the_update_and_is_named() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    model(torch.ones(1, 2)).sum().backward()
    clip_gradients(model, 1e-3)
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    model.zero_grad()
    (model[0](torch.ones(1, 2)).sum() + (model[1].weight * float("nan")).sum()).backward()
    with pytest.raises(ValueError, match=r"must be finite, got NaN or infinity in 1\.weight;") as refusal:
        clip_gradients(model, 1.0)
    assert "\n" not in str(refusal.value)
