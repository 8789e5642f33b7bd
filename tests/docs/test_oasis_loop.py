"""A tiny model of Oasis' form, trained on the embedded Doom world, goes through the whole loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlir_ray.config import asset_path
from rlir_ray.data.recordings import open_recordings, read_all
from rlir_ray.models.autoencoder import FrameAutoencoder
from rlir_ray.pretrain.encode import encode_recordings
from rlir_ray.worlds.doom import collect
from tests.docs.test_own_world import check_run, run


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_model_of_oasis_form_is_trained_and_post_trained(tmp_path: Path) -> None:
    pytest.importorskip("vizdoom")
    codec = FrameAutoencoder.from_pretrained(asset_path("asset:doom/autoencoder"))
    for split, num_frames in (("train", 1200), ("validation", 300)):
        collect(tmp_path / "doom" / split, num_frames=num_frames, split=split, seed=0)
        recordings = read_all(open_recordings(tmp_path / "doom" / split))
        (tmp_path / "latents").mkdir(exist_ok=True)
        encode_recordings(codec, recordings, tmp_path / "latents" / f"{split}.npz")
    pretrain = ["pretrain", "flow", "--form", "oasis", "--history-noise", "0", "--data", "latents", "--out", "oasis"]
    run([*pretrain, "--minutes", "0.3", "--hidden-size", "96", "--num-layers", "2", "--num-heads", "4"], tmp_path)
    overrides = ("models.policy=oasis", "flow.history_noise=0", "flow.num_steps=4", "train.num_steps=2")
    prompts = ("prompts.num_train=16", "prompts.num_heldout=8", "train.prompts_per_step=4")
    run(["train", "--recipe", "doom_tiny_flow", "run.name=oasis", *overrides, *prompts], tmp_path)
    check_run(tmp_path / "runs" / "oasis", ("accuracy", "macro_f1"))
