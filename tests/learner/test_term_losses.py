"""The losses of several terms of a reward, summed as DanceGRPO does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rlir_ray.algorithm.advantages import step_advantages
from rlir_ray.config import GrpoConfig, OffPolicyConfig, TrainConfig
from rlir_ray.learner.objectives import Columns, PolicyGradient
from rlir_ray.models.rescoring import Scores
from rlir_ray.trajectory import FlowRecord

GOLDEN = Path(__file__).parent.parent / "golden" / "objectives"
TWO = {
    name.removeprefix("two."): value
    for name, value in load_file(GOLDEN / "io.safetensors").items()
    if name.startswith("two.")
}
SETTINGS = json.loads((GOLDEN / "config.json").read_text())["two"]


def test_summed_losses_and_their_gradient_are_those_of_the_published_code() -> None:
    size, bound = SETTINGS["group"], SETTINGS["adv_clip_max"]
    by_term = np.stack([TWO["advantage_a"].numpy(), TWO["advantage_b"].numpy()]).reshape(2, -1, size, 1)
    groups = step_advantages(
        [by_term[:, group] for group in range(by_term.shape[1])],
        kind="grpo",
        max_advantage=bound,
        term_weights=(SETTINGS["coef_a"], SETTINGS["coef_b"]),
    )
    values = torch.from_numpy(np.concatenate([group.values for group in groups]))  # [24, 1]
    terms = torch.from_numpy(np.concatenate([group.terms for group in groups if group.terms is not None], 1))
    torch.testing.assert_close(values[:, 0], TWO["total"], atol=1e-6, rtol=0)

    new = TWO["new_logp"].clone().requires_grad_()
    clip = SETTINGS["clip_range"]
    train = TrainConfig(
        grpo=GrpoConfig(clip_low=clip, clip_high=clip), off_policy=OffPolicyConfig(importance="none"), max_staleness=1
    )
    objective = PolicyGradient(torch.nn.Linear(1, 1), lambda forward, record, num: Scores(logprobs=new[:, None]), train)
    num_clips = len(new)
    empty = torch.zeros(num_clips, 1)
    columns = Columns(
        record=FlowRecord(latents=empty, levels=empty, history=empty, history_levels=empty, actions=empty),
        behavior_logprobs=TWO["old_logp"][:, None],
        loss_mask=torch.ones(num_clips, 1, dtype=torch.bool),
        advantages=values,
        seeds=[0] * num_clips,
        num_trajectories=num_clips,
        term_advantages=terms,
    )
    loss, metrics = objective.loss(lambda *inputs: new, columns, num_clips)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(TWO["loss"].mean()), abs=1e-6)
    assert new.grad is not None
    torch.testing.assert_close(new.grad * num_clips, TWO["grad_new_logp"], atol=1e-6, rtol=1e-5)
    assert float(metrics["loss/policy"]) == pytest.approx(float(TWO["loss"].sum()), abs=1e-5)
    # One loss of the summed advantages has another gradient, because each term is clipped alone.
    new.grad = None
    objective.loss(lambda *inputs: new, replace(columns, term_advantages=None), num_clips)[0].backward()
    assert (new.grad * num_clips - TWO["grad_new_logp"]).abs().max() > 0.1
