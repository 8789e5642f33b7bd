"""Saved weights: whoever may read another new file may read them, whoever writes them."""

import os
import stat

import numpy as np
import pytest

from rlir_ray.config import LoraConfig
from rlir_ray.models.adapters import add_adapter, save_policy
from rlir_ray.run.checkpoint import save_arrays
from tests.fakes import tiny_autoencoder, tiny_flow_model, tiny_idm, tiny_tokenizer, tiny_world_model

WRITERS = {
    "tokens": lambda folder: save_policy(tiny_world_model(), folder),
    "flow": lambda folder: save_policy(tiny_flow_model(), folder),
    "adapter of tokens": lambda folder: save_policy(with_adapter(tiny_world_model()), folder),
    "adapter of flow": lambda folder: save_policy(with_adapter(tiny_flow_model()), folder),
    "world model": lambda folder: tiny_world_model().save_pretrained(folder),
    "tokenizer": lambda folder: tiny_tokenizer().save_pretrained(folder),
    "autoencoder": lambda folder: tiny_autoencoder().save_pretrained(folder),
    "inverse dynamics model": lambda folder: tiny_idm().save_pretrained(folder),
    "learner's state": lambda folder: save_arrays(folder / "learner.safetensors", {"weight": np.ones(3)}),
}


def with_adapter(model):
    add_adapter(model, LoraConfig(rank=2))
    return model


@pytest.mark.parametrize("umask", [0o022, 0o007])
@pytest.mark.parametrize("writer", WRITERS)
def test_saved_weights_have_the_mode_that_the_umask_gives(writer, umask, tmp_path):
    before = os.umask(umask)
    try:
        WRITERS[writer](tmp_path)
        (tmp_path / "other").write_text("")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir() if path.is_file()}
    assert any(name.endswith(".safetensors") for name in modes)
    assert set(modes.values()) == {0o666 & ~umask}, modes
