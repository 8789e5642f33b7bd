"""What the pages show in Python runs as it stands, on fewer prompts and steps."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from rlir_ray.data.preference_pairs import read_pairs
from rlir_ray.evaluation.video import Clips, save_clips
from rlir_ray.spaces.vpt import VPT_SPACE, buttons_of
from tests.data.videos import read_recording
from tests.docs.pages import ROOT, blocks

SMALL = ("prompts.num_train=16", "prompts.num_heldout=8", "evaluation.num_videos=1", "train.prompts_per_step=2")
PYTHON, RECORDINGS = "docs/guides/python.md", "docs/guides/own-recordings.md"
PREFERENCES = "docs/guides/preferences.md"


def names_of(program):
    found = {}
    exec(compile(program, "page", "exec"), found)
    return found


def test_the_readme_shows_the_program_of_the_guide():
    (program,) = blocks("README.md", "python")
    assert program == blocks(PYTHON, "python")[0] and len(program.splitlines()) <= 10


def test_the_recorded_loop_is_read_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = names_of(blocks(RECORDINGS, "python")[0])
    recording = read_recording(tmp_path / "data/mine/first.mp4")
    assert len(recording.frames) == len(names["frames"]) == 16
    # Forward is pressed in every event but the first.
    pressed = buttons_of(recording.actions.classes).any(axis=1)
    assert not pressed[0] and pressed[1:].all()


def run_program(program, folder):
    # A process of its own, as a user's: it starts its own Ray.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    small = ", ".join(f'"{each}"' for each in (*SMALL, "train.num_steps=2"))
    program = program.replace('"train.num_steps=10"', small)
    assert "train.num_steps=2" in program
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_pipeline_of_the_readme_runs(tmp_path):
    last = run_program(blocks("README.md", "python")[0], tmp_path).splitlines()[-1]
    assert (tmp_path / "runs" / "from-python" / "policy" / "model.safetensors").is_file()
    assert "from-python" in last and "'trained': 4" in last


def test_the_clips_of_a_run_become_clips_to_judge(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 24, 32, 3), dtype=np.uint8)
    commanded = np.zeros((2, 3, len(VPT_SPACE.fields)), np.float32)
    clips = Clips(
        name="base", frames=frames, space=VPT_SPACE, commanded=commanded, recovered=None, prompt_ids=("a", "b")
    )
    save_clips(tmp_path / "runs/first", clips)
    names_of(blocks(PREFERENCES, "python")[0])
    lines = [json.loads(line) for line in blocks(PREFERENCES, "json")[0].splitlines()]
    for line, (first, second) in zip(lines, [(0, 1), (1, 0), (0, 1)], strict=True):
        line |= {"first": f"clips/{first:02d}-base.mp4", "second": f"clips/{second:02d}-base.mp4"}
    (tmp_path / "work/pairs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = read_pairs(tmp_path / "work/pairs.jsonl", lambda frames: frames)
    assert [(pair.label, pair.dimension) for pair in found.pairs] == [(1, "overall"), (-1, "overall"), (0, "motion")]
    stored = found.clips[tmp_path / "work/clips/01-base.mp4"]
    assert stored.shape == (4, 24, 32, 3) and np.abs(stored.astype(int) - frames[1]).mean() < 10
