"""The page "Your own world", as written, with few frames; and a game of 18 choices through the same commands."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from rlir_ray.evaluation.results import BASE, POST_TRAINED, Results
from rlir_ray.spaces.space import read_space
from tests.docs.pages import ROOT, blocks

PAGE = "docs/guides/own-world.md"


def run(arguments: list[str], folder: Path) -> str:
    """Run `python -m rlir_ray` as a user does, in a process of its own; return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "rlir_ray", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def shown(name: str) -> list[list[str]]:
    """The arguments of all commands of the page that call NAME."""
    lines = "".join(blocks(PAGE, "bash")).replace("\\\n", " ").splitlines()
    found = [shlex.split(line)[3:] for line in lines if "-m rlir_ray" in line]
    return [arguments for arguments in found if arguments[0] == name]


def check_run(run_dir: Path, figures: tuple[str, ...]) -> None:
    """Two steps were trained, and both policies were evaluated."""
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2]
    assert max(step["ratio/max_abs_log"] for step in steps[:1]) < 1e-3
    results = Results.load(run_dir)
    for name in (BASE, POST_TRAINED):
        evaluation = results.find(name)
        assert evaluation is not None and evaluation.following["judge"].headline == figures
    assert (run_dir / "report.html").stat().st_size > 10_000
    assert list((run_dir / "policy").glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_the_page_leads_from_an_environment_to_a_post_trained_model(tmp_path: Path) -> None:
    pytest.importorskip("gym_pusht")
    (collect,) = shown("collect")
    text = run([*(word if word != "36000" else "1800" for word in collect), "--no-probe"], tmp_path)
    assert "1800 frames in 15 episodes" in text and "-m rlir_ray new work/pusht --data data/pusht" in text
    _, quick = shown("new")
    run(quick, tmp_path)
    check_run(tmp_path / "runs" / "pusht_quick", ("axis_error", "r2"))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_a_game_of_18_choices_trains_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("ale_py")
    collect = ["collect", "--env", "ale_py:ALE/Breakout-v5", "--env-arg", "full_action_space=true", "--no-probe"]
    run(
        [*collect, "--frames", "1800", "--episode-frames", "120", "--size", "48x48", "--out", "data/breakout"], tmp_path
    )
    (field,) = read_space(tmp_path / "data/breakout/action_space.json").fields
    assert field.num_classes == 18 and field.null_class == 0
    run(["new", "work/breakout", "--data", "data/breakout", "--quick"], tmp_path)
    check_run(tmp_path / "runs" / "breakout", ("accuracy", "macro_f1"))
