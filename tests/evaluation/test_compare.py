"""The comparison of benchmark results with their baselines."""

import json

import pytest

from benchmarks.compare import HERE, RATIOS, Ratio, compare, select, update, verdict

OVERHEAD = {"found": {"pools_over_local": 1.02, "local_step_s": 1.0}}


def test_a_star_takes_every_key_and_what_was_not_measured_is_left_out():
    found = {"engines": {"flow": {"1": {"share": 0.5}, "2": {"share": 0.4}}, "torch": {"1": {"other": 1}}}}
    assert dict(select(found, ("engines", "*", "*", "share"))) == {
        "engines / flow / 1 / share": 0.5,
        "engines / flow / 2 / share": 0.4,
    }


@pytest.mark.parametrize(
    ("higher_is_better", "now", "expected"),
    [
        (True, 0.81, "ok"),
        (True, 0.79, "WORSE"),
        (True, 5.0, "ok"),
        (False, 1.19, "ok"),
        (False, 1.21, "WORSE"),
        (True, float("nan"), "WORSE"),
    ],
)
def test_only_what_is_worse_than_its_tolerance_counts(higher_is_better, now, expected):
    assert verdict(Ratio("any", (), 0.2, higher_is_better), 1.0, now) == expected


def test_a_result_that_is_missing_is_said(tmp_path):
    results, baselines = tmp_path / "results", tmp_path / "baselines"
    results.mkdir()
    baselines.mkdir()
    (baselines / "overhead.json").write_text(json.dumps(OVERHEAD))
    (line,) = [line for line, judged in compare(results, baselines) if line.startswith("overhead")]
    assert line == "overhead: no results/overhead.json"
    (results / "overhead.json").write_text(json.dumps({"found": {"pools_over_local": 1.2}}))
    assert ("overhead: found / pools_over_local: 1.020 -> 1.200", "WORSE") in compare(results, baselines)
    with pytest.raises(SystemExit, match="every benchmark must have a result"):
        update(results, baselines)
    assert json.loads((baselines / "overhead.json").read_text()) == OVERHEAD
    (results / "overhead.json").write_text(json.dumps({"found": {}}))
    assert ("overhead: found / pools_over_local: 1.020 -> none", "MISSING") in compare(results, baselines)
    assert {judged for line, judged in compare(results, baselines) if not line.startswith("overhead")} == {"MISSING"}


def test_every_committed_baseline_has_what_is_compared():
    for ratio in RATIOS:
        found = dict(select(json.loads((HERE / "baselines" / f"{ratio.file}.json").read_text()), ratio.path))
        assert found and all(value > 0 for value in found.values()), ratio
