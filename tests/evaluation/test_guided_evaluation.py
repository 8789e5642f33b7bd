"""Evaluations at several scales of the action guidance: rows, comparisons and files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from rlir_ray.config import EvaluationConfig
from rlir_ray.evaluation.results import FILE, Results, judged_samplings, record_evaluation
from rlir_ray.evaluation.tables import difference_rows, following_rows, quality_rows
from tests.evaluation.test_report import evaluation


def record(run_dir: Path, name: str, wrong: float, guidance: float) -> None:
    found, _ = evaluation(name, wrong)
    record_evaluation(run_dir, replace(found, guidance=guidance, policy_version=3))


def test_every_scale_is_evaluated_at_every_temperature() -> None:
    settings = EvaluationConfig(temperatures=(1.0, 0.5), guidance=(2.5, 1.0))
    assert settings.samplings == [(1.0, 2.5), (1.0, 1.0), (0.5, 2.5), (0.5, 1.0)]


def test_the_headline_is_compared_with_the_base_at_every_scale(tmp_path: Path) -> None:
    for scale, wrong in ((2.5, 0.3), (1.0, 0.4), (4.0, 0.2)):
        record(tmp_path, "base", wrong, scale)
    for scale, wrong in ((2.5, 0.1), (1.0, 0.2)):
        record(tmp_path, "post-trained", wrong, scale)
    record(tmp_path, "base", 0.2, 4.0)  # replaces that of the same scale
    results = Results.load(tmp_path)
    assert judged_samplings(tmp_path, "base", 3) == {(1.0, 2.5), (1.0, 1.0), (1.0, 4.0)}
    assert [(each.before_guidance, each.after_guidance) for each in results.comparisons] == [
        (2.5, 2.5),
        (1.0, 2.5),
        (4.0, 2.5),
        (1.0, 1.0),
    ]
    assert results.find("base").guidance == 2.5
    names = [cells[0] for _, cells in following_rows(results)]
    assert names[:2] == ["Base model at T = 1, guidance 2.5", "Base model at T = 1"]
    differences = [cells[0] for _, cells in difference_rows(results)]
    assert differences[2] == "Post-trained at T = 1, guidance 2.5 − Base model at T = 1, guidance 4"
    # Pictures are compared where both sampled alike.
    assert [cells[0] for _, cells in quality_rows(results) if "−" in cells[0]] == [differences[0], differences[3]]


def test_results_of_earlier_versions_have_no_guidance(tmp_path: Path) -> None:
    record(tmp_path, "base", 0.3, 1.0)
    record(tmp_path, "post-trained", 0.1, 1.0)
    new, content = Results.load(tmp_path), json.loads((tmp_path / FILE).read_text())
    for each in content["evaluations"]:
        del each["guidance"]
    for each in content["comparisons"]:
        del each["before_guidance"], each["after_guidance"]
    (tmp_path / FILE).write_text(json.dumps(content))
    old = Results.load(tmp_path)
    assert [each.to_json() for each in old.evaluations] == [each.to_json() for each in new.evaluations]
    assert old.comparisons == new.comparisons
