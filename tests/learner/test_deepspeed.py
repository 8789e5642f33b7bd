from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

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
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # the ranks are its children
            raise
    assert code == 0, (folder / "log").read_text()[-3000:]
    return {name: read(folder / name) for name, own in runs.items() if "adds_up" not in own}


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
    runs = {f"zero{stage}": {"zero_stage": stage, "precision": "bf16"} for stage in (1, 2, 3)}
    for metrics, _ in run_all(tmp_path, runs).values():
        assert metrics[0]["ratio/mean"] == pytest.approx(1, abs=0.02)
        assert metrics[0]["grad_norm"] == pytest.approx(expected[0][0]["grad_norm"], rel=0.1)


def check_skipped(tmp_path: Path, kinds: list[dict[str, object]]) -> None:
    """A bad update between two good ones leaves what the good ones alone do, and all ranks know the cause."""
    runs: dict[str, dict[str, object]] = {}
    for place, own in enumerate(kinds):
        runs |= {f"good{place}": own, f"skipped{place}": {**own, "num_steps": 3, "poisoned_step": 1}}
    done = run_all(tmp_path, runs)
    for place, own in enumerate(kinds):
        metrics, weights = done[f"skipped{place}"]
        assert [step["updates/skipped"] for step in metrics] == [0, 1, 0], own
        causes = [json.loads(file.read_text()) for file in sorted((tmp_path / f"skipped{place}").glob("causes*"))]
        assert len(causes) == 2 and causes[0] == causes[1], own
        assert "loss or log-probabilities of group" in causes[0][1] and not causes[0][0] + causes[0][2]
        for key, value in done[f"good{place}"][1].items():
            np.testing.assert_array_equal(weights[key], value, err_msg=f"{own}: {key}")


@pytest.mark.slow
def test_an_update_that_is_bad_on_one_rank_is_skipped_on_all_and_leaves_no_trace(tmp_path: Path) -> None:
    check_skipped(tmp_path, [{"zero_stage": 1}, {"zero_stage": 3}])


@pytest.mark.slow
def test_bad_updates_are_skipped_in_all_stages_and_in_bfloat16(tmp_path: Path) -> None:
    half = [{"zero_stage": stage, "precision": "bf16"} for stage in (1, 2, 3)]
    check_skipped(tmp_path, [{"zero_stage": 0}, {"zero_stage": 2}, *half])


@pytest.mark.slow
def test_bfloat16_adds_up_gradients_of_micro_batches_in_float32(tmp_path: Path) -> None:
    runs: dict[str, dict[str, object]] = {
        f"{ranks}_ranks_zero{stage}": {"zero_stage": stage, "precision": "bf16", "num_workers": ranks, "adds_up": True}
        for ranks, stage in ((1, 1), (2, 2), (2, 3))
    }
    run_all(tmp_path, runs)
    for name in runs:
        # Of four times 1 + 512 / 1024, whose norm is 3; in bfloat16 1 + 1 / 1024 is 1, and the norm 2.
        assert json.loads((tmp_path / name / "sum0.json").read_text()) == pytest.approx(3, rel=1e-3), name


# The first writes its state after a step; each of the others goes on from it for one more.
RESUMED = {
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
    "one_rank": {"zero_stage": 1, "num_workers": 1},
    "torch": {"engine": "torch", "num_workers": 1},
}


def check_resumed(tmp_path: Path, first: dict[str, object], others: dict[str, dict[str, object]]) -> None:
    runs = {"whole": first, "first": {**first, "num_steps": 1}}
    runs |= {name: {**own, "source": "first", "num_steps": 1} for name, own in others.items()}
    done = run_all(tmp_path, runs)
    (_, last), weights = done["whole"]
    for name in others:
        (step,), found = done[name]
        assert step == pytest.approx(last, rel=1e-4, abs=1e-6), name
        for key, value in found.items():
            np.testing.assert_allclose(value, weights[key], atol=1e-6, rtol=0, err_msg=f"{name}: {key}")


@pytest.mark.slow
def test_a_state_goes_on_with_another_stage_another_number_of_ranks_and_another_engine(tmp_path: Path) -> None:
    check_resumed(tmp_path, {"zero_stage": 3}, RESUMED)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_state_of_any_stage_goes_on_anywhere(tmp_path: Path, stage: int) -> None:
    check_resumed(tmp_path, {"zero_stage": stage}, {**RESUMED, "zero0": {"zero_stage": 0}})


@pytest.mark.slow
def test_a_bfloat16_state_keeps_its_float32_weights(tmp_path: Path) -> None:
    runs: dict[str, dict[str, object]] = {}
    for stage in (1, 2, 3):
        own: dict[str, object] = {"zero_stage": stage, "precision": "bf16"}
        runs[f"whole{stage}"] = own
        runs[f"first{stage}"] = {**own, "num_steps": 1}
        runs[f"resumed{stage}"] = {**own, "source": f"first{stage}", "num_steps": 1}
    done = run_all(tmp_path, runs)
    for stage in (1, 2, 3):
        assert done[f"resumed{stage}"][0][0] == pytest.approx(done[f"whole{stage}"][0][1], rel=1e-3, abs=1e-5)
        # Updates of 2e-5 vanish in bfloat16: they live on in the weights that the state holds.
        with np.load(tmp_path / f"first{stage}" / "state.npz") as state:
            assert int(state["num_updates"]) == 1
            kept = np.concatenate([state[name].ravel() for name in state if name.startswith("weight/")])
        assert np.any(kept != torch.from_numpy(kept).bfloat16().float().numpy())
        with (
            np.load(tmp_path / f"whole{stage}" / "state.npz") as a,
            np.load(tmp_path / f"resumed{stage}" / "state.npz") as b,
        ):
            for name in a:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-6, err_msg=f"{stage}: {name}")
