"""Several updates a step: passes over its groups, and minibatches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlir_ray.config import GrpoConfig, OffPolicyConfig, TrainConfig
from rlir_ray.learner.batches import StepBatch, step_batches, trained_decisions
from rlir_ray.learner.step import Learner
from rlir_ray.models.rescoring import TokenRescorer
from rlir_ray.transfer.weights import checksum
from tests.fakes import tiny_world_model
from tests.learner.test_step import TEMPERATURE, TRAIN, make, poisoned, sample

FRESH = replace(TRAIN, max_staleness=0)
# Rates at which a single update moves ratios beyond the clip.
FAST = replace(FRESH, learning_rate=3e-2)


def parts_of(batch: StepBatch, learner: Learner, sizes: list[int]) -> list[StepBatch]:
    return step_batches(batch.groups, batch.advantages, sizes, learner.engine)


def test_the_second_update_on_the_same_groups_has_other_ratios_and_is_clipped() -> None:
    batch = sample()
    one, two = make(train=FAST), make(train=replace(FAST, updates_per_step=2))
    first, second = one.step(batch), two.step(batch)
    assert first["ratio/max_abs_log"] < 1e-4 and "ratio/clip_fraction" not in first
    # Half of the figures are of the first update, whose ratios are 1: at most half of the decisions are clipped.
    assert second["ratio/max_abs_log"] > 0.3 and 0.05 < second["ratio/clip_fraction"] < 0.5
    assert second["decisions"] == first["decisions"] == batch.num_decisions
    # One version for a step, and one AdamW update for a pass.
    assert one.num_steps == two.num_steps == 1
    assert int(two.state()["num_updates"]) == 2 and int(two.state()["num_steps"]) == 1


def test_minibatches_of_fresh_groups_are_separate_optimiser_steps() -> None:
    batch = sample()
    together, apart = make(train=replace(FRESH, num_minibatches=2)), make(train=FRESH)
    parts = parts_of(batch, together, [2, 1])
    assert [part.num_decisions for part in parts] == [2 * 4 * 36, 4 * 36]
    metrics = together.step(*parts)
    alone = [apart.step(part) for part in parts]
    assert checksum(together.weights()) == checksum(apart.weights())
    assert together.num_steps == 1 and apart.num_steps == 2
    assert metrics["decisions"] == batch.num_decisions
    assert metrics["grad_norm"] == pytest.approx(np.mean([each["grad_norm"] for each in alone]))
    # Means over all decisions, and maxima.
    assert metrics["loss/policy"] == pytest.approx(
        (2 * alone[0]["loss/policy"] + alone[1]["loss/policy"]) / 3, rel=1e-5
    )
    assert metrics["ratio/max_abs_log"] == alone[1]["ratio/max_abs_log"] > alone[0]["ratio/max_abs_log"]


def stale_learner(train: TrainConfig) -> Learner:
    """A learner whose policy differs from the policy that sampled the groups."""
    policy = tiny_world_model()
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1.03)
    return make(train=train, policy=policy)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_importance_weights_of_stale_groups_are_those_at_the_start_of_the_step(level: str) -> None:
    train = replace(FAST, max_staleness=1, off_policy=OffPolicyConfig(importance=level))
    one, two = (stale_learner(replace(train, updates_per_step=number)) for number in (1, 2))
    first, second = one.step(sample()), two.step(sample())
    names = ("correction/mean", "correction/truncated", "correction/masked", "effective_sample_size")
    assert 0 < first["effective_sample_size"] < 1
    assert [second[name] for name in names] == pytest.approx([first[name] for name in names], rel=1e-5)
    # The clip acts on policy over proximal, where the second update has moved the policy.
    assert "ratio/clip_fraction" not in first and 0.05 < second["ratio/clip_fraction"] < 0.5
    assert second["ratio/kl"] > 1.5 * first["ratio/kl"]


def watch_updates(learner: Learner) -> list[str]:
    """Return a list that gets the checksum of the weights after each update."""
    found, update = [], learner.engine.optimizer_step

    def watched(rate: float) -> float:
        norm = update(rate)
        found.append(checksum(learner.weights()))
        return norm

    learner.engine.optimizer_step = watched  # type: ignore[method-assign]
    return found


def test_the_first_update_of_several_is_that_of_a_single_one() -> None:
    # Around the proximal policy even a tight clip leaves the first update alone.
    train = replace(TRAIN, grpo=GrpoConfig(clip_low=1e-3, clip_high=1e-3))
    one, two = stale_learner(train), stale_learner(replace(train, updates_per_step=2))
    first, second = watch_updates(one), watch_updates(two)
    one.step(sample())
    two.step(sample())
    assert len(first) == 1 and len(second) == 2
    assert second[0] == first[0] != second[1]


def test_without_importance_weights_the_behavior_policy_stays_the_centre_and_costs_no_pass() -> None:
    policy, calls = tiny_world_model(), []
    train = replace(TRAIN, off_policy=OffPolicyConfig(importance="none"), updates_per_step=2)
    policy.register_forward_hook(lambda *_: calls.append(1))
    make(train=train, policy=policy).step(sample())
    assert len(calls) == 2
    weighted = make(train=replace(train, off_policy=OffPolicyConfig()), policy=policy)
    weighted.step(sample())
    assert len(calls) == 2 + 3


@pytest.mark.parametrize("loss", ["clip", "gspo", "cispo"])
def test_micro_batches_change_nothing_but_rounding(loss: str) -> None:
    train = replace(TRAIN, updates_per_step=2, num_minibatches=2, grpo=GrpoConfig(loss=loss))
    batch = sample()
    found = []
    for budget in (10_000, 80):
        learner = make(budget=budget, train=train)
        found.append(learner.step(*parts_of(batch, learner, [2, 1])))
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-6)


def test_an_update_that_is_skipped_ends_the_step_and_keeps_the_updates_before_it() -> None:
    batch, learner, expected = sample(), make(train=replace(FRESH, updates_per_step=2)), make(train=FRESH)
    good, bad = parts_of(poisoned(batch, 2), learner, [2, 1])
    metrics = learner.step(good, bad)
    assert metrics["updates/skipped"] == 1 and "group 2 " in learner.skipped and learner.num_steps == 1
    assert all(np.isfinite(value) for value in metrics.values())
    expected.step(good)
    assert checksum(learner.weights()) == checksum(expected.weights())
    # The next step starts anew.
    assert learner.step(good)["updates/skipped"] == 0 and not learner.skipped


def test_the_learning_rate_rises_by_steps_and_a_state_goes_on_after_a_step() -> None:
    train = replace(TRAIN, warmup_steps=3, updates_per_step=2, num_minibatches=2)
    whole, first, second = make(train=train), make(train=train), make(train=train)
    parts = parts_of(sample(), whole, [2, 1])
    expected = [whole.step(*parts) for _ in range(2)]
    assert [step["learning_rate"] for step in expected] == pytest.approx(
        [TRAIN.learning_rate / 3, TRAIN.learning_rate * 2 / 3]
    )
    assert first.step(*parts) == expected[0]
    second.load_state(first.state())
    assert second.step(*parts) == expected[1]
    assert checksum(second.state()) == checksum(whole.state())


def test_an_objective_without_a_proximal_policy_takes_several_updates() -> None:
    class Plain:
        """The log-probability, weighed by the advantage."""

        def __init__(self, policy: torch.nn.Module) -> None:
            self.sampling_policy, self.rescore = policy, TokenRescorer(TEMPERATURE)

        def loss(self, forward, columns, num_decisions):  # type: ignore[no-untyped-def]
            found = self.rescore(forward, columns.record, columns.loss_mask.shape[1]).logprobs
            loss = -torch.where(columns.loss_mask, columns.advantages * found, 0.0).sum() / num_decisions
            return loss, {"loss/policy": loss.detach() * num_decisions}

        def end_step(self, step, gathered):  # type: ignore[no-untyped-def]
            self.step = step

    learner, batch = make(train=replace(TRAIN, updates_per_step=3)), sample()
    objective = Plain(learner.engine.module)
    learner.objective = objective  # type: ignore[assignment]
    metrics = learner.step(batch)
    assert metrics["decisions"] == trained_decisions(batch.groups, batch.advantages) and objective.step == 1
    assert metrics["loss/policy"] != 0


def test_more_minibatches_than_groups_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"train.num_minibatches must be at most train.prompts_per_step=8.* got 9; set"
    ):
        TrainConfig(num_minibatches=9)
