"""The estimated memory of a learner rank, against tensors that a pass really keeps, and at Oasis' published size."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlir_ray.config import Config, LoraConfig, ModelsConfig
from rlir_ray.config.load import load_config
from rlir_ray.families import family_of, open_policy
from rlir_ray.models.adapters import add_adapter
from rlir_ray.models.oasis_policy import OasisPolicy
from rlir_ray.run.memory import LearnerMemory, learner_memory

OASIS_PARAMETERS = 607_943_744


def _kept_bytes(config: Config) -> int:
    """Return the bytes that a real pass over one clip keeps for its gradients, beside the weights."""
    family, policy = family_of(config), open_policy(config)
    record, num_decisions = family.record(config, family.check_world(config), 1)
    columns = [getattr(record, entry.name) for entry in dataclasses.fields(record)]
    real = [None if column is None else torch.zeros(column.shape, dtype=column.dtype) for column in columns]
    for column in real:
        if column is not None and column.is_floating_point():
            column.fill_(0.5)
    weights = {weight.untyped_storage().data_ptr() for weight in policy.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = family.rescorer(config, policy)(policy, type(record)(*real), num_decisions)
        assert scores.logprobs.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("recipe", ["doom_tiny_ar", "doom_tiny_flow"])
def test_the_activations_are_at_least_what_a_real_pass_keeps_and_not_much_more(recipe: str) -> None:
    config = load_config(recipe)
    found = learner_memory(config, open_policy(config, "meta"), family_of(config).check_world(config))
    kept = found.num_clips * _kept_bytes(config)
    assert 0.9 * kept < found.activations < 2 * kept


def test_shards_adapters_and_copies_are_counted() -> None:
    config = load_config("doom_tiny_flow", ["train.kl_coefficient=0"])
    frame = family_of(config).check_world(config)

    def needed(*options: str) -> LearnerMemory:
        changed = load_config("doom_tiny_flow", ["train.kl_coefficient=0", *options])
        return learner_memory(changed, open_policy(changed, "meta"), frame)

    whole, count = needed(), sum(weight.numel() for weight in open_policy(config).parameters())
    assert (whole.weights, whole.gradients, whole.optimizer) == (4 * count, 4 * count, 8 * count)
    shared = needed("learner.num_workers=2", "learner.zero_stage=2")
    assert (shared.weights, shared.gradients, shared.optimizer) == (4 * count, 2 * count, 4 * count)
    assert needed("train.kl_coefficient=0.1").weights == 8 * count
    assert needed("train.ema_decay=0.9").weights == 8 * count
    adapted = needed("lora.rank=4", "train.kl_coefficient=0.1")
    assert 4 * count < adapted.weights < 5 * count and adapted.gradients < count
    half = needed("learner.precision=bf16")
    assert (half.weights, half.optimizer) == (2 * count, 12 * count) and half.activations < whole.activations
    assert needed("learner.gradient_checkpointing=true").activations < whole.activations / 2
    assert "learner.gradient_checkpointing=true" in whole.remedy(config.learner)


def test_frames_beyond_the_models_window_hold_the_activations_of_their_own_windows(tmp_path: Path) -> None:
    per_clip, options = {}, ["learner.gradient_checkpointing=false"]
    for num_frames in (3, 7):
        with torch.device("meta"):
            policy = OasisPolicy(
                input_h=6, input_w=8, in_channels=4, hidden_size=32, depth=1, num_heads=2, max_frames=4
            )
        policy.save_config(tmp_path)
        config = load_config("oasis_500m", [f"world.num_frames={num_frames}", *options])
        config = dataclasses.replace(config, models=ModelsConfig(policy=str(tmp_path)))
        found = learner_memory(config, policy, (4, 6, 8))
        per_clip[num_frames] = found.activations / found.num_clips
    # Three frames: 3 of the history and 3 x 2 noisy ones. Four more: 4 windows of 3 + 2. Together they would hold 21.
    assert per_clip[7] / per_clip[3] == pytest.approx((9 + 20) / 9, rel=0.1)


@pytest.mark.slow
def test_oasis_fits_the_gpus_of_its_recipes(tmp_path: Path) -> None:
    with torch.device("meta"):
        OasisPolicy().save_config(tmp_path)
    found = {}
    for recipe in ("oasis_500m", "oasis_500m_lora"):
        config = load_config(recipe)
        config = dataclasses.replace(config, models=ModelsConfig(policy=str(tmp_path)))
        with torch.device("meta"):
            policy = OasisPolicy()
        assert sum(weight.numel() for weight in policy.parameters() if weight.requires_grad) == OASIS_PARAMETERS
        if config.lora.rank:
            add_adapter(policy, LoraConfig(rank=config.lora.rank))
        found[recipe] = learner_memory(config, policy, (16, 18, 32))
    full, adapter = found["oasis_500m"], found["oasis_500m_lora"]
    assert full.gradients == pytest.approx(OASIS_PARAMETERS, rel=1e-6)  # float32 over four ranks
    # Its bound from below: what checkpointing keeps, the input of 16 blocks for 45 frames of 144 tokens, of two clips.
    assert full.activations > 16 * 2 * 45 * 144 * 1024 * 4
    assert full.total < 40e9
    assert adapter.gradients < 0.02 * full.gradients * 4
    assert adapter.total < 20e9
