"""What a step does to flow policies, whatever the objective; and adapters of both families."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.algorithm.flow_steps import interpolate, noise_levels
from rlir_ray.config import (
    Config,
    FlowConfig,
    GrpoConfig,
    LearnerConfig,
    LoraConfig,
    NftConfig,
    OffPolicyConfig,
    PolicyConfig,
    TrainConfig,
)
from rlir_ray.families import make_objective
from rlir_ray.learner.batches import StepBatch, trained_decisions
from rlir_ray.learner.objectives import Columns, DiffusionNFT, Objective, PolicyGradient
from rlir_ray.learner.step import Learner
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.models.adapters import add_adapter, is_adapter_weight, merged_weight, without_adapter
from rlir_ray.models.rescoring import FlowRescorer, TokenRescorer, stream_velocities
from rlir_ray.samplers.flow import FlowSampler
from rlir_ray.samplers.torch_sampler import TorchSampler
from rlir_ray.trajectory import FlowRecord, TrajectoryGroup
from rlir_ray.transfer.weights import checksum, load_weights, weights_of
from tests.fakes import tiny_flow_model, tiny_flow_prompts, tiny_prompts, tiny_world_model

FLOW = FlowConfig(num_steps=4, window=2, noise_level=0.5, shared_noise=False)
TRAIN = TrainConfig(learning_rate=1e-4, warmup_steps=0, group_size=4)
NFT = replace(TRAIN, objective="nft", max_advantage=5.0)


def groups_of(model: torch.nn.Module, *, explore: bool = True, keep_means: bool = False) -> list[TrajectoryGroup]:
    sampler = FlowSampler(model, FLOW, explore=explore, keep_means=keep_means)  # type: ignore[arg-type]
    return [group for group, _ in sampler.sample(tiny_flow_prompts(2), range(2), range(2), 4)]


def batch_of(groups: list[TrajectoryGroup], values: np.ndarray | None = None) -> StepBatch:
    """The same advantages [4, 3] in each group; normal draws if not given."""
    values = np.random.default_rng(0).normal(size=(4, 3)) if values is None else values
    advantages = [GroupAdvantages.of_all(values.astype(np.float32)) for _ in groups]
    return StepBatch(groups, advantages, trained_decisions(groups, advantages))


def learner_of(
    policy: torch.nn.Module, train: TrainConfig = TRAIN, reference: torch.nn.Module | None = None, budget: int = 10_000
) -> Learner:
    settings = LearnerConfig(engine="torch", decision_budget=budget)
    objective: Objective
    if train.objective == "nft":
        objective = DiffusionNFT(policy, noise_levels(FLOW.num_steps)[:-1], train, reference)
    else:
        objective = PolicyGradient(policy, FlowRescorer(FLOW), train, reference)
    return Learner(TorchEngine(policy, train, settings), objective, train, settings)


def tensors(group: TrajectoryGroup) -> FlowRecord[torch.Tensor]:
    names = ("latents", "levels", "history", "history_levels", "actions")
    return FlowRecord(*(torch.from_numpy(np.asarray(getattr(group.record, name))) for name in names))


def scores_of(model: torch.nn.Module, group: TrajectoryGroup) -> np.ndarray:
    """Log-probabilities [G, T]."""
    with torch.no_grad():
        return FlowRescorer(FLOW)(model, tensors(group), group.loss_mask.shape[1]).logprobs.numpy()


@pytest.mark.parametrize("ratio", ["plain", "guard"])
def test_at_the_first_update_the_ratio_is_one(ratio: str) -> None:
    train = replace(TRAIN, grpo=GrpoConfig(ratio=ratio))
    groups = groups_of(tiny_flow_model(), keep_means=ratio == "guard")
    metrics = learner_of(tiny_flow_model(), train).step(batch_of(groups))
    assert metrics["ratio/max_abs_log"] < 1e-5 and not metrics.get("ratio/clip_fraction")
    assert metrics["decisions"] == 2 * 4 * 6 and metrics["grad_norm"] > 0


@pytest.mark.parametrize("ratio", ["plain", "guard"])
def test_one_update_raises_the_probability_of_the_better_samples(ratio: str) -> None:
    groups = groups_of(tiny_flow_model(), keep_means=ratio == "guard")
    policy = tiny_flow_model()
    before = scores_of(policy, groups[0])
    values = np.array([[1.0] * 3, [-1.0] * 3, [1.0] * 3, [-1.0] * 3])
    learner_of(policy, replace(TRAIN, grpo=GrpoConfig(ratio=ratio))).step(batch_of(groups, values))
    gained = (scores_of(policy, groups[0]) - before).mean(axis=1)
    assert min(gained[0], gained[2]) > max(gained[1], gained[3])
    assert gained[[0, 2]].mean() > 0 > gained[[1, 3]].mean()


def test_steps_count_in_proportion_to_their_noise() -> None:
    (group, *_), policy = groups_of(tiny_flow_model()), tiny_flow_model()
    columns = Columns(
        record=tensors(group),
        behavior_logprobs=torch.from_numpy(group.behavior_logprobs),
        loss_mask=torch.from_numpy(group.loss_mask),
        advantages=torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),
        seeds=[0] * 4,
        num_trajectories=4,
    )
    stds = FlowRescorer(FLOW)(policy, columns.record, 6).stds
    weights = stds / stds.mean()
    assert weights.max() > 1.2 and weights.mean() == pytest.approx(1)

    def gradient(step_weights: str, columns: Columns) -> torch.Tensor:
        train = replace(TRAIN, grpo=GrpoConfig(step_weights=step_weights))
        loss, _ = PolicyGradient(policy, FlowRescorer(FLOW), train).loss(policy, columns, 24)
        return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(policy.parameters()))])

    weighted = gradient("noise", columns)
    torch.testing.assert_close(weighted, gradient("uniform", replace(columns, advantages=columns.advantages * weights)))
    assert (weighted - gradient("uniform", columns)).abs().max() > 1e-3 * weighted.abs().max()


def test_accumulation_and_row_selection_train_the_chosen_trajectories_only() -> None:
    groups, values = groups_of(tiny_flow_model()), np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    rows = np.array([1, 3])
    chosen = [GroupAdvantages(values, rows) for _ in groups]
    poisoned = [
        replace(g, behavior_logprobs=np.where(np.isin(np.arange(4), rows)[:, None], g.behavior_logprobs, 99))
        for g in groups
    ]
    updates = []
    for these, budget in ((groups, 10_000), (poisoned, 10_000), (groups, 6)):
        policy = tiny_flow_model()
        metrics = learner_of(policy, budget=budget).step(StepBatch(these, chosen, trained_decisions(these, chosen)))
        assert metrics["decisions"] == 2 * 2 * 6
        updates.append(weights_of(policy))
    for name, value in updates[0].items():
        np.testing.assert_array_equal(updates[1][name], value)
        np.testing.assert_allclose(updates[2][name], value, atol=1e-5)


def test_kl_is_that_of_the_means_and_zero_at_the_reference() -> None:
    groups, train = groups_of(tiny_flow_model()), replace(TRAIN, kl_coefficient=0.1)
    same = learner_of(tiny_flow_model(), train, tiny_flow_model()).step(batch_of(groups))
    other = learner_of(tiny_flow_model(), train, tiny_flow_model(seed=1)).step(batch_of(groups))
    assert same["loss/kl"] == pytest.approx(0, abs=1e-8) and other["loss/kl"] > 1e-4


def velocity_errors(policy: torch.nn.Module, objective: DiffusionNFT, group: TrajectoryGroup) -> np.ndarray:
    """Mean squared error of the velocity on each clip's noised frames, [G]."""
    record, sums = tensors(group), []
    clean = record.latents[:, :, -1:]
    for seed in range(8):
        levels, noise = objective._draw([seed] * len(clean), clean)
        with torch.no_grad():
            found = stream_velocities(policy, record, interpolate(clean, noise, levels), levels, None)
        sums.append(((found - (noise - clean)) ** 2).mean((1, 2, 3, 4, 5)).numpy())
    return np.mean(sums, axis=0)


def test_nft_parts_good_from_bad_clips_and_keeps_an_average_for_sampling() -> None:
    groups = groups_of(tiny_flow_model(), explore=False)
    assert groups[0].behavior_logprobs is None
    policy = tiny_flow_model()
    learner = learner_of(policy, replace(NFT, nft=NftConfig(max_decay=0.9), learning_rate=3e-4))
    assert isinstance(learner.objective, DiffusionNFT)
    start, before = weights_of(policy), velocity_errors(policy, learner.objective, groups[0])
    for _ in range(20):
        metrics = learner.step(batch_of(groups, np.array([[5.0] * 3, [-5.0] * 3, [5.0] * 3, [-5.0] * 3])))
    change = velocity_errors(policy, learner.objective, groups[0]) - before
    assert max(change[0], change[2]) < min(change[1], change[3])
    assert metrics["nft/drift"] > 0 and "ratio/mean" not in metrics
    published, trained = learner.weights(), weights_of(policy)
    name = max(start, key=lambda key: float(np.abs(trained[key] - start[key]).max()))
    # The sampling policy lags behind the trained one, by little at first.
    assert 0 < np.abs(published[name] - trained[name]).max() < np.abs(trained[name] - start[name]).max()


def test_nft_draws_by_trajectory_and_step_whatever_the_micro_batches() -> None:
    groups = groups_of(tiny_flow_model(), explore=False)
    whole, parts = learner_of(tiny_flow_model(), NFT), learner_of(tiny_flow_model(), NFT, budget=3)
    first, second = whole.step(batch_of(groups)), parts.step(batch_of(groups))
    assert first == pytest.approx(second, rel=1e-4, abs=1e-6)
    reference = learner_of(tiny_flow_model(), replace(NFT, kl_coefficient=0.1), tiny_flow_model(seed=1))
    assert reference.step(batch_of(groups))["loss/kl"] > 1e-4


def test_nft_goes_on_from_a_state_with_the_average_that_it_samples_with() -> None:
    batch = batch_of(groups_of(tiny_flow_model(), explore=False))
    whole, first, second = (learner_of(tiny_flow_model(), NFT) for _ in range(3))
    expected = [whole.step(batch) for _ in range(3)]
    for _ in range(2):
        first.step(batch)
    second.load_state(first.state())
    assert checksum(second.weights()) == checksum(first.weights())
    assert second.step(batch) == expected[2]
    assert checksum(second.weights()) == checksum(whole.weights())
    # The average lags behind the policy: one is not the other.
    assert checksum(weights_of(second.engine.module)) != checksum(second.weights())


def test_nft_passes_draw_anew_around_one_average() -> None:
    batch = batch_of(groups_of(tiny_flow_model(), explore=False))
    one, two = learner_of(tiny_flow_model(), NFT), learner_of(tiny_flow_model(), replace(NFT, updates_per_step=2))
    first, second = one.step(batch), two.step(batch)
    # The average moves after the step: the policy has left it at the second pass alone.
    assert first["nft/drift"] == 0 < second["nft/drift"]
    assert second["loss/policy"] != pytest.approx(first["loss/policy"], rel=1e-3)


def test_clips_of_flow_policies_act_on_the_second_pass() -> None:
    groups = groups_of(tiny_flow_model())
    # The level of a flow policy, see `PolicyGradient.from_parts`.
    plain = replace(TRAIN, off_policy=OffPolicyConfig(importance="none"))
    narrow = replace(plain, updates_per_step=2, grpo=GrpoConfig(clip_low=1e-4, clip_high=1e-4))
    metrics = learner_of(tiny_flow_model(), narrow).step(batch_of(groups))
    assert 0 < metrics["ratio/clip_fraction"] < 0.5 and "correction/mean" not in metrics


def test_average_clips_do_nothing_to_an_nft_policy() -> None:
    """r = 1/2: both implicit policies pull alike at the start, where the policy is the sampling one."""
    policy = tiny_flow_model()
    metrics = learner_of(policy, NFT).step(batch_of(groups_of(policy, explore=False), np.zeros((4, 3))))
    assert metrics["grad_norm"] == pytest.approx(0, abs=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Adapters

LORA = LoraConfig(rank=4)


def test_fresh_adapter_changes_no_log_probability_and_only_it_trains_and_leaves() -> None:
    groups, policy = groups_of(tiny_flow_model()), tiny_flow_model()
    base = {name: value.copy() for name, value in weights_of(policy).items()}
    add_adapter(policy, LORA)
    learner = learner_of(policy)
    metrics = learner.step(batch_of(groups))
    assert metrics["ratio/max_abs_log"] < 1e-5
    published = learner.weights()
    assert published and all(is_adapter_weight(name) for name in published)
    optimised = {id(p) for group in learner.engine._optimizer.param_groups for p in group["params"]}  # type: ignore[attr-defined]
    assert optimised == {id(p) for name, p in policy.named_parameters() if is_adapter_weight(name)}
    assert sum(value.nbytes for value in published.values()) < 0.5 * sum(value.nbytes for value in base.values())
    # The frozen part is the old one; the sampler that loads the adapter samples as the learner rescores.
    frozen = {name.replace(".base_layer", ""): value for name, value in policy.state_dict().items()}
    for name, value in base.items():
        np.testing.assert_array_equal(frozen[name].numpy(), value)
    other = tiny_flow_model()
    add_adapter(other, LORA)
    load_weights(other, published)
    again = learner_of(policy).step(batch_of(groups_of(other)))
    assert again["ratio/max_abs_log"] < 1e-5


def test_token_sampler_merges_the_adapter_that_the_learner_trains() -> None:
    policy, train = tiny_world_model(), replace(TRAIN, learning_rate=1e-2)
    add_adapter(policy, LORA)
    settings = LearnerConfig(engine="torch")
    objective = PolicyGradient(policy, TokenRescorer(1.0), train)
    learner = Learner(TorchEngine(policy, train, settings), objective, train, settings)

    sampled = tiny_world_model()
    add_adapter(sampled, LORA)
    sampler = TorchSampler(sampled, temperature=1.0)
    logs = []
    for step in range(2):
        groups = [group for group, _ in sampler.sample(tiny_prompts(2), range(2), range(2), 4)]
        logs.append(learner.step(batch_of(groups)))
        sampler.load_weights(learner.weights(), step + 1)
    assert max(one["ratio/max_abs_log"] for one in logs) < 1e-4
    layer = policy.llama.model.layers[0].self_attn.q_proj
    assert (merged_weight(layer) - layer.weight).abs().max() > 1e-4


@pytest.mark.parametrize("family", ["autoregressive", "flow"])
def test_saved_adapter_opens_in_its_librarys_layout(family: str, tmp_path) -> None:
    def make() -> torch.nn.Module:
        return tiny_world_model() if family == "autoregressive" else tiny_flow_model()

    policy = make()
    add_adapter(policy, LORA)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if is_adapter_weight(name):
                weight.normal_()
    config = Config(policy=PolicyConfig(family=family), train=TRAIN)
    learner = Learner(
        TorchEngine(policy, TRAIN, config.learner),
        make_objective(config, policy),
        TRAIN,
        config.learner,
    )
    learner.save(tmp_path / "policy")
    files = {path.name for path in (tmp_path / "policy").iterdir()}
    expected = {"adapter_config.json", "adapter_model.safetensors"}
    assert expected <= files if family == "autoregressive" else files == {"pytorch_lora_weights.safetensors"}
    again = make()
    add_adapter(again, LoraConfig(), str(tmp_path / "policy"))
    for name, value in weights_of(policy).items():
        np.testing.assert_array_equal(weights_of(again)[name], value, err_msg=name)


def test_reference_of_an_adapted_policy_is_the_policy_without_it() -> None:
    policy, base = tiny_flow_model(), tiny_flow_model()
    add_adapter(policy, LORA)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if is_adapter_weight(name):
                weight.normal_()
        latents, levels = torch.randn(1, 2, 4, 6, 8), torch.rand(1, 2)
        actions = torch.zeros(1, 2, 9, dtype=torch.int64)
        expected = base(latents, levels, actions)
        torch.testing.assert_close(without_adapter(policy)(latents, levels, actions), expected)
        assert (policy(latents, levels, actions) - expected).abs().max() > 1e-3
    assert all(p.requires_grad == is_adapter_weight(name) for name, p in policy.named_parameters())


def test_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"lora.targets must name linear layers of the policy, got 'nose'.*to_qkv"):
        add_adapter(tiny_flow_model(), LoraConfig(rank=2, targets=("nose",)))
