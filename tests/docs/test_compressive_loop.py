"""A compressive tokenizer and a model of its tokens, trained on the embedded Doom world, go through the whole loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlir_ray.pretrain.encode import read_encoded
from rlir_ray.worlds.doom import collect
from tests.docs.test_own_world import check_run, run


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_model_of_compressive_tokens_is_trained_and_post_trained(tmp_path: Path) -> None:
    pytest.importorskip("vizdoom")
    for split, num_frames in (("train", 1200), ("validation", 300)):
        collect(tmp_path / "doom" / split, num_frames=num_frames, split=split, seed=0)
    tokenizer = ["pretrain", "tokenizer", "--form", "compressive", "--data", "doom", "--out", "tokenizer"]
    run([*tokenizer, "--tokens", "tokens", "--minutes", "0.2", "--levels", "8", "--keyframe-levels", "8"], tmp_path)
    encoded = read_encoded(tmp_path / "tokens" / "train.npz", "tokens")
    assert encoded.codes.shape[1] == 24 and encoded.keyframes is not None and encoded.keyframes.shape[1] == 48
    world_model = ["pretrain", "world-model", "--data", "tokens", "--out", "world_model", "--minutes", "0.2"]
    run([*world_model, "--hidden-size", "64", "--num-layers", "2", "--num-heads", "1"], tmp_path)
    overrides = ("models.policy=world_model", "models.tokenizer=tokenizer", "train.num_steps=2", "reward.audit=warn")
    prompts = ("prompts.num_train=16", "prompts.num_heldout=8", "train.prompts_per_step=4")
    run(["train", "--recipe", "doom_tiny_ar", "run.name=compressive", *overrides, *prompts], tmp_path)
    check_run(tmp_path / "runs" / "compressive", ("accuracy", "macro_f1"))
