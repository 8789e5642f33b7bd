"""The shell scripts of deploy/, with stand-ins for the programs that they call."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
TIMEOUT_S = 60

SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do [[ $1 == -w ]] && shift; shift; done
exec "$@"
"""
# Notes its arguments and its token, listens where a head would, and ends when it is told to.
RAY = """#!/usr/bin/env python3
import os, signal, socket, sys
role = "head" if "--head" in sys.argv else "node"
port = next((int(each.split("=")[1]) for each in sys.argv if each.startswith("--port=")), 0)
name = f"{role}-{os.getpid()}"
with open(f"{os.environ['NOTES']}/part-{name}", "w") as notes:
    notes.write(" ".join(sys.argv[1:]) + " token " + open(os.environ["RAY_AUTH_TOKEN_PATH"]).read())
os.rename(f"{os.environ['NOTES']}/part-{name}", f"{os.environ['NOTES']}/{name}")
server = socket.create_server(("127.0.0.1", port)) if role == "head" else None
signal.alarm(60)
signal.pause()
"""
# As the driver does: on SIGTERM it saves first, which takes a while.
DRIVER = """#!/usr/bin/env python3
import os, signal, sys, time
def stop(number, frame):
    time.sleep(0.5)
    open(f"{os.environ['NOTES']}/saved", "w").close()
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
with open(f"{os.environ['NOTES']}/driver.part", "w") as notes:
    notes.write(os.environ["RAY_ADDRESS"] + " " + " ".join(sys.argv[1:]))
os.rename(f"{os.environ['NOTES']}/driver.part", f"{os.environ['NOTES']}/driver")
if "fails" in sys.argv:
    sys.exit(3)
signal.alarm(60)
while True:
    signal.pause()
"""


@pytest.mark.parametrize("script", ["submit.sh", "slurm/rlir.sbatch"])
def test_scripts_are_bash(script: str) -> None:
    subprocess.run(["bash", "-n", str(DEPLOY / script)], check=True, timeout=TIMEOUT_S)


def put(folder: Path, **programs: str) -> None:
    folder.mkdir(exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def test_submit_runs_ray_from_the_checkout_with_the_arguments_as_they_are(tmp_path: Path) -> None:
    put(tmp_path / "bin", ray='#!/usr/bin/env bash\npwd\nprintf "%s\\n" "$@"\n')
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "RAY_ADDRESS": "http://head:8265"}
    done = subprocess.run(
        [DEPLOY / "submit.sh", "--recipe", "doom_tiny_ar", "rollout.resources={rollout_node: 0.01}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    folder, *arguments = done.stdout.splitlines()
    assert Path(folder).resolve() == DEPLOY.parent.resolve()
    assert arguments[:8] == [
        "job",
        "submit",
        "--address",
        "http://head:8265",
        "--working-dir",
        ".",
        "--runtime-env",
        "deploy/runtime_env.yaml",
    ]
    assert arguments[arguments.index("--") + 1 :] == [
        "python",
        "-m",
        "rlir_ray",
        "train",
        "--recipe",
        "doom_tiny_ar",
        "rollout.resources={rollout_node: 0.01}",
    ]


def start_slurm_job(tmp_path: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
    """The batch script on two "nodes" of this machine; returns it and the folder of notes."""
    notes = tmp_path / "notes"
    notes.mkdir()
    put(
        tmp_path / "bin",
        srun=SRUN,
        scontrol="#!/bin/sh\nprintf 'one\\ntwo\\n'\n",
        hostname="#!/bin/sh\necho 127.0.0.1\n",
    )
    put(tmp_path / "venv", ray=RAY, python=DRIVER)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "NOTES": str(notes),
        "RLIR_BIN": str(tmp_path / "venv"),
        "RLIR_PORT": str(port),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_CPUS_PER_TASK": "4",
        "SLURM_GPUS_ON_NODE": "2",
    }
    return subprocess.Popen(["bash", DEPLOY / "slurm" / "rlir.sbatch", *arguments], env=environment), notes


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)
    return path.read_text()


def assert_nothing_is_left(tmp_path: Path, notes: Path) -> None:
    assert not list(tmp_path.glob(".rlir-token-*"))
    steps = [path for path in notes.iterdir() if path.name.startswith(("head", "node"))]
    assert sorted(path.name.split("-")[0] for path in steps) == ["head", "node"]
    for path in steps:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name.split("-")[1]), 0)


def test_a_slurm_job_that_is_told_to_end_waits_until_the_driver_has_saved(tmp_path: Path) -> None:
    job, notes = start_slurm_job(tmp_path, "--recipe", "doom_tiny_ar", "run.name=a b")
    try:
        driver = wait_for(notes / "driver")
        head = wait_for(next(notes.glob("head-*")))
        deadline = time.monotonic() + TIMEOUT_S
        while not list(notes.glob("node-*")):
            assert time.monotonic() < deadline, "no node came"
            time.sleep(0.05)
        # Slurm signals the batch script alone.
        job.send_signal(signal.SIGTERM)
        assert job.wait(TIMEOUT_S) == 130
    finally:
        job.kill()
    assert (notes / "saved").exists()
    address = driver.split()[0]
    assert driver == f"{address} -m rlir_ray train run.wait_for_nodes_s=300 --recipe doom_tiny_ar run.name=a b"
    assert f"--node-ip-address=127.0.0.1 --port={address.split(':')[1]}" in head and "--num-gpus=2" in head
    # 32 bytes that nobody guesses.
    assert len(head.split("token ")[1]) == 64
    assert_nothing_is_left(tmp_path, notes)


def test_a_slurm_job_ends_with_the_code_of_its_driver(tmp_path: Path) -> None:
    job, _ = start_slurm_job(tmp_path, "fails")
    try:
        assert job.wait(TIMEOUT_S) == 3
    finally:
        job.kill()
    assert not list(tmp_path.glob(".rlir-token-*"))
