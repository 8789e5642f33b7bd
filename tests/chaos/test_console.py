"""A console that goes away: without a signal training goes on; with SIGHUP, as a closed terminal sends it, it saves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlir_ray.run.checkpoint import newest
from tests.chaos.test_driver_killed import ROOT, TIMEOUT_S, read_until, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(290)]
MANY = "train.num_steps=5000"


def check_saved_early(folder: Path) -> None:
    point = newest(folder, pytest.fail)
    assert point is not None and 1 <= point.step < 5000
    assert (folder / "policy" / "config.json").is_file()


def test_a_hangup_that_comes_twice_saves_as_a_termination_does(checkpoints: Path, tmp_path: Path) -> None:
    process = start(checkpoints, tmp_path, MANY)
    try:
        read_until(process, "step 1")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)
        out, _ = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 0, out
    assert json.loads(out.splitlines()[-1])["num_steps"] < 5000
    check_saved_early(tmp_path / "tiny")


def test_a_pipe_that_is_closed_ends_nothing(checkpoints: Path, tmp_path: Path) -> None:
    """As `train | head` does."""
    process = start(checkpoints, tmp_path, "train.num_steps=8")
    try:
        read_until(process, "step 1")
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()
    lines = (tmp_path / "tiny" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 9))
    assert (tmp_path / "tiny" / "policy" / "config.json").is_file()


def test_a_run_whose_terminal_is_closed_saves(checkpoints: Path, tmp_path: Path) -> None:
    """The kernel sends SIGHUP to all processes of the terminal, Ray's own among them."""
    ours, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.run_driver", checkpoints, tmp_path, MANY],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TAKE_TERMINAL": "1"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    try:
        seen = b""
        while b"step 1\r\n" not in seen:
            seen += os.read(ours, 4096)
        os.close(ours)
        assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()
    check_saved_early(tmp_path / "tiny")
