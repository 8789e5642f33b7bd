from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.learner import ranks

# Some ten seconds on two free cores; the bound covers a busy machine.
TIMEOUT_S = 280
LEARNER = {"engine": "deepspeed", "decision_budget": 160, "num_workers": 2}

Run = tuple[list[dict[str, float]], dict[str, np.ndarray]]


def run_all(folder: Path, runs: dict[str, dict[str, object]]) -> dict[str, Run]:
    request = json.dumps({"folder": str(folder), "runs": {name: LEARNER | own for name, own in runs.items()}})
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.learner.ranks", request],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # the ranks are its children
            raise
    assert code == 0, (folder / "log").read_text()[-3000:]
    return {name: read(folder / name) for name in runs}


def read(folder: Path) -> Run:
    with np.load(folder / "weights.npz", allow_pickle=False) as weights:
        return json.loads((folder / "metrics.json").read_text()), dict(weights)


@pytest.fixture(scope="module")
def expected() -> Run:
    return ranks.run({"engine": "torch", "decision_budget": 160}, 0, 1)


def check_same(run: Run, expected: Run) -> None:
    for step, plain in zip(run[0], expected[0], strict=True):
        assert step == pytest.approx(plain, rel=1e-4, abs=1e-6)
        assert step["loss/policy"] == pytest.approx(plain["loss/policy"], abs=1e-6)
    assert run[1].keys() == expected[1].keys()
    for name, value in run[1].items():
        np.testing.assert_allclose(value, expected[1][name], atol=1e-6, rtol=0, err_msg=name)


def test_two_ranks_train_as_one_plain_process_does(tmp_path: Path, expected: Run) -> None:
    runs = {f"zero{stage}": {"zero_stage": stage} for stage in (1, 3)}
    for run in run_all(tmp_path, runs).values():
        check_same(run, expected)


@pytest.mark.slow
def test_other_stages_and_one_rank_train_alike(tmp_path: Path, expected: Run) -> None:
    runs = {f"zero{stage}": {"zero_stage": stage} for stage in (0, 2)}
    runs |= {f"one_rank_zero{stage}": {"zero_stage": stage, "num_workers": 1} for stage in (0, 1, 3)}
    for run in run_all(tmp_path, runs).values():
        check_same(run, expected)


@pytest.mark.slow
def test_bfloat16_stays_near(tmp_path: Path, expected: Run) -> None:
    runs = {f"zero{stage}": {"zero_stage": stage, "precision": "bf16"} for stage in (0, 1, 2, 3)}
    for metrics, _ in run_all(tmp_path, runs).values():
        assert metrics[0]["ratio/mean"] == pytest.approx(1, abs=0.02)
        assert metrics[0]["grad_norm"] == pytest.approx(expected[0][0]["grad_norm"], rel=0.1)
