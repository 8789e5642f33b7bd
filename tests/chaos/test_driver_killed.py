"""R4: the driver is killed; the same command goes on from its latest checkpoint, whether or not anyone listens."""

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


@pytest.mark.parametrize("max_staleness", [0, 2])
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
    content = json.loads((point.path / "driver.json").read_text())
    ahead = [each["group_id"] for each in content["ledger"]["groups"] if each["state"] == "in_flight"]
    assert bool(ahead) == bool(max_staleness)
    second = start(checkpoints, tmp_path, *options)
    try:
        read_until(second, f"run tiny resumes after step {point.step}, from {point.path}")
        # As `train | head` does: nobody reads what it says from here on.
        assert second.stdout is not None
        second.stdout.close()
        assert second.wait(TIMEOUT_S) == 0
    finally:
        second.kill()
    folder = tmp_path / "tiny"
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5] and (folder / "policy" / "config.json").is_file()
    if not max_staleness:
        expected, _ = run_local(tiny_config(checkpoints, tmp_path / "local", *options))
        losses = [step["loss/policy"] for step in expected]
        assert [step["loss/policy"] for step in steps] == pytest.approx(losses, rel=1e-4, abs=1e-5)
    ledger = Ledger.from_json((folder / "ledger.json").read_text())
    ledger.check()
    assert ledger.counts()["trained"] == 20 and ledger.counts()["failed"] == 0
    # Groups ahead of the learner are kept, or sampled again under their numbers.
    assert all(ledger[group_id].state in ("trained", "stale", "no_signal") for group_id in ahead)
    assert len(list((folder / "checkpoints").glob("step_*"))) == 2
