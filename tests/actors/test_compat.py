"""What the project uses of Ray that is not public, as the installed version has it."""

from __future__ import annotations

import configparser
import os
import time
from pathlib import Path

import pytest
import ray
from packaging.requirements import Requirement
from ray import serve

from actors.cluster import compat

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60


class Idle:
    def process(self) -> int:
        return os.getpid()


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_bound_of_rays_version_allows_the_installed_version_and_the_constraints(device: str) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = setup["options"]["install_requires"].splitlines()
    (bound,) = [Requirement(line).specifier for line in lines if line.startswith("ray[")]
    pins = (ROOT / f"constraints/{device}.txt").read_text(encoding="utf-8").splitlines()
    (pinned,) = [line.removeprefix("ray==") for line in pins if line.startswith("ray==")]
    assert pinned in bound and ray.__version__ in bound
    # The next minor version may have changed what is used.
    major, minor, _ = map(int, pinned.split("."))
    assert f"{major}.{minor + 1}.0" not in bound


def test_an_actor_is_found_by_its_id_with_its_process_and_node(ray_cluster: None) -> None:
    actor = ray.remote(num_cpus=0)(Idle).remote()
    process = ray.get(actor.process.remote(), timeout=TIMEOUT_S)
    info = compat.actor_info(compat.actor_id(actor))
    assert (info.class_name.split(".")[-1], info.state, info.process_id) == ("Idle", "ALIVE", process)
    assert info.node_id == ray.get_runtime_context().get_node_id()
    assert list(compat.worker_logs().glob(f"worker-*-{process}.err"))
    ray.kill(actor)


def test_each_living_node_has_its_free_resources(ray_cluster: None) -> None:
    free = compat.free_resources()
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    assert set(free) == {node["NodeID"]}
    assert 0 <= free[node["NodeID"]]["CPU"] <= node["Resources"]["CPU"]


def test_replicas_are_found_stay_when_their_number_changes_and_go_with_their_application(ray_cluster: None) -> None:
    serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
    idle = serve.deployment(ray_actor_options={"num_cpus": 0})(Idle)
    compat.pin_version(idle, "first")
    try:
        handle = serve.run(idle.bind(), name="compat", route_prefix=None)
        (before,) = compat.replica_ids("compat")
        process = handle.process.remote().result(timeout_s=TIMEOUT_S)
        assert compat.actor_info(before).process_id == process
        serve.run(idle.options(num_replicas=2).bind(), name="compat", route_prefix=None)
        after = compat.replica_ids("compat")
        assert before in after and len(after) == 2
        assert compat.replica_ids("comp") == []
    finally:
        compat.start_deleting("compat")
    deadline = time.monotonic() + TIMEOUT_S
    while "compat" in serve.status().applications or compat.replica_ids("compat"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
