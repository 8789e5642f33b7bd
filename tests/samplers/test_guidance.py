"""Action guidance of flow models: what is drawn, and that rescoring finds the same."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.algorithm.flow_steps import SDE_KINDS, noise_levels, ode_step
from rlir_ray.config import Config, FlowConfig
from rlir_ray.families import family_of, make_objective, open_policy
from rlir_ray.learner.batches import StepBatch, trained_decisions
from rlir_ray.learner.step import Learner
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.models.oasis_policy import OasisPolicy
from rlir_ray.models.rescoring import FlowRescorer
from rlir_ray.samplers.flow import FlowSampler
from rlir_ray.spaces.layouts import NO_ACTION
from rlir_ray.spaces.vpt import VPT_SPACE
from rlir_ray.trajectory import FlowRecord, TrajectoryGroup
from tests.fakes import tiny_flow_model, tiny_flow_prompts
from tests.world import MakeConfig, flow_overrides

SCALE = 2.5
FLOW = FlowConfig(num_steps=4, window=2, noise_level=0.5, history_noise=0.0, guidance_rescale=0.7)


def oasis_model(max_frames: int = 3) -> OasisPolicy:
    """A model of Oasis' form for latents of 4 x 6 x 8, with open gates."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"input_h": 6, "input_w": 8, "in_channels": 4, "hidden_size": 32, "depth": 2, "num_heads": 2}
        model = OasisPolicy(**sizes, max_frames=max_frames)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def tensors(group: TrajectoryGroup) -> FlowRecord[torch.Tensor]:
    columns = (getattr(group.record, each.name) for each in fields(group.record))
    return FlowRecord(*(None if column is None else torch.from_numpy(column) for column in columns))  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("make", [tiny_flow_model, oasis_model])
def test_a_hidden_action_is_neither_doing_nothing_nor_any_other(make: Any) -> None:
    model = make()
    nothing = torch.from_numpy(model.layout.classes(VPT_SPACE.nothing(3))).expand(2, -1, -1)
    latents, levels = torch.randn(2, 3, 4, 6, 8, generator=torch.Generator().manual_seed(0)), torch.full((2, 3), 0.5)
    hidden = nothing.clone()
    hidden[0, 1] = NO_ACTION
    plain, found = model(latents, levels, nothing), model(latents, levels, hidden)
    changed = (plain - found).abs().amax((2, 3, 4)) > 1e-4
    assert changed.tolist() == [[False, True, True], [False, False, False]]


@torch.no_grad()
def test_a_guided_frame_hides_its_own_action_alone() -> None:
    """Every step from two whole passes without a cache, of which the second hides the action into the last frame."""
    model, (prompt,) = tiny_flow_model(), tiny_flow_prompts(1, num_context=2)
    sampler = FlowSampler(model, replace(FLOW, guidance_rescale=0.0), explore=False, guidance=SCALE)
    group, _ = sampler.sample([prompt], [0], [7], 2)[0]
    draws, layout = sampler._draw([7], 2, 2, 3), model.layout
    classes = np.concatenate([layout.classes(VPT_SPACE.nothing(1)), layout.classes(prompt.actions)])
    actions = torch.from_numpy(classes).expand(2, -1, -1)
    past = torch.from_numpy(prompt.context.astype(np.float32))[None].repeat(2, 1, 1, 1, 1)
    for frame in range(3):
        x, told = draws.start[:, frame], actions[:, : 3 + frame]
        hidden = told.clone()
        hidden[:, -1] = NO_ACTION
        for level, following in itertools.pairwise(noise_levels(4)):
            clip = torch.cat([past, x[:, None]], 1)
            known = torch.zeros(clip.shape[:2])
            known[:, -1] = level
            action, null = (model(clip, known, each)[:, -1] for each in (told, hidden))
            x = ode_step(x, null + SCALE * (action - null), level.expand(2), following.expand(2))
        np.testing.assert_allclose(group.record.latents[:, frame, 0], x, atol=1e-4)
        past = torch.cat([past, x[:, None]], 1)


@pytest.mark.parametrize("kind", SDE_KINDS)
@pytest.mark.parametrize("make", [tiny_flow_model, oasis_model])
def test_rescored_log_probabilities_of_guided_steps_equal_the_sampled_ones(make: Any, kind: str) -> None:
    # The window of the model of Oasis' form slides while the clip is sampled.
    config, model = replace(FLOW, sde=kind), make()
    sampler = FlowSampler(model, config, explore=True, keep_means=True, guidance=SCALE)
    for group, _ in sampler.sample(tiny_flow_prompts(2, num_context=2), [0, 1], [3, 4], 2):
        with torch.no_grad():
            scores = FlowRescorer(config, model.span, SCALE)(model, tensors(group), 6)
            plain = FlowRescorer(config, model.span)(model, tensors(group), 6)
        np.testing.assert_allclose(scores.logprobs, group.behavior_logprobs, atol=1e-5, rtol=0)
        np.testing.assert_allclose(scores.means, group.record.means.reshape(2, 6, -1), atol=1e-4)
        assert (plain.logprobs - scores.logprobs).abs().max() > 1e-3
    assert sampler.difference is not None and sampler.difference.maximum < 1e-5


def test_the_scale_one_is_the_sampler_without_guidance() -> None:
    model, prompts = tiny_flow_model(), tiny_flow_prompts(1)
    one, plain, more = (
        FlowSampler(model, FLOW, explore=True, **options).sample(prompts, [0], [0], 2)[0][0]
        for options in ({"guidance": 1.0}, {}, {"guidance": 1.5})
    )
    np.testing.assert_array_equal(one.record.latents, plain.record.latents)
    np.testing.assert_array_equal(one.behavior_logprobs, plain.behavior_logprobs)
    assert np.abs(more.record.latents - plain.record.latents).max() > 1e-3


def first_update(config: Config, prompts: list[Any]) -> dict[str, float]:
    """Sample a group by the rollout sampler of a run, and train on it once."""
    sampler = family_of(config).rollout_sampler(config, open_policy(config))
    ((group, _),) = sampler.sample(prompts, [0], [3], 4)
    policy = open_policy(config)
    engine = TorchEngine(policy, config.train, config.learner)
    learner = Learner(engine, make_objective(config, policy), config.train, config.learner)
    rewards = np.tile(np.array([[1.0], [-1.0]], np.float32), (2, prompts[0].num_frames))
    advantages = [GroupAdvantages.of_all(rewards)]
    return learner.step(StepBatch([group], advantages, trained_decisions([group], advantages)))


@pytest.fixture
def flow_config(make_config: MakeConfig, checkpoints: Path) -> MakeConfig:
    policy = f"models.policy={checkpoints / 'guided_flow_policy'}"
    return partial(make_config, *flow_overrides(checkpoints), policy, f"rollout.guidance={SCALE}")


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_the_first_update_of_a_guided_flow_run_has_the_ratio_one(flow_config: MakeConfig, penalty: float) -> None:
    config = flow_config("flow.guidance_rescale=0.7", f"train.kl_coefficient={penalty}")
    metrics = first_update(config, tiny_flow_prompts(1))
    assert metrics["ratio/max_abs_log"] < 1e-4 and metrics["grad_norm"] > 0
    assert abs(metrics.get("loss/kl", 0.0)) < 1e-6


def test_a_flow_policy_without_action_dropout_is_refused(flow_config: MakeConfig, checkpoints: Path) -> None:
    family = family_of(flow_config())
    assert family.check_world(flow_config()) == (4, 6, 8)
    for key in ("rollout.guidance", "evaluation.guidance"):
        scales = [f"models.policy={checkpoints / 'flow_policy'}", "rollout.guidance=1", f"{key}=3"]
        with pytest.raises(ValueError, match=rf"{key} must be 1 with a policy .* action dropout, got 3 for .*0\.2$"):
            family.check_world(flow_config(*scales))
