"""A console that goes away: with SIGHUP, as a closed terminal sends it, training ends and saves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlir_ray.run.checkpoint import newest
from tests.chaos.test_driver_killed import ROOT, TIMEOUT_S

pytestmark = [pytest.mark.slow, pytest.mark.timeout(290)]
MANY = "train.num_steps=5000"


def test_a_run_whose_terminal_is_closed_saves(checkpoints: Path, tmp_path: Path) -> None:
    """The kernel sends SIGHUP to all processes of the terminal, Ray's own among them; it may come twice."""
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
        process.send_signal(signal.SIGHUP)
        assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()
    point = newest(tmp_path / "tiny", pytest.fail)
    assert point is not None and 1 <= point.step < 5000
    assert (tmp_path / "tiny" / "policy" / "config.json").is_file()
