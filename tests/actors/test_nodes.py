"""A cluster of several nodes on this machine: each pool runs where it was asked to, also as a submitted job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.cluster_utils import Cluster
from ray.job_submission import JobStatus, JobSubmissionClient
from ray.util.state import list_actors

from rlir_ray.algorithm.ledger import Ledger
from rlir_ray.models.autoregressive import WorldModel
from tests.actors.test_driver import run_local
from tests.world import tiny_config

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 250


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without pools, its dashboard, and no trace of this checkout or of another Ray in its environment."""
    for name in ("RAY_ADDRESS", "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    # Jobs say `python`.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = {"include_dashboard": True, "dashboard_port": 0, "dashboard_agent_listen_port": None}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **options})
    yield cluster
    cluster.shutdown()


def add_node(cluster: Cluster, **resources: float) -> str:
    # As on a machine of its own: nodes that shared the folder would each unpack a job's package over the others'.
    files = f"files_{len(cluster.worker_nodes)}"
    return cluster.add_node(num_cpus=1, resources=resources, runtime_env_dir_name=files).node_id


def read_until(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    seen = []
    for found in process.stdout:
        if found.rstrip() == line:
            return
        seen.append(found)
    raise AssertionError("".join(seen))


def last_line(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, out
    return out.splitlines()[-1]


@pytest.mark.slow
def test_pools_run_on_the_nodes_of_their_labels_and_videos_cross_them_in_the_store_alone(
    head: Cluster, checkpoints: Path, tmp_path: Path
) -> None:
    first = add_node(head, rollout_node=1)
    overrides = [
        "rollout.resources={rollout_node: 0.01}",
        "rollout.num_actors=2",
        "rollout.num_cpus=0.25",
        "reward.resources={other_node: 0.01}",
        "learner.resources={other_node: 0.01}",
        "run.wait_for_nodes_s=120",
        "train.group_size=24",
    ]
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.actors.run_on_nodes", checkpoints, tmp_path, *overrides],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": head.address, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        # The second node joins when the run is already waiting for it.
        read_until(driver, "waiting up to 120 s for nodes that hold the pools")
        second = add_node(head, other_node=1)
        told = json.loads(last_line(driver))
    finally:
        driver.kill()
    assert told["actors"]["RolloutActor"] == [first]
    assert told["actors"]["RayTrainWorker"] == [second]
    assert [nodes for name, nodes in told["actors"].items() if "RewardReplica" in name] == [[second]]
    # What holds no resources, or writes into the run's folder, stays with the driver.
    for name in ("PromptActor", "CommandQueue", "EvaluationActor"):
        assert told["actors"][name] == [told["driver"]]
    assert told["driver"] not in (first, second)
    assert_videos_crossed(told["videos"], first, second, told["driver"])
    assert told["refusal"].startswith("every actor of the plan must fit a node")
    assert told["refusal"].endswith("set learner.num_cpus=1")
    # Elsewhere is no other training.
    config = tiny_config(checkpoints, tmp_path / "here", *overrides)
    expected, _ = run_local(config)
    assert told["losses"] == pytest.approx([step["loss/policy"] for step in expected], rel=1e-4, abs=1e-5)
    # The policy came from another node, the rest from this one; nothing half-written is left.
    folder = tmp_path / "tiny"
    assert WorldModel.from_pretrained(folder / "policy").config.vocab_size
    assert {"evaluation.json", "ledger.json", "metrics.jsonl"} <= {path.name for path in folder.iterdir()}
    assert not [path for path in folder.rglob("*") if path.name.endswith((".part", ".partial", ".old"))]
    Ledger.from_json((folder / "ledger.json").read_text()).check()
    assert told["groups"]["trained"] == 8


def assert_videos_crossed(videos: list[dict[str, Any]], source: str, target: str, driver: str) -> None:
    assert len(videos) == 8
    for video in videos:
        # 24 clips of 4 frames of 12 codes: 2304 bytes at least, which the store takes; in shared memory of both nodes
        # and nowhere else.
        assert set(video["nodes"]) == {source, target} and driver not in video["nodes"]
        assert video["bytes"] >= 2304


# ---------------------------------------------------------------------------------------------------------------------
# Submission

RECIPE = """base: doom_tiny_ar
object_store_budget_bytes: 100000000
prompts: {num_train: 16, num_heldout: 8}
train: {prompts_per_step: 2, group_size: 2, num_steps: STEPS}
evaluation: {num_videos: 1}
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The repository as `git clone` leaves it, with two recipes that are nowhere else."""
    folder = tmp_path / "checkout"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True, timeout=TIMEOUT_S)
    for steps in ("2", "1000"):
        (folder / "rlir_ray" / "recipes" / f"steps_{steps}.yaml").write_text(RECIPE.replace("STEPS", steps))
    return folder


def submit(head: Cluster, checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["ray", "job", "submit", "--address", f"http://{head.webui_url}", "--working-dir", "."]
    command += ["--runtime-env", "deploy/runtime_env.yaml", "--submission-id", arguments[0]]
    command += ["--", "python", "-m", "rlir_ray", "train", *arguments[1:]]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_bare_checkout_trains_as_a_job_on_the_nodes_of_its_labels(
    head: Cluster, checkout: Path, tmp_path: Path
) -> None:
    first, second = add_node(head, rollout_node=1), add_node(head, other_node=1)
    labels = [
        "rollout.resources.rollout_node=0.01",
        "learner.resources.rollout_node=0.01",
        "reward.resources.other_node=0.01",
    ]
    options = [f"run.dir={tmp_path}", *labels]
    done = submit(head, checkout, "whole", "--recipe", "steps_2", "run.name=whole", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    # Plain lines: no escape codes, nothing that a terminal would redraw.
    logs = JobSubmissionClient(f"http://{head.webui_url}").get_job_logs("whole")
    assert "\x1b" not in logs and "\r" not in logs
    assert [line.split()[1] for line in logs.splitlines() if line.startswith("step ")] == ["1/2", "2/2"]
    # The job manager gives the run its time.
    assert "would end this job" not in logs
    folder = tmp_path / "whole"
    assert (folder / "report.html").stat().st_size and (folder / "policy" / "model.safetensors").is_file()
    actors = {}
    for actor in list_actors(address=f"http://{head.webui_url}", limit=1000):
        actors.setdefault(actor.class_name.split(".")[-1], set()).add(actor.node_id)
    assert actors["RolloutActor"] == actors["RayTrainWorker"] == {first}
    assert {second} in [nodes for name, nodes in actors.items() if "RewardReplica" in name]

    # A failure is the job's failure, in one line.
    failed = submit(
        head, checkout, "failing", "--recipe", "steps_2", "run.name=failing", "rollout.num_actors=99", *options
    )
    assert failed.returncode == 1
    # `ray job submit` itself prints the last lines of a job that failed once more.
    logs = JobSubmissionClient(f"http://{head.webui_url}").get_job_logs("failing")
    (line,) = (line for line in logs.splitlines() if line.startswith("error: "))
    assert "must fit 3 CPUs, got" in line and "set rollout.num_actors=" in line


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_job_saves_its_policy_first(head: Cluster, checkout: Path, tmp_path: Path) -> None:
    for label in ("rollout_node", "other_node"):
        add_node(head, **{label: 1})
    client = JobSubmissionClient(f"http://{head.webui_url}")
    environment = yaml.safe_load((checkout / "deploy" / "runtime_env.yaml").read_text())
    client.submit_job(
        entrypoint=f"python -m rlir_ray train --recipe steps_1000 run.name=stopped run.dir={tmp_path}",
        submission_id="stopped",
        runtime_env={**environment, "working_dir": str(checkout)},
    )
    wait_until(lambda: "step   2/1000" in client.get_job_logs("stopped"), client)
    client.stop_job("stopped")
    wait_until(lambda: client.get_job_status("stopped") == JobStatus.STOPPED, client)
    logs, folder = client.get_job_logs("stopped"), tmp_path / "stopped"
    assert "saving the policy" in logs and "; to resume, run the same command again" in logs
    assert (folder / "policy" / "model.safetensors").is_file()
    ledger = Ledger.from_json((folder / "ledger.json").read_text())
    ledger.check()
    assert ledger.counts()["trained"] >= 4 and ledger.counts()["in_flight"] == 0


def wait_until(happened: Callable[[], bool], client: JobSubmissionClient) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not happened():
        assert time.monotonic() < deadline, client.get_job_logs("stopped")
        time.sleep(0.5)
