"""The pretraining loss on recorded clips in a step of reinforcement learning."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.algorithm.seeds import trajectory_seed
from rlir_ray.config import Config, FlowConfig, LearnerConfig, PolicyConfig, TrainConfig, WorldConfig
from rlir_ray.families import open_clip_loss
from rlir_ray.learner.batches import StepBatch, trained_decisions
from rlir_ray.learner.objectives import PolicyGradient
from rlir_ray.learner.step import Learner
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.models.rescoring import FlowRescorer, Rescore, TokenRescorer
from rlir_ray.pretrain.flow import flow_loss
from rlir_ray.pretrain.settings import FlowTraining, WorldModelTraining
from rlir_ray.pretrain.task import Progress
from rlir_ray.pretrain.world_model import TokenRecordings, WorldModelTask
from rlir_ray.samplers.flow import FlowSampler
from rlir_ray.samplers.torch_sampler import TorchSampler
from rlir_ray.trajectory import FlowRecord, Prompt, TokenRecord, TrajectoryGroup
from rlir_ray.transfer.weights import checksum
from tests.fakes import tiny_flow_model, tiny_flow_prompts, tiny_prompts, tiny_world_model, with_recorded

FLOW = FlowConfig(num_steps=4, window=2, noise_level=0.5)
# The clip of the gradient never acts, and a small step leaves the weights where they are.
TRAIN = TrainConfig(
    learning_rate=1e-6, warmup_steps=0, group_size=4, max_grad_norm=1e9, supervised_coefficient=0.5, max_staleness=0
)
NUM_FRAMES = 3


def config_of(family: str, train: TrainConfig) -> Config:
    learner = LearnerConfig(engine="torch")
    world = WorldConfig(num_frames=NUM_FRAMES)
    return Config(policy=PolicyConfig(family=family), flow=FLOW, world=world, learner=learner, train=train)


def make(family: str, train: TrainConfig = TRAIN, budget: int = 10_000) -> Learner:
    """A learner of a family's tiny policy; rollouts have the temperature 0.8, which pretraining has not."""
    config = config_of(family, train)
    policy: nn.Module = tiny_flow_model() if family == "flow" else tiny_world_model()
    rescore: Rescore = FlowRescorer(FLOW) if family == "flow" else TokenRescorer(0.8)
    learner, clip_loss = replace(config.learner, decision_budget=budget), open_clip_loss(config, policy)
    return Learner(
        TorchEngine(policy, train, learner), PolicyGradient(policy, rescore, train), train, learner, clip_loss
    )


def sample(family: str, num_groups: int, *, num_context: int = 1, scale: float = 0.0) -> StepBatch:
    """Groups with recorded clips, and random advantages times `scale`."""
    make_prompts = tiny_flow_prompts if family == "flow" else tiny_prompts
    prompts = with_recorded(make_prompts(num_groups, num_context=num_context, num_frames=NUM_FRAMES))
    groups = [group for group, _ in sampler_of(family).sample(prompts, range(num_groups), range(num_groups), 4)]
    random = np.random.default_rng(0)
    values = [scale * random.normal(size=(4, NUM_FRAMES)).astype(np.float32) for _ in groups]
    advantages = [GroupAdvantages.of_all(each) for each in values]
    return StepBatch(groups, advantages, trained_decisions(groups, advantages))


def sampler_of(family: str) -> TorchSampler | FlowSampler:
    if family == "flow":
        return FlowSampler(tiny_flow_model(), FLOW, explore=True)
    return TorchSampler(tiny_world_model(), temperature=0.8)


def token_loss(group: TrajectoryGroup, prompt: Prompt) -> tuple[nn.Module, Tensor]:
    """The loss of `pretrain world-model` on a recording that is the group's recorded clip."""
    model, clip = tiny_world_model(), group.recorded
    assert clip is not None
    actions = model.sequence.layout.tokens(prompt.actions, model.sequence.first_action_id)
    # The action into the first frame is not read.
    recording = TokenRecordings(clip, np.concatenate([actions[:1], actions]), np.zeros(1, np.int64), model.sequence)
    settings = WorldModelTraining(
        num_frames=len(clip),
        batch_size=1,
        context_weight=0.0,
        precision="fp32",
        device="cpu",
        hidden_size=8,
        num_heads=1,
        num_layers=1,
        intermediate_size=8,
    )
    task = WorldModelTask(recording, recording, settings)
    task.model = model
    return model, task.loss(Progress(0, 0.0), nullcontext)[0]


def velocity_loss(group: TrajectoryGroup, prompt: Prompt) -> tuple[nn.Module, Tensor]:
    """The loss of `pretrain flow` on the group's recorded clip, with the draws of the learner's first step."""
    model = tiny_flow_model()
    assert group.recorded is not None
    layout = model.layout
    actions = np.concatenate([layout.classes(layout.space.nothing(1)), layout.classes(prompt.actions)])
    generator = torch.Generator().manual_seed(trajectory_seed(group.seed, 4, 0))
    latents = torch.from_numpy(group.recorded.astype(np.float32))
    settings = FlowTraining(history_noise=FLOW.history_noise)
    return model, flow_loss(model, latents[None], torch.from_numpy(actions)[None], generator, settings)


LOSSES: dict[str, Callable[[TrajectoryGroup, Prompt], tuple[nn.Module, Tensor]]] = {
    "autoregressive": token_loss,
    "flow": velocity_loss,
}


@pytest.mark.parametrize("family", LOSSES)
def test_gradient_is_that_of_the_pretraining_loss_on_the_same_clip(family: str) -> None:
    learner, batch = make(family), sample(family, 1)
    prompts = with_recorded((tiny_flow_prompts if family == "flow" else tiny_prompts)(1, num_frames=NUM_FRAMES))
    model, expected = LOSSES[family](batch.groups[0], prompts[0])
    expected.backward()
    seen: dict[str, Tensor] = {}
    for name, weight in learner.engine.module.named_parameters():
        # Without advantages, the policy's loss has no gradient.
        weight.register_hook(lambda gradient, name=name: seen.update({name: seen.get(name, 0) + gradient}))
    metrics = learner.step(batch)
    assert metrics["loss/supervised"] == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(seen[name], 0.5 * weight.grad, rtol=1e-4, atol=1e-6)
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
    assert metrics["grad_norm"] == pytest.approx(0.5 * float(norm), rel=1e-4) and norm > 1e-3


@pytest.mark.parametrize("family", LOSSES)
def test_accumulation_changes_nothing_but_rounding_and_a_clip_counts_once(family: str) -> None:
    # One trajectory, or one clip, a pass.
    whole, parts = make(family), make(family, budget=1)
    batch = sample(family, 3, num_context=2, scale=1.0)
    first, second = whole.step(batch), parts.step(batch)
    assert first == pytest.approx(second, rel=1e-4, abs=1e-6)
    # The mean over the clips, whatever trains beside them.
    alone = make(family).step(sample(family, 3, num_context=2))
    assert first["loss/supervised"] == pytest.approx(alone["loss/supervised"], rel=1e-5)
    # Flow policies draw other levels and noise in each step.
    assert (parts.step(batch)["loss/supervised"] == pytest.approx(first["loss/supervised"], rel=1e-3)) != (
        family == "flow"
    )


def test_step_without_the_coefficient_is_as_before() -> None:
    plain = replace(TRAIN, supervised_coefficient=0.0)
    bare, recorded = make("autoregressive", plain), make("autoregressive", plain)
    batch = sample("autoregressive", 2, scale=1.0)
    without = StepBatch(
        [replace(group, recorded=None) for group in batch.groups], batch.advantages, batch.num_decisions
    )
    first = recorded.step(batch)
    assert first == bare.step(without) and "loss/supervised" not in first
    assert checksum(bare.weights()) == checksum(recorded.weights())


def test_groups_without_a_recorded_clip_and_a_learner_without_the_loss_are_refused_in_one_line() -> None:
    batch = sample("autoregressive", 2)
    groups = [batch.groups[0], replace(batch.groups[1], recorded=None)]
    with pytest.raises(
        ValueError, match=r"groups with a recorded clip, got none in group 1; give your prompts"
    ) as error:
        make("autoregressive").step(StepBatch(groups, batch.advantages, batch.num_decisions))
    assert "\n" not in str(error.value)
    learner = make("autoregressive")
    with pytest.raises(ValueError, match=r"goes with train\.supervised_coefficient > 0, got 0\.5 and no loss"):
        Learner(learner.engine, learner.objective, TRAIN, learner.learner)


def test_family_without_such_a_loss_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlir_ray import families
    from rlir_ray.families.flow import FAMILY

    monkeypatch.setattr(families, "family_of", lambda config: replace(FAMILY, clip_loss=None))
    with pytest.raises(ValueError, match=r"needs a family with clip_loss, got none in policy\.family=flow"):
        open_clip_loss(config_of("flow", TRAIN), tiny_flow_model())


@pytest.mark.parametrize("family", LOSSES)
def test_groups_keep_the_recorded_clip_as_the_prompt_holds_it(family: str) -> None:
    (group,) = sample(family, 1, num_context=2).groups
    prompts = with_recorded(
        (tiny_flow_prompts if family == "flow" else tiny_prompts)(1, num_context=2, num_frames=NUM_FRAMES)
    )
    assert group.recorded is not None and prompts[0].recorded is not None
    np.testing.assert_array_equal(group.recorded, np.concatenate([prompts[0].context, prompts[0].recorded]))
    assert group.recorded.dtype == prompts[0].context.dtype
    assert isinstance(group.record, FlowRecord if family == "flow" else TokenRecord)
