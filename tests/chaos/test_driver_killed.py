"""R4: the driver is killed; the same command goes on from its latest checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlir_ray.algorithm.ledger import Ledger
from rlir_ray.run.checkpoint import newest
from tests.actors.test_driver import run_local
from tests.world import tiny_config

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120

pytestmark = [pytest.mark.slow, pytest.mark.timeout(290)]


def start(checkpoints: Path, run_dir: Path, *overrides: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.run_driver", checkpoints, run_dir, *overrides],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    seen = []
    for found in process.stdout:
        if found.rstrip() == line:
            return
        seen.append(found)
    raise AssertionError("".join(seen))


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_killed_driver_loses_the_steps_since_its_checkpoint_and_no_group(
    checkpoints: Path, tmp_path: Path, max_staleness: int
) -> None:
    options = ["train.num_steps=5", "checkpoint.every=2", f"train.max_staleness={max_staleness}"]
    first = start(checkpoints, tmp_path, *options)
    try:
        read_until(first, "step 3")
    finally:
        first.kill()
        first.wait(TIMEOUT_S)
    point = newest(tmp_path / "tiny", pytest.fail)
    # It may have come a step further before it died.
    assert point is not None and point.step in (2, 4) and not (tmp_path / "tiny" / "policy").exists()
    second = start(checkpoints, tmp_path, *options)
    try:
        read_until(second, f"run tiny resumes after step {point.step}, from {point.path}")
        out, _ = second.communicate(timeout=TIMEOUT_S)
    finally:
        second.kill()
    assert second.returncode == 0, out
    told = json.loads(out.splitlines()[-1])
    assert told["num_steps"] == len(told["losses"]) == 5
    if not max_staleness:
        expected, _ = run_local(tiny_config(checkpoints, tmp_path / "local", *options))
        assert told["losses"] == pytest.approx([step["loss/policy"] for step in expected], rel=1e-4, abs=1e-5)
    ledger = Ledger.from_json((tmp_path / "tiny" / "ledger.json").read_text())
    ledger.check()
    assert ledger.counts()["trained"] == 20 and ledger.counts()["failed"] == 0
