"""Objectives that need clean latents only: what a step does to a small flow policy."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from rlir_ray.config import Config, FlowConfig, FpoConfig, LearnerConfig, PolicyConfig, RegressionConfig, TrainConfig
from rlir_ray.families import family_of
from rlir_ray.learner.batches import StepBatch, trained_decisions
from rlir_ray.learner.objectives import ObjectiveParts
from rlir_ray.learner.step import Learner
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.local import normalised_advantages
from rlir_ray.models.flow_matcher import FlowMatcher
from rlir_ray.models.rescoring import TokenRescorer
from rlir_ray.registry import load
from rlir_ray.samplers.base import clip_of
from rlir_ray.testing import check_family, check_objective
from rlir_ray.trajectory import FlowRecord, TrajectoryGroup
from rlir_ray.transfer.weights import checksum, weights_of
from tests.fakes import tiny_flow_model, tiny_flow_prompts, tiny_prompts, tiny_world_model
from tests.world import MakeConfig, flow_overrides

FLOW = FlowConfig(num_steps=4, window=2, noise_level=0.5, shared_noise=False)
GOOD = np.array([1.0, -0.5, 0.5, -1.0])
OBJECTIVES = ["cfm_ratio", "flow_dpo", "rwr", "best_of_n"]


def config_of(objective: str, **train: object) -> Config:
    settings = {"warmup_steps": 0, "group_size": 4, "learning_rate": 1e-4, "max_staleness": 0}
    settings |= {"fpo": FpoConfig(num_pairs=2)}
    return Config(
        policy=PolicyConfig(family="flow"),
        flow=FLOW,
        train=TrainConfig(objective=objective, **(settings | train)),  # type: ignore[arg-type]  # checked by pydantic
        learner=LearnerConfig(engine="torch", decision_budget=10_000),
    )


def groups_of(config: Config, model: torch.nn.Module | None = None, num_groups: int = 2) -> list[TrajectoryGroup]:
    sampler = family_of(config).rollout_sampler(config, model or tiny_flow_model())
    numbers = range(num_groups)
    return [group for group, _ in sampler.sample(tiny_flow_prompts(num_groups), numbers, numbers, 4)]


def batch_of(config: Config, groups: list[TrajectoryGroup], values: np.ndarray = GOOD) -> StepBatch:
    """The same advantages of the four clips in each group, for all their frames; of the clips that the step chooses."""
    frames = np.repeat(values[:, None], 3, 1).astype(np.float32)
    advantages = normalised_advantages(config, [frames for _ in groups])
    return StepBatch(groups, advantages, trained_decisions(groups, advantages))


def learner_of(config: Config, policy: torch.nn.Module | None = None) -> Learner:
    policy = policy or tiny_flow_model()
    engine = TorchEngine(policy, config.train, config.learner)
    reference = tiny_flow_model().requires_grad_(False) if config.train.needs_reference else None
    rescore = family_of(config).rescorer(config, policy)
    parts = ObjectiveParts(config=config, policy=policy, rescore=rescore, reference=reference)
    objective = load("objectives", config.train.objective).from_parts(parts)
    return Learner(engine, objective, config.train, config.learner)


def errors_of(policy: torch.nn.Module, group: TrajectoryGroup) -> np.ndarray:
    """Flow-matching error of each clip [G], at pairs that no training has drawn, the same for all clips."""
    matcher, found = FlowMatcher.of(policy, FLOW, num_pairs=16), []
    for row in range(group.group_size):
        record = clip_of(group.record, row, torch.device("cpu"))
        assert isinstance(record, FlowRecord)
        with torch.no_grad():
            found.append(-matcher.scores(policy, record, [7]).logprobs.mean().item())
    return np.array(found)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_updates_raise_the_preference_for_the_good_clip(objective: str) -> None:
    """Its error falls relative to the bad clip's; with the advantages turned round the bad clip is preferred."""
    config, preferences = config_of(objective, learning_rate=1e-3), []
    groups = groups_of(config, num_groups=1)
    before = errors_of(tiny_flow_model(), groups[0])
    for sign in (1, -1):
        policy = tiny_flow_model()
        learner = learner_of(config, policy)
        for _ in range(4):
            metrics = learner.step(batch_of(config, groups, sign * GOOD))
        change = errors_of(policy, groups[0]) - before
        preferences.append(change[3] - change[0])
        assert metrics["matching/error"] > 0
    assert preferences[0] > preferences[1] + 0.05


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_micro_batches_change_no_step(objective: str) -> None:
    config = config_of(objective)
    small = replace(config, learner=replace(config.learner, decision_budget=3))
    batch = batch_of(config, groups_of(config))
    first, second = learner_of(config).step(batch), learner_of(small).step(batch)
    assert first == pytest.approx(second, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_objectives_keep_the_contract_and_remember_nothing(
    make_config: MakeConfig, checkpoints: object, objective: str
) -> None:
    options = [*flow_overrides(checkpoints), "flow.shared_noise=false", f"train.objective={objective}"]  # type: ignore[arg-type]
    config = make_config(*options, "train.group_size=2")
    prompts = tiny_flow_prompts(2, num_frames=3)
    check_objective(objective, config=config, policy=tiny_flow_model(), prompts=prompts)
    learner = learner_of(config_of(objective))
    with pytest.raises(ValueError, match=f"train.objective={objective} remembers nothing, got 'x'; use"):
        learner.objective.load_state({"x": np.zeros(1)})
    assert checksum(learner.weights()) == checksum(weights_of(tiny_flow_model()))


@pytest.mark.parametrize("objective", ["cfm_ratio", "rwr", "best_of_n"])
def test_penalty_is_the_distance_of_velocities_and_zero_at_the_reference(objective: str) -> None:
    config = config_of(objective, kl_coefficient=0.1)
    batch = batch_of(config, groups_of(config, num_groups=1))
    same, other = learner_of(config), learner_of(config, tiny_flow_model(seed=1))
    assert same.step(batch)["loss/kl"] == pytest.approx(0, abs=1e-8)
    assert other.step(batch)["loss/kl"] > 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# FPO


@pytest.mark.parametrize("error", ["velocity", "noise"])
@pytest.mark.parametrize("ratio", ["frame", "pair"])
def test_the_ratio_is_one_at_the_sampling_policy_and_that_of_stale_groups_is_not(ratio: str, error: str) -> None:
    config = config_of("cfm_ratio", max_staleness=1, fpo=FpoConfig(ratio=ratio, error=error, num_pairs=4))  # type: ignore[arg-type]
    groups, learner = groups_of(config), learner_of(config)
    first = learner.step(batch_of(config, groups))
    assert first["ratio/max_abs_log"] < 1e-5 and first["ratio/clip_fraction"] == 0
    assert first["decisions"] == 2 * 4 * 3 * 4 and first["grad_norm"] > 0
    # The same groups again: the learner has moved on, and the ratios of the next step say how far.
    assert learner.step(batch_of(config, groups))["ratio/max_abs_log"] > 1e-4


def test_a_frames_one_ratio_and_its_pairs_ratios_have_the_same_first_gradient() -> None:
    norms = []
    for ratio in ("frame", "pair"):
        config = config_of("cfm_ratio", fpo=FpoConfig(ratio=ratio))  # type: ignore[arg-type]
        norms.append(learner_of(config).step(batch_of(config, groups_of(config)))["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_pairs_depend_on_the_clip_alone_and_the_payload_holds_their_seeds() -> None:
    config = config_of("cfm_ratio")
    both, second = groups_of(config), groups_of(config, num_groups=3)[1]
    assert isinstance(both[1].record, FlowRecord) and isinstance(second.record, FlowRecord)
    seeds = both[1].record.pair_seeds
    assert seeds is not None and len(set(seeds.tolist())) == 4
    np.testing.assert_array_equal(seeds, second.record.pair_seeds)  # type: ignore[arg-type]
    np.testing.assert_allclose(both[1].behavior_logprobs, second.behavior_logprobs, atol=1e-5)  # type: ignore[arg-type]


def test_the_family_keeps_its_contract_with_clean_latents(checkpoints: object, make_config: MakeConfig) -> None:
    options = [*flow_overrides(checkpoints), "flow.shared_noise=false", "train.objective=cfm_ratio"]  # type: ignore[arg-type]
    check_family(make_config(*options), tiny_flow_prompts(2, num_frames=3))


# ---------------------------------------------------------------------------------------------------------------------
# Flow-DPO and regression


def test_a_pair_at_the_reference_has_the_loss_of_a_coin() -> None:
    config = config_of("flow_dpo")
    metrics = learner_of(config).step(batch_of(config, groups_of(config)))
    assert metrics["loss/policy"] == pytest.approx(np.log(2)) and metrics["dpo/margin"] == pytest.approx(0, abs=1e-5)
    assert metrics["decisions"] == 2 * 2 * 3 and metrics["grad_norm"] > 0


def test_pairs_without_a_winner_are_left_out() -> None:
    config = config_of("flow_dpo")
    metrics = learner_of(config).step(batch_of(config, groups_of(config), np.zeros(4)))
    assert metrics["grad_norm"] == 0 and metrics["loss/policy"] == 0


def test_the_clips_of_a_pair_share_levels_and_noise() -> None:
    """A clip that is compared with itself has no gradient, unless its noise differs."""
    config = config_of("flow_dpo")
    (group,) = groups_of(config, num_groups=1)
    twice = {
        each.name: np.stack([column[0]] * 4)
        for each in fields(group.record)
        if (column := getattr(group.record, each.name)) is not None
    }
    twin = replace(group, record=replace(group.record, **twice))
    assert learner_of(config).step(batch_of(config, [twin]))["grad_norm"] < 1e-4
    assert learner_of(config).step(batch_of(config, [group]))["grad_norm"] > 1e-2


def test_rewards_weigh_clips_and_the_best_of_n_trains_alone() -> None:
    config = config_of("rwr", regression=RegressionConfig(temperature=0.5, max_weight=5.0))
    metrics = learner_of(config).step(batch_of(config, groups_of(config)))
    # exp of 2, -1, 1 and -2, the first cut to 5.
    assert metrics["rwr/weight"] == pytest.approx((5 + np.exp(-1) + np.exp(1) + np.exp(-2)) / 4)
    assert metrics["rwr/truncated"] == 0.25 and metrics["decisions"] == 2 * 4 * 3
    config = config_of("best_of_n")
    assert learner_of(config).step(batch_of(config, groups_of(config)))["decisions"] == 2 * 3


@pytest.mark.parametrize("objective", ["rwr", "best_of_n"])
def test_tokens_of_the_best_clip_become_likelier(objective: str) -> None:
    check_objective(objective)
    train = TrainConfig(objective=objective, group_size=4, learning_rate=1e-3, warmup_steps=0, kl_coefficient=0.1)
    config = Config(train=train, learner=LearnerConfig(engine="torch"))
    policy, rescore = tiny_world_model(), TokenRescorer(1.0)
    ((group, _),) = family_of(config).rollout_sampler(config, policy).sample(tiny_prompts(1), [0], [0], 4)
    parts = ObjectiveParts(config=config, policy=policy, rescore=rescore, reference=tiny_world_model())
    objective_of = load("objectives", objective).from_parts(parts)
    learner = Learner(TorchEngine(policy, train, config.learner), objective_of, train, config.learner)
    for _ in range(3):
        metrics = learner.step(batch_of(config, [group]))
    record = clip_of(group.record, 0, torch.device("cpu"))
    with torch.no_grad():
        after = rescore(policy, record, group.loss_mask.shape[1]).logprobs.numpy()
    assert (after - group.behavior_logprobs[:1]).mean() > 1e-3  # type: ignore[index]  # tokens have them
    assert metrics["loss/kl"] > 0 and metrics["matching/error"] > 0
