"""The reference of the KL penalty that follows the policy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlir_ray.config import Config, LearnerConfig, ModelsConfig, PolicyConfig, RolloutConfig, TrainConfig
from rlir_ray.families import make_objective
from rlir_ray.learner.reference import FollowingReference
from rlir_ray.learner.step import Learner
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.transfer.weights import checksum, weights_of
from tests.fakes import tiny_world_model
from tests.learner.test_step import TEMPERATURE, sample

# A large learning rate, so that the policy moves.
TRAIN = TrainConfig(learning_rate=1e-3, warmup_steps=0, group_size=4, kl_coefficient=0.05)


def make(folder: Path, train: TrainConfig) -> tuple[Learner, FollowingReference]:
    policy = tiny_world_model()
    policy.save_pretrained(folder)
    config = Config(
        models=ModelsConfig(policy=str(folder)),
        policy=PolicyConfig(family="autoregressive"),
        rollout=RolloutConfig(temperature=TEMPERATURE),
        learner=LearnerConfig(engine="torch"),
        train=train,
    )
    objective = make_objective(config, policy)
    assert isinstance(objective, FollowingReference)
    return Learner(TorchEngine(policy, train, config.learner), objective, train, config.learner), objective


def test_reference_becomes_the_policy_every_few_steps(tmp_path: Path) -> None:
    learner, objective = make(tmp_path, replace(TRAIN, reference_every=2))
    base = checksum(weights_of(objective.reference))
    penalties = [learner.step(sample())["loss/kl"]]
    assert checksum(weights_of(objective.reference)) == base
    penalties.append(learner.step(sample())["loss/kl"])
    assert checksum(weights_of(objective.reference)) == checksum(learner.weights()) != base
    penalties += [learner.step(sample())["loss/kl"] for _ in range(2)]
    # Steps 1 and 3 start with the reference as the policy.
    assert penalties[0] == pytest.approx(0, abs=1e-6) == penalties[2]
    assert penalties[1] > 1e-4 < penalties[3]
    assert not any(weight.requires_grad for weight in objective.reference.parameters())


def test_reference_may_be_a_moving_average(tmp_path: Path) -> None:
    learner, objective = make(tmp_path, replace(TRAIN, reference_every=1, reference_decay=0.75))
    name = "llama.lm_head.weight"
    expected = learner.weights()[name]
    for _ in range(2):
        learner.step(sample())
        expected = 0.75 * expected + 0.25 * learner.weights()[name]
    np.testing.assert_allclose(weights_of(objective.reference)[name], expected, atol=1e-6)


def test_reference_goes_on_from_a_state(tmp_path: Path) -> None:
    train = replace(TRAIN, reference_every=2)
    (whole, _), (first, _), (second, _) = (make(tmp_path, train) for _ in range(3))
    expected = [whole.step(sample()) for _ in range(4)]
    for _ in range(3):
        first.step(sample())
    second.load_state(first.state())
    # To the last bit: its penalty is the distance from the policy after step 2.
    assert second.step(sample()) == expected[3] and checksum(second.state()) == checksum(whole.state())
