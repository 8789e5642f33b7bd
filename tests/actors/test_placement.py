"""Resources of the pools' actors, and files that travel between nodes; no Ray is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.cluster.files import write_part
from actors.cluster.placement import ray_options
from rlir_ray.config.load import load_config


def test_actors_take_the_resources_of_their_pool_and_are_spread() -> None:
    config = load_config("", ["rollout.num_gpus=1", "rollout.resources={rollout_node: 0.01}"])
    assert ray_options(config.rollout) == {
        "num_cpus": 0.5,
        "num_gpus": 1.0,
        "resources": {"rollout_node": 0.01},
        "scheduling_strategy": "SPREAD",
    }
    assert ray_options(config.rollout, num_cpus=0, max_restarts=1) == {
        "num_cpus": 0,
        "num_gpus": 1.0,
        "resources": {"rollout_node": 0.01},
        "scheduling_strategy": "SPREAD",
        "max_restarts": 1,
    }


def test_serve_takes_the_options_of_its_replicas() -> None:
    from ray import serve

    config = load_config("", ["reward.resources={reward_node: 0.5}"])
    deployment = serve.deployment(ray_actor_options=ray_options(config.reward))(type("Replica", (), {}))
    assert deployment.ray_actor_options["resources"] == {"reward_node": 0.5}


def test_a_file_comes_in_parts_and_is_there_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "policy" / "model.safetensors"
    write_part(path, 0, b"abcd", is_last=False)
    assert not path.exists()
    write_part(path, 4, b"ef", is_last=True)
    assert path.read_bytes() == b"abcdef"
    # A new file of that name replaces it, however long the old one was.
    write_part(path, 0, b"x", is_last=True)
    assert path.read_bytes() == b"x" and [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_file_that_cannot_be_written_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "policy").write_text("a file where the folder should be")
    with pytest.raises(ValueError, match=r"^could not save .*model\.bin: .*; free some space or set run\.dir$"):
        write_part(tmp_path / "policy" / "model.bin", 0, b"x", is_last=True)
