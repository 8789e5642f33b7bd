"""Saved weights can be read by whoever may read the files beside them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rlir_ray.checkpoint import save_arrays
from rlir_ray.config import LoraConfig
from rlir_ray.models.adapters import add_adapter, save_policy
from tests.fakes import tiny_autoencoder, tiny_flow_model, tiny_idm, tiny_tokenizer, tiny_world_model


def save_adapter(folder: Path) -> None:
    model = tiny_world_model()
    add_adapter(model, LoraConfig(rank=2))
    save_policy(model, folder)


SAVERS: dict[str, Callable[[Path], None]] = {
    "policy": lambda folder: save_policy(tiny_world_model(), folder),
    "flow policy": lambda folder: save_policy(tiny_flow_model(), folder),
    "adapter": save_adapter,
    "tokenizer": lambda folder: tiny_tokenizer().save_pretrained(folder),
    "autoencoder": lambda folder: tiny_autoencoder().save_pretrained(folder),
    "inverse dynamics model": lambda folder: tiny_idm().save_pretrained(folder),
    "checkpoint": lambda folder: save_arrays(folder / "state.safetensors", {"a": np.ones(2)}),
}


@pytest.mark.parametrize("what", SAVERS)
@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_saved_weights_have_the_mode_of_the_umask(what: str, umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        SAVERS[what](tmp_path)
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}
