"""Objectives that need clean latents only: what a step does to a small flow policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.config import Config, FlowConfig, FpoConfig, LearnerConfig, PolicyConfig, TrainConfig
from rlir_ray.families import family_of, make_objective
from rlir_ray.learner.step import Learner, StepBatch, trained_decisions
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.models.flow_matching import FlowMatcher
from rlir_ray.samplers.base import clip_of
from rlir_ray.testing import check_family, check_objective
from rlir_ray.trajectory import FlowRecord, TrajectoryGroup
from rlir_ray.transfer.weights import checksum, weights_of
from tests.fakes import tiny_flow_model, tiny_flow_prompts
from tests.world import MakeConfig, flow_overrides

FLOW = FlowConfig(num_steps=4, window=2, noise_level=0.5, shared_noise=False)
GOOD = np.array([1.0, -1.0, 1.0, -1.0])


def config_of(objective: str, **train: object) -> Config:
    settings = {"warmup_steps": 0, "group_size": 4, "learning_rate": 1e-4, "max_staleness": 0, "max_advantage": 5.0}
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


def batch_of(groups: list[TrajectoryGroup], values: np.ndarray = GOOD) -> StepBatch:
    """The same advantages of the four clips in each group, for all their frames."""
    advantages = [GroupAdvantages.of_all(np.repeat(values[:, None], 3, 1).astype(np.float32)) for _ in groups]
    return StepBatch(groups, advantages, trained_decisions(groups, advantages))


def learner_of(config: Config, policy: torch.nn.Module | None = None) -> Learner:
    policy = policy or tiny_flow_model()
    engine = TorchEngine(policy, config.train, config.learner)
    return Learner(engine, make_objective(config, policy), config.train, config.learner)


def errors_of(policy: torch.nn.Module, group: TrajectoryGroup) -> np.ndarray:
    """Flow-matching error of each clip [G], at pairs that no training has drawn, the same for all clips."""
    matcher, found = FlowMatcher.of(policy, FLOW, num_pairs=16), []
    for row in range(group.group_size):
        record = clip_of(group.record, row, torch.device("cpu"))
        assert isinstance(record, FlowRecord)
        with torch.no_grad():
            found.append(-matcher.scores(policy, record, [7]).logprobs.mean().item())
    return np.array(found)


@pytest.mark.parametrize("objective", ["cfm_ratio"])
def test_good_clips_are_denoised_better_than_bad_ones_after_some_updates(objective: str) -> None:
    config = config_of(objective, learning_rate=1e-3)
    groups, policy = groups_of(config, num_groups=1), tiny_flow_model()
    learner, before = learner_of(config, policy), errors_of(policy, groups[0])
    for _ in range(5):
        metrics = learner.step(batch_of(groups))
    change = errors_of(policy, groups[0]) - before
    assert max(change[0], change[2]) < min(change[1], change[3])
    assert metrics["matching/error"] > 0


@pytest.mark.parametrize("objective", ["cfm_ratio"])
def test_micro_batches_change_no_step(objective: str) -> None:
    config = config_of(objective)
    small = replace(config, learner=replace(config.learner, decision_budget=3))
    batch = batch_of(groups_of(config))
    first, second = learner_of(config).step(batch), learner_of(small).step(batch)
    assert first == pytest.approx(second, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("objective", ["cfm_ratio"])
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


# ---------------------------------------------------------------------------------------------------------------------
# FPO


@pytest.mark.parametrize("error", ["velocity", "noise"])
@pytest.mark.parametrize("ratio", ["frame", "pair"])
def test_the_ratio_is_one_at_the_sampling_policy_and_that_of_stale_groups_is_not(ratio: str, error: str) -> None:
    config = config_of("cfm_ratio", max_staleness=1, fpo=FpoConfig(ratio=ratio, error=error, num_pairs=4))  # type: ignore[arg-type]
    groups, learner = groups_of(config), learner_of(config)
    first = learner.step(batch_of(groups))
    assert first["ratio/max_abs_log"] < 1e-5 and first["ratio/clip_fraction"] == 0
    assert first["decisions"] == 2 * 4 * 3 * 4 and first["grad_norm"] > 0
    # The same groups again: the learner has moved on, and the ratios of the next step say how far.
    assert learner.step(batch_of(groups))["ratio/max_abs_log"] > 1e-4


def test_a_frames_one_ratio_and_its_pairs_ratios_have_the_same_first_gradient() -> None:
    norms = []
    for ratio in ("frame", "pair"):
        config = config_of("cfm_ratio", fpo=FpoConfig(ratio=ratio))  # type: ignore[arg-type]
        norms.append(learner_of(config).step(batch_of(groups_of(config)))["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_pairs_depend_on_the_clip_alone_and_the_payload_holds_their_seeds() -> None:
    config = config_of("cfm_ratio")
    both, second = groups_of(config), groups_of(config, num_groups=3)[1]
    assert isinstance(both[1].record, FlowRecord) and isinstance(second.record, FlowRecord)
    seeds = both[1].record.pair_seeds
    assert seeds is not None and len(set(seeds.tolist())) == 4
    np.testing.assert_array_equal(seeds, second.record.pair_seeds)  # type: ignore[arg-type]
    np.testing.assert_allclose(both[1].behavior_logprobs, second.behavior_logprobs, atol=1e-5)  # type: ignore[arg-type]


def test_penalty_of_fpo_is_the_distance_of_velocities(checkpoints: object, make_config: MakeConfig) -> None:
    options = [*flow_overrides(checkpoints), "flow.shared_noise=false", "train.objective=cfm_ratio"]  # type: ignore[arg-type]
    config = make_config(*options, "train.kl_coefficient=0.1")
    groups = groups_of(config)
    same, other = learner_of(config), learner_of(config, tiny_flow_model(seed=1))
    assert same.step(batch_of(groups))["loss/kl"] == pytest.approx(0, abs=1e-8)
    assert other.step(batch_of(groups))["loss/kl"] > 1e-4


def test_the_family_keeps_its_contract_with_clean_latents(checkpoints: object, make_config: MakeConfig) -> None:
    options = [*flow_overrides(checkpoints), "flow.shared_noise=false", "train.objective=cfm_ratio"]  # type: ignore[arg-type]
    check_family(make_config(*options), tiny_flow_prompts(2, num_frames=3))
