"""What all trainings of base models share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlir_ray.pretrain.loop import clip_gradients, train
from rlir_ray.pretrain.task import Autocast, Every, Length, Progress, Task
from tests.pretrain.interruption import interrupted_after_state


@dataclass(frozen=True)
class LineTraining:
    """Settings of `LineTask`."""

    minutes: float = 0.0
    num_steps: int = 6
    rate: float = 0.1


class LineTask(Task):
    """One weight that learns to double its input."""

    name = "line"

    def __init__(self, settings: LineTraining = LineTraining(), precision: str = "fp32") -> None:
        torch.manual_seed(0)
        self.products: list[Tensor] = []
        self.bad_step, self.bad = -1, ""
        super().__init__(
            settings,
            nn.Linear(1, 1, bias=False),
            length=Length.of(settings),
            curve_every=Every(steps=3),
            save_every=Every(steps=2),
            device="cpu",
            precision=precision,
        )

    def build_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters())

    def learning_rate(self, share: float) -> float:
        return float(self.settings.rate)

    def loss(self, progress: Progress, autocast: Autocast) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        inputs = torch.full((4, 1), 1.0 + progress.step)
        with autocast():
            outputs = self.model(inputs)
        self.products.append(outputs.detach())
        loss = (outputs.float() - 2 * inputs).square().mean()
        if progress.step == self.bad_step:
            # The square root is 0, and its gradient infinite times 0.
            loss = loss + (math.nan if self.bad == "loss" else (self.model.weight * 0).sum().sqrt())
        return loss, {"number": progress.step}

    def save(self, folder: Path, final: Mapping[str, Any], steps: int, elapsed_s: float) -> dict[str, Any]:
        torch.save(self.model.state_dict(), folder / "line.pt")
        return {"final": final}


def trained_weight(folder: Path) -> float:
    return float(torch.load(folder / "line.pt", weights_only=True)["weight"])


def test_a_curve_holds_means_since_the_line_before(tmp_path: Path) -> None:
    report = train(LineTask(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text(encoding="utf-8").splitlines()]
    # The metric is the number of the update; after the last line nothing is left to tell.
    assert [(line["step"], line["number"]) for line in lines] == [(3, 1.0), (6, 4.0)]
    assert report["steps"] == 6 and report["final"] == {}
    assert json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))["settings"]["rate"] == 0.1


def test_trainings_of_both_precisions_run_in_one_process(tmp_path: Path) -> None:
    for index, precision in enumerate(("fp32", "bf16", "fp32")):
        task = LineTask(precision=precision)
        train(task, tmp_path / str(index))
        assert {one.dtype for one in task.products} == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert trained_weight(tmp_path / "0") == trained_weight(tmp_path / "2")


def test_a_training_that_ends_while_a_state_is_written_resumes_from_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(LineTask(), tmp_path / "whole")
    with interrupted_after_state():
        train(LineTask(), tmp_path / "parts")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        # The weights of the next state are there, its other files are not.
        patch.setattr("rlir_ray.pretrain.state.write_json", full_disk)
        train(LineTask(), tmp_path / "parts")
    assert sorted(path.name for path in (tmp_path / "parts").glob("state*")) == ["state-00000002", "state.part"]
    task = LineTask()
    train(task, tmp_path / "parts")
    assert len(task.products) == 4  # updates 2 to 5
    assert trained_weight(tmp_path / "parts") == trained_weight(tmp_path / "whole")
    assert not list((tmp_path / "parts").glob("state*"))


def full_disk(*arguments: object) -> None:
    raise OSError("no space left on device")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("loss", "the loss must be finite, got nan at step 3; give"),
        ("gradient", "gradients must be finite, got NaN or infinity in weight; give"),
    ],
)
def test_a_number_that_is_not_finite_ends_the_training_before_the_update_and_saves_nothing(
    bad: str, message: str, tmp_path: Path
) -> None:
    task = LineTask()
    task.bad_step, task.bad = 3, bad
    with pytest.raises(ValueError, match=message) as refusal:
        train(task, tmp_path)
    assert "\n" not in str(refusal.value)
    assert bool(task.model.weight.isfinite().all())
    assert [path.name for path in tmp_path.glob("state*")] == ["state-00000002"]
    assert not (tmp_path / "training.json").exists()
    # The state before is good: the same training goes on from it.
    train(LineTask(), tmp_path)
    train(LineTask(), tmp_path / "whole")
    assert trained_weight(tmp_path) == trained_weight(tmp_path / "whole")


def test_a_state_of_other_settings_is_refused_and_one_of_another_length_is_not(tmp_path: Path) -> None:
    with interrupted_after_state():
        train(LineTask(), tmp_path)
    with pytest.raises(ValueError, match="must keep its settings, got another rate; repeat them"):
        train(LineTask(replace(LineTraining(), rate=1.0)), tmp_path)
    task = LineTask(replace(LineTraining(), num_steps=3))
    assert train(task, tmp_path)["steps"] == 3 and len(task.products) == 1


def test_a_checkpoint_of_an_earlier_version_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"old")
    with pytest.raises(ValueError, match="is of an earlier version and cannot be resumed; remove it") as refusal:
        train(LineTask(), tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_gradient_that_is_not_finite_ends_the_training_before_the_update_and_is_named() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    model(torch.ones(1, 2)).sum().backward()
    clip_gradients(model, 1e-3)
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)
    model.zero_grad()
    (model[0](torch.ones(1, 2)).sum() + (model[1].weight * float("nan")).sum()).backward()
    with pytest.raises(ValueError, match=r"must be finite, got NaN or infinity in 1\.weight;") as refusal:
        clip_gradients(model, 1.0)
    assert "\n" not in str(refusal.value)
