from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.learner import ranks

# Some ten seconds on two free cores; the bound covers a busy machine, or one that still has to compile.
TIMEOUT_S = 280


def run_ranks(folder: Path, num_ranks: int, **settings: object) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    learner = {"engine": "deepspeed", "decision_budget": 160, **settings}
    request = json.dumps({"folder": str(folder), "learner": learner})
    common = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1"}
    command = [sys.executable, "-m", "tests.learner.ranks", request]
    processes = []
    try:
        for rank in range(num_ranks):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
            with (folder / f"rank{rank}.log").open("w") as log:
                processes.append(subprocess.Popen(command, env=common | place, stdout=log, stderr=subprocess.STDOUT))
        codes = [process.wait(TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0] * num_ranks, (folder / f"rank{codes.index(max(codes, key=abs))}.log").read_text()[-3000:]
    with np.load(folder / "weights.npz", allow_pickle=False) as weights:
        return json.loads((folder / "metrics.json").read_text()), dict(weights)


@pytest.fixture(scope="module")
def expected() -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    return ranks.run({"engine": "torch", "decision_budget": 160}, 0, 1)


@pytest.mark.parametrize(
    ("zero_stage", "num_ranks"),
    [
        (1, 2),
        (3, 2),
        pytest.param(0, 2, marks=pytest.mark.slow),
        pytest.param(2, 2, marks=pytest.mark.slow),
        pytest.param(1, 1, marks=pytest.mark.slow),
    ],
)
def test_ranks_and_zero_stages_train_as_the_plain_engine_does(
    tmp_path: Path, expected: tuple[list[dict[str, float]], dict[str, np.ndarray]], zero_stage: int, num_ranks: int
) -> None:
    metrics, weights = run_ranks(tmp_path, num_ranks, num_workers=num_ranks, zero_stage=zero_stage)
    for step, plain in zip(metrics, expected[0], strict=True):
        assert step == pytest.approx(plain, rel=1e-4, abs=1e-6)
        assert step["loss/policy"] == pytest.approx(plain["loss/policy"], abs=1e-6)
    assert weights.keys() == expected[1].keys()
    for name, value in weights.items():
        np.testing.assert_allclose(value, expected[1][name], atol=1e-6, rtol=0, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1])
def test_bfloat16_stays_near(
    tmp_path: Path, expected: tuple[list[dict[str, float]], dict[str, np.ndarray]], zero_stage: int
) -> None:
    metrics, _ = run_ranks(tmp_path, 2, num_workers=2, zero_stage=zero_stage, precision="bf16")
    assert metrics[0]["ratio/mean"] == pytest.approx(1, abs=0.02)
    assert metrics[0]["grad_norm"] == pytest.approx(expected[0][0]["grad_norm"], rel=0.1)
