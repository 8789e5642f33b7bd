"""One Ray for all tests of this room, and a tiny world: random models on disk, random prompts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray

from actors.plan import start_ray
from tests.actors.world import MakeConfig, tiny_config
from tests.fakes import tiny_idm, tiny_tokenizer, tiny_world_model


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    start_ray(num_cpus=4, object_store_memory=300 << 20)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny_world_model().save_pretrained(folder / "policy")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    for seed, name in enumerate(("reward_idm", "judge_idm")):
        tiny_idm(seed).save_pretrained(folder / name)
    return folder


@pytest.fixture
def make_config(checkpoints: Path, tmp_path: Path) -> MakeConfig:
    return partial(tiny_config, checkpoints, tmp_path)
