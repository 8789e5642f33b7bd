from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlir_ray.config import LearnerConfig, TrainConfig
from tests.learner import ranks
from tests.learner.ranks import Runs

# A run takes seconds on two free cores; the bound covers a busy machine.
TIMEOUT_S = 280

Run = tuple[list[dict[str, float]], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        return Runs(tmp_path_factory.mktemp("runs"), TIMEOUT_S)


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


def test_two_ranks_train_as_one_plain_process_does(runs: Runs, expected: Run) -> None:
    for stage in (1, 3):
        check_same(read(runs(zero_stage=stage)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_two_ranks_make_the_same_updates_of_a_step_as_one_process(runs: Runs, stage: int) -> None:
    expected = ranks.run({"engine": "torch", "decision_budget": 160}, 0, 1, ranks.SEVERAL)
    assert expected[0][0]["ratio/clip_fraction"] > 0
    check_same(read(runs(zero_stage=stage, several=True)), expected)


def test_a_policy_with_an_odd_number_of_weights_gets_buckets_of_even_size() -> None:
    from rlir_ray.learner.deepspeed import _settings

    settings: Any = _settings(torch.nn.Linear(2, 1), TrainConfig(), LearnerConfig())
    assert settings["zero_optimization"]["allgather_bucket_size"] == 4
    assert settings["zero_optimization"]["reduce_bucket_size"] == 4


@pytest.mark.slow
def test_other_stages_and_one_rank_train_alike(runs: Runs, expected: Run) -> None:
    for stage in (0, 2):
        check_same(read(runs(zero_stage=stage)), expected)
    for stage in (0, 1, 3):
        check_same(read(runs(zero_stage=stage, num_workers=1)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bfloat16_stays_near(runs: Runs, expected: Run, stage: int) -> None:
    metrics, _ = read(runs(zero_stage=stage, precision="bf16"))
    assert metrics[0]["ratio/mean"] == pytest.approx(1, abs=0.02)
    assert metrics[0]["grad_norm"] == pytest.approx(expected[0][0]["grad_norm"], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "own",
    [{"zero_stage": stage} for stage in range(4)] + [{"zero_stage": stage, "precision": "bf16"} for stage in (1, 2, 3)],
    ids=lambda own: "-".join(map(str, own.values())),
)
def test_an_update_that_is_bad_on_one_rank_is_skipped_on_all_and_leaves_no_trace(
    runs: Runs, own: dict[str, Any]
) -> None:
    """A bad update between two good ones leaves what the good ones alone do, and all ranks know the cause."""
    skipped = runs(**own, num_steps=3, poisoned_step=1)
    metrics, weights = read(skipped)
    assert [step["updates/skipped"] for step in metrics] == [0, 1, 0]
    causes = [json.loads(file.read_text()) for file in sorted(skipped.glob("causes*"))]
    assert len(causes) == 2 and causes[0] == causes[1]
    assert "loss or log-probabilities of group" in causes[0][1] and not causes[0][0] + causes[0][2]
    for key, value in read(runs(**own))[1].items():
        np.testing.assert_array_equal(weights[key], value, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 1), (2, 2), (2, 3)])
def test_bfloat16_adds_up_gradients_of_micro_batches_in_float32(runs: Runs, num_ranks: int, stage: int) -> None:
    folder = runs(zero_stage=stage, precision="bf16", num_workers=num_ranks, adds_up=True)
    # Of four times 1 + 512 / 1024, whose norm is 3; in bfloat16 1 + 1 / 1024 is 1, and the norm 2.
    assert json.loads((folder / "sum0.json").read_text()) == pytest.approx(3, rel=1e-3)


# Each goes on for one step from the state that another one has after its first step.
RESUMED: dict[str, dict[str, Any]] = {
    "zero0": {"zero_stage": 0},
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
    "one_rank": {"zero_stage": 1, "num_workers": 1},
    "torch": {"engine": "torch", "num_workers": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("own", RESUMED.values(), ids=RESUMED)
def test_a_state_of_any_stage_goes_on_anywhere(runs: Runs, stage: int, own: dict[str, Any]) -> None:
    whole = runs(zero_stage=stage)
    (_, last), weights = read(whole)
    (step,), found = read(runs(**own, source=whole / "state1.npz", num_steps=1))
    assert step == pytest.approx(last, rel=1e-4, abs=1e-6)
    for key, value in found.items():
        np.testing.assert_allclose(value, weights[key], atol=1e-6, rtol=0, err_msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_bfloat16_state_keeps_its_float32_weights(runs: Runs, stage: int) -> None:
    own: dict[str, Any] = {"zero_stage": stage, "precision": "bf16"}
    whole = runs(**own)
    resumed = runs(**own, source=whole / "state1.npz", num_steps=1)
    assert read(resumed)[0][0] == pytest.approx(read(whole)[0][1], rel=1e-3, abs=1e-5)
    # Updates of 2e-5 vanish in bfloat16: they live on in the weights that the state holds.
    with np.load(whole / "state1.npz") as state:
        assert int(state["num_updates"]) == 1
        kept = np.concatenate([state[name].ravel() for name in state if name.startswith("weight/")])
    assert np.any(kept != torch.from_numpy(kept).bfloat16().float().numpy())
    with np.load(whole / "state2.npz") as a, np.load(resumed / "state1.npz") as b:
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-6, err_msg=name)
