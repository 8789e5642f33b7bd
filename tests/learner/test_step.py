from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.config import GrpoConfig, LearnerConfig, TrainConfig
from rlir_ray.learner.batches import StepBatch, trained_decisions
from rlir_ray.learner.moving_average import decay_at
from rlir_ray.learner.objectives import PolicyGradient
from rlir_ray.learner.step import Learner, learning_rate_at
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.models.adapters import save_whole
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.rescoring import TokenRescorer
from rlir_ray.run.checkpoint import ArrayFile, save_arrays
from rlir_ray.samplers.torch_sampler import TorchSampler
from rlir_ray.transfer.weights import checksum, weights_of
from tests.fakes import tiny_prompts, tiny_world_model

TEMPERATURE = 0.8
# A small learning rate: where a gradient is near 0, AdamW makes rounding as large as an update.
TRAIN = TrainConfig(learning_rate=2e-5, warmup_steps=0, group_size=4)


def sample(num_groups: int = 3, num_context: int = 2) -> StepBatch:
    sampler = TorchSampler(tiny_world_model(), temperature=TEMPERATURE)
    prompts = tiny_prompts(num_groups, num_context=num_context, num_frames=3)
    groups = [group for group, _ in sampler.sample(prompts, range(num_groups), range(num_groups), 4)]
    random = np.random.default_rng(0)
    advantages = [GroupAdvantages.of_all(random.normal(size=(4, 3)).astype(np.float32)) for _ in groups]
    return StepBatch(groups, advantages, trained_decisions(groups, advantages))


def make(
    budget: int = 10_000,
    reference: torch.nn.Module | None = None,
    train: TrainConfig = TRAIN,
    temperature: float = TEMPERATURE,
    policy: WorldModel | None = None,
) -> Learner:
    model, settings = policy or tiny_world_model(), LearnerConfig(engine="torch", decision_budget=budget)
    objective = PolicyGradient(model, TokenRescorer(temperature), train, reference)
    return Learner(TorchEngine(model, train, settings), objective, train, settings)


def test_at_the_first_update_the_ratio_is_one() -> None:
    metrics = make().step(sample())
    assert metrics["ratio/max_abs_log"] < 1e-4
    assert metrics["ratio/mean"] == pytest.approx(1, abs=1e-5) and "ratio/clip_fraction" not in metrics


def test_another_temperature_than_that_of_sampling_is_seen_in_the_ratio() -> None:
    assert make(temperature=1.0).step(sample())["ratio/max_abs_log"] > 0.01


def test_accumulation_changes_nothing_but_rounding() -> None:
    whole, parts = make(), make(budget=80)
    first, second = whole.step(sample()), parts.step(sample())
    assert first == pytest.approx(second, rel=1e-4, abs=1e-6)
    for name, value in whole.weights().items():
        np.testing.assert_allclose(parts.weights()[name], value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("loss", ["gspo", "cispo"])
def test_at_a_ratio_of_one_all_losses_train_alike(loss: str) -> None:
    # 80 decisions: two trajectories of 36 a micro-batch.
    train = replace(TRAIN, max_staleness=0)
    plain, other = make(train=train), make(budget=80, train=replace(train, grpo=GrpoConfig(loss=loss)))
    first, second = plain.step(sample()), other.step(sample())
    assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=1e-4)
    for name, value in plain.weights().items():
        np.testing.assert_allclose(other.weights()[name], value, atol=1e-6, err_msg=name)


def test_masked_decisions_train_nothing() -> None:
    batch = sample()
    mask = np.ones_like(batch.groups[0].loss_mask)
    mask[:, 20:] = False
    poisoned = []
    for group in batch.groups:
        logprobs = np.where(mask, group.behavior_logprobs, 99).astype(np.float32)
        poisoned.append([replace(group, loss_mask=mask), replace(group, loss_mask=mask, behavior_logprobs=logprobs)])
    count = 3 * int(mask.sum())
    clean, changed = make(), make()
    first = clean.step(StepBatch([pair[0] for pair in poisoned], batch.advantages, count))
    second = changed.step(StepBatch([pair[1] for pair in poisoned], batch.advantages, count))
    assert first == second and first["decisions"] == count
    assert checksum(clean.weights()) == checksum(changed.weights())


def test_frame_advantages_reach_all_decisions_of_their_frame() -> None:
    # Only the second of three frames has an advantage: masking the others' decisions must give the same update.
    batch = sample()
    advantages = [GroupAdvantages.of_all(each.values * np.array([0, 1, 0], np.float32)) for each in batch.advantages]
    mask = np.zeros_like(batch.groups[0].loss_mask)
    mask[:, 12:24] = True
    masked = [replace(group, loss_mask=mask) for group in batch.groups]
    first, second = make(), make()
    first.step(StepBatch(batch.groups, advantages, batch.num_decisions))
    second.step(StepBatch(masked, advantages, batch.num_decisions))
    for name, value in first.weights().items():
        np.testing.assert_allclose(second.weights()[name], value, atol=1e-6, err_msg=name)


def test_a_reference_is_kept_only_for_a_penalty_and_stays_frozen() -> None:
    with pytest.raises(ValueError, match="kl_coefficient"):
        make(reference=tiny_world_model(seed=1))
    train = replace(TRAIN, kl_coefficient=0.1)
    with pytest.raises(ValueError, match="kl_coefficient"):
        make(train=train)
    same, other = tiny_world_model(), tiny_world_model(seed=1)
    before = checksum(weights_of(other))
    assert make(reference=same, train=train).step(sample())["loss/kl"] == pytest.approx(0, abs=1e-6)
    assert make(reference=other, train=train).step(sample())["loss/kl"] > 0.1
    assert checksum(weights_of(other)) == before


def test_the_chosen_estimate_of_the_kl_is_used() -> None:
    found = {}
    for name in ("k2", "k3", "unbiased"):
        train = replace(TRAIN, kl_coefficient=0.1, kl_estimator=name)
        found[name] = make(reference=tiny_world_model(seed=1), train=train).step(sample())
    assert found["unbiased"]["loss/kl"] == pytest.approx(found["k3"]["loss/kl"], rel=1e-6)
    assert found["unbiased"]["grad_norm"] == pytest.approx(found["k2"]["grad_norm"], rel=1e-4)
    assert abs(found["k2"]["grad_norm"] / found["k3"]["grad_norm"] - 1) > 0.01


def test_learning_rate_rises_linearly_then_stays() -> None:
    assert [learning_rate_at(step, 3.0, 3) for step in range(5)] == [1, 2, 3, 3, 3]
    assert learning_rate_at(0, 3.0, 0) == 3


def test_a_saved_policy_replaces_the_previous_one_and_opens(tmp_path: Path) -> None:
    learner = make()
    learner.save(tmp_path / "policy")
    learner.step(sample())
    learner.save(tmp_path / "policy")
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert checksum(weights_of(WorldModel.from_pretrained(tmp_path / "policy"))) == checksum(learner.weights())


def test_a_learner_goes_on_from_a_state_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    train = replace(TRAIN, warmup_steps=3)
    whole, first, second = make(train=train), make(train=train), make(train=train)
    expected = [whole.step(sample()) for _ in range(3)]
    assert first.step(sample()) == expected[0]
    save_arrays(tmp_path / "state", first.state())
    second.load_state(ArrayFile(tmp_path / "state"))
    assert checksum(second.weights()) == checksum(first.weights())
    # To the last bit: the moments, the count of updates and the learning rate are those of then.
    assert [second.step(sample()) for _ in range(2)] == expected[1:]
    assert checksum(second.weights()) == checksum(whole.weights())
    assert checksum(second.state()) == checksum(whole.state())


def test_the_average_is_judged_and_saved_and_the_samplers_get_the_policy(tmp_path: Path) -> None:
    train = replace(TRAIN, ema_decay=0.25)
    learner, plain = make(train=train), make()
    averages, seen = [learner.average_weights()], [learner.weights()]
    for _ in range(2):
        assert learner.step(sample()) == plain.step(sample())
        averages.append(learner.average_weights())
        seen.append(learner.weights())
    assert plain.average_weights() == {} and checksum(seen[2]) == checksum(plain.weights())
    # The decay of step 1 is 2 / 11; in step 2 it would be 3 / 12, which is the bound too.
    name = "llama.lm_head.weight"
    np.testing.assert_array_equal(averages[0][name], seen[0][name])
    first = 2 / 11 * seen[0][name] + 9 / 11 * seen[1][name]
    np.testing.assert_allclose(averages[1][name], first, atol=1e-7)
    np.testing.assert_allclose(averages[2][name], 0.25 * first + 0.75 * seen[2][name], atol=1e-7)
    assert np.abs(averages[2][name] - seen[2][name]).max() > 1e-6
    learner.save(tmp_path / "policy")
    assert checksum(weights_of(WorldModel.from_pretrained(tmp_path / "policy"))) == checksum(averages[2])
    # The policy itself is as it was.
    assert checksum(learner.weights()) == checksum(seen[2])


def test_the_decay_rises_to_its_bound() -> None:
    assert [decay_at(step, 0.5) for step in (1, 4, 8, 100)] == [2 / 11, 5 / 14, 0.5, 0.5]


def test_the_average_goes_on_from_a_state_and_belongs_to_its_setting() -> None:
    train = replace(TRAIN, ema_decay=0.5)
    whole, first, second = make(train=train), make(train=train), make(train=train)
    for _ in range(2):
        whole.step(sample())
    first.step(sample())
    second.load_state(first.state())
    assert checksum(second.average_weights()) == checksum(first.average_weights())
    second.step(sample())
    assert checksum(second.average_weights()) == checksum(whole.average_weights())
    with pytest.raises(ValueError, match=r"train\.ema_decay must be that of the checkpoint"):
        make().load_state(first.state())
    with pytest.raises(ValueError, match=r"must hold the moving average .* got 0 or other weights"):
        make(train=train).load_state(make().state())


def test_a_skipped_update_moves_no_average() -> None:
    learner = make(train=replace(TRAIN, ema_decay=0.5))
    learner.step(sample())
    before, batch = checksum(learner.average_weights()), sample()
    batch.groups[0] = replace(batch.groups[0], behavior_logprobs=batch.groups[0].behavior_logprobs * np.nan)
    learner.step(batch)
    assert learner.skipped and checksum(learner.average_weights()) == before


def test_a_state_of_another_policy_is_refused_in_one_line() -> None:
    learner = make()
    state = learner.state()
    name = next(name for name in state if name.startswith("weight/"))
    for other in (
        {key: value for key, value in state.items() if key != name},
        {**state, name: np.zeros((1, 1), np.float32)},
        {**state, "objective/a": np.zeros(1, np.float32)},
    ):
        before = checksum(learner.state())
        with pytest.raises(
            ValueError, match=r"must hold the \d+ arrays that the policy trains|must be \(|remembers nothing"
        ) as refusal:
            learner.load_state(other)
        assert "\n" not in str(refusal.value) and checksum(learner.state()) == before


class FullDisk:
    def save_pretrained(self, folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_previous_policy_and_one_line(tmp_path: Path) -> None:
    save_whole(tiny_world_model(), tmp_path / "policy")
    with pytest.raises(ValueError, match=r"No space left on device.*make room") as failure:
        save_whole(FullDisk(), tmp_path / "policy")
    assert "\n" not in str(failure.value)
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    WorldModel.from_pretrained(tmp_path / "policy")


def test_advantages_that_do_not_fit_are_refused() -> None:
    batch = sample(num_groups=1)
    with pytest.raises(ValueError, match="F dividing T"):
        StepBatch(batch.groups, [GroupAdvantages.of_all(np.zeros((4, 5), np.float32))], 1)
    with pytest.raises(ValueError, match="rows below G"):
        StepBatch(batch.groups, [GroupAdvantages(np.zeros((1, 3), np.float32), np.array([4]))], 1)
    with pytest.raises(ValueError, match="prompts_per_step"):
        StepBatch([], [], 1)


def poisoned(batch: StepBatch, number: int) -> StepBatch:
    """The step with a log-probability of one group that is no number."""
    groups = list(batch.groups)
    logprobs = np.array(groups[number].behavior_logprobs)
    logprobs[0, 0] = np.nan
    groups[number] = replace(groups[number], behavior_logprobs=logprobs)
    return StepBatch(groups, batch.advantages, batch.num_decisions)


def test_an_update_whose_loss_is_not_finite_changes_nothing_and_names_the_group() -> None:
    learner = make(budget=80)
    learner.step(sample())
    before, steps = learner.state(), learner.num_steps
    metrics = learner.step(poisoned(sample(), 1))
    assert "group 1 " in learner.skipped and metrics["updates/skipped"] == 1
    assert all(np.isfinite(value) for value in metrics.values())
    after = learner.state()
    assert int(after.pop("num_steps")) == steps + 1 and before.pop("num_steps") == steps
    assert checksum(after) == checksum(before)
    # The gradient was forgotten: the next update is as if that step had never been.
    undisturbed = make(budget=80)
    undisturbed.step(sample())
    learner.num_steps = undisturbed.num_steps
    assert learner.step(sample())["updates/skipped"] == 0 and not learner.skipped
    undisturbed.step(sample())
    assert checksum(learner.weights()) == checksum(undisturbed.weights())


def test_an_update_with_an_infinite_gradient_is_skipped_and_names_its_parameter() -> None:
    policy = tiny_world_model()
    handle = policy.llama.model.norm.weight.register_hook(lambda gradient: gradient * np.inf)
    learner = make(policy=policy)
    before = checksum(learner.weights())
    assert learner.step(sample())["updates/skipped"] == 1
    assert learner.skipped == "gradient of llama.model.norm.weight is not finite"
    assert checksum(learner.weights()) == before
    handle.remove()
    assert learner.step(sample())["updates/skipped"] == 0 and not learner.skipped


def test_weights_that_are_not_finite_are_not_published_saved_or_loaded(tmp_path: Path) -> None:
    learner = make()
    good = learner.state()
    name = "llama.model.norm.weight"
    with torch.no_grad():
        dict(learner.engine.module.named_parameters())[name][0] = np.inf
    for refused in (learner.weights, learner.state, lambda: learner.save(tmp_path / "policy")):
        with pytest.raises(ValueError, match=f"must be finite, got NaN or infinity in (weight/)?{name}") as refusal:
            refused()
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "policy").exists()
    with pytest.raises(ValueError, match="must be finite"):
        make().load_state({**good, f"exp_avg/{name}": np.full_like(good[f"exp_avg/{name}"], np.nan)})
    sampler = TorchSampler(tiny_world_model(), temperature=1.0)
    with pytest.raises(ValueError, match="must be finite"):
        sampler.load_weights(weights_of(learner.engine.module), 1)
    assert sampler.policy_version == 0
