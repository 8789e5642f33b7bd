"""The files in deploy/ that other programs read: their fields, their versions, and whether the plans in them fit."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from rlir_ray.config.load import load_config
from rlir_ray.run.capacity import Node, check_capacity, pools_of
from tests.deploy.kuberay import unknown

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def job_spec() -> dict[str, Any]:
    return documents(DEPLOY / "kuberay" / "rayjob.yaml")[0]["spec"]


@pytest.mark.parametrize("file", ["rayjob.yaml", "rayservice.yaml"])
def test_kubernetes_objects_have_published_fields_only(file: str) -> None:
    for document in documents(DEPLOY / "kuberay" / file):
        assert unknown(document, document["kind"]) == []


def test_a_field_that_does_not_exist_and_a_value_that_is_not_allowed_are_found() -> None:
    document = documents(DEPLOY / "kuberay" / "rayjob.yaml")[0]
    cluster = document["spec"]["rayClusterSpec"]
    cluster["workerGroupSpecs"][1]["replica"] = 1
    cluster["authOptions"]["mode"] = "none"
    cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    assert unknown(document, "RayJob") == [
        ".spec.rayClusterSpec.authOptions.mode",
        ".spec.rayClusterSpec.headGroupSpec.rayStartParams.num-cpus",
        ".spec.rayClusterSpec.workerGroupSpecs[1].replica",
    ]


def nodes_of(groups: list[dict[str, Any]], count: str) -> list[Node]:
    """The nodes that a cluster starts with, as Ray sees them."""
    nodes = []
    for group in groups:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        total = {"CPU": float(limits["cpu"]), "GPU": float(limits.get("nvidia.com/gpu", 0))}
        total |= {name: float(amount) for name, amount in group.get("resources", {}).items()}
        nodes += [Node.idle(total)] * group[count]
    return nodes


def test_the_pods_of_a_ray_job_hold_its_run_and_the_reward_group_grows() -> None:
    spec = job_spec()
    module, *overrides = shlex.split(spec["entrypoint"].removeprefix("python -m "))
    assert module == "rlir_ray" and overrides[:2] == ["train", "--recipe"]
    config = load_config(overrides[2], overrides[3:])
    groups = {group["groupName"]: group for group in spec["rayClusterSpec"]["workerGroupSpecs"]}
    assert list(groups) == ["rollout", "reward", "learner"]
    check_capacity(pools_of(config), nodes_of(list(groups.values()), "replicas"))
    # The pool asks for more replicas by itself, and the nodes that the group may grow to hold them.
    fewest, most = config.reward.bounds
    assert fewest < most and groups["reward"]["minReplicas"] < groups["reward"]["maxReplicas"]
    grown = dataclasses.replace(config, reward=dataclasses.replace(config.reward, num_replicas=most))
    check_capacity(pools_of(grown), nodes_of(list(groups.values()), "maxReplicas"))
    assert spec["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    for pool in ("rollout", "reward", "learner"):
        # Each pool asks for the label of its own group, and no other group has it.
        (label,) = getattr(config, pool).resources
        assert [name for name, group in groups.items() if label in group["resources"]] == [pool]


def test_a_ray_job_sets_what_the_runtime_environment_of_a_submitted_job_sets() -> None:
    submitted = documents(DEPLOY / "runtime_env.yaml")[0]
    assert yaml.safe_load(job_spec()["runtimeEnvYAML"]) == {"env_vars": submitted["env_vars"]}


def test_all_files_name_the_pinned_ray() -> None:
    (pinned,) = (
        line.split("==")[1] for line in (ROOT / "constraints/gpu.txt").read_text().splitlines() if line[:5] == "ray=="
    )
    service = documents(DEPLOY / "kuberay" / "rayservice.yaml")[0]
    assert job_spec()["rayClusterSpec"]["rayVersion"] == service["spec"]["rayClusterConfig"]["rayVersion"] == pinned


def test_the_service_is_an_application_that_serve_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    service = documents(DEPLOY / "kuberay" / "rayservice.yaml")[0]
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    schema = ServeDeploySchema.parse_obj(config)
    assert [application.import_path for application in schema.applications] == ["actors.reward.service:build"]
    # Ports of the pods and of the policy.
    assert schema.http_options.port == 8000


def test_the_launcher_takes_the_cluster_and_its_nodes_hold_the_plan_of_its_example() -> None:
    import jsonschema

    cluster = documents(DEPLOY / "cluster.yaml")[0]
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"max_worker": 3}, schema)
    nodes = []
    for kind in cluster["available_node_types"].values():
        total = {name: float(amount) for name, amount in kind["resources"].items()}
        nodes += [Node.idle(total)] * kind.get("min_workers", 1)
    labels = [f"{pool}.resources.{pool}_node=0.01" for pool in ("rollout", "reward", "learner")]
    check_capacity(pools_of(load_config("mineworld_700m", labels)), nodes)
    assert (
        sum(kind.get("max_workers", 0) for kind in cluster["available_node_types"].values()) == cluster["max_workers"]
    )


def test_no_dashboard_is_open_to_the_network_outside_kubernetes() -> None:
    for line in documents(DEPLOY / "cluster.yaml")[0]["head_start_ray_commands"]:
        assert "--head" not in line or "--dashboard-host=127.0.0.1" in line
    assert "0.0.0.0" not in (DEPLOY / "slurm" / "rlir.sbatch").read_text()


def test_the_image_installs_pinned_packages_and_copies_what_is_there() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) == 2 and all("-c constraints/gpu.txt" in line for line in installs)
    for line in lines:
        if line.startswith("COPY"):
            assert (ROOT / line.split()[1]).exists()


def test_the_package_of_a_job_holds_the_code_and_the_shipped_models_and_is_small(tmp_path: Path) -> None:
    import zipfile

    from ray._private.runtime_env.packaging import create_package

    excludes = documents(DEPLOY / "runtime_env.yaml")[0]["excludes"]
    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True, excludes=excludes)
    names = zipfile.ZipFile(package).namelist()
    code = [path for part in ("rlir_ray", "actors") for path in (ROOT / part).rglob("*.py")]
    needed = {str(path.relative_to(ROOT)) for path in [*code, *(ROOT / "rlir_ray" / "recipes").glob("*.yaml")]}
    assert needed | {"constraints/gpu.txt"} <= set(names)
    assert any(name.startswith("rlir_ray/assets/doom/") for name in names)
    assert not [name for name in names if name.split("/")[0] in (".git", ".venv", "runs", "tests", "docs")]
    # Ray takes 512 MiB.
    assert package.stat().st_size < 64 << 20
