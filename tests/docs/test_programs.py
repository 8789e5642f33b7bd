"""What the pages show in Python runs as it stands, on fewer prompts and steps."""

import os
import subprocess
import sys

import numpy as np
import pytest

from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.config.sections import LearnerConfig, TrainConfig
from rlir_ray.data.recordings import read_recording
from rlir_ray.learner.step import Learner, StepBatch, trained_decisions
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.models.rescoring import TokenRescorer
from rlir_ray.samplers.torch_sampler import TorchSampler
from rlir_ray.trajectory import check_scores
from tests.docs.pages import ROOT, blocks
from tests.fakes import tiny_prompts, tiny_world_model
from tests.own_rewards import small_video

SMALL = ("prompts.num_train=16", "prompts.num_heldout=8", "evaluation.num_videos=1", "train.prompts_per_step=2")
PYTHON, REWARD, OBJECTIVE, RECORDINGS = (
    f"docs/guides/{name}.md" for name in ("python", "own-reward", "own-objective", "own-recordings")
)


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
    pressed = recording.actions.buttons.any(axis=1)
    assert not pressed[0] and pressed[1:].all()


def test_the_reward_scores_every_clip_and_frame():
    reward, video = names_of(blocks(REWARD, "python")[0])["SteadyReward"](), small_video(7)
    scores = reward.score([video])
    check_scores(scores, [video])
    # All frames of a small video have the same token.
    assert scores[0].group_id == 7 and np.array_equal(scores[0].frame_rewards, np.ones((2, 3), np.float32))


def test_the_objective_raises_what_good_clips_decided():
    model, train = tiny_world_model(), TrainConfig(learning_rate=1e-2, warmup_steps=0, group_size=4)
    settings = LearnerConfig(engine="torch")
    objective = names_of(blocks(OBJECTIVE, "python")[0])["PositiveOnly"](model, TokenRescorer(1.0))
    learner = Learner(TorchEngine(model, train, settings), objective, train, settings)
    (group, _), *_ = TorchSampler(tiny_world_model(), temperature=1.0).sample(tiny_prompts(1), [0], [0], 4)
    # One good clip: the loss is minus the sum of its log-probabilities, over all decisions.
    advantages = np.repeat(np.array([[1.0], [-1.0], [-1.0], [-1.0]], np.float32), 3, axis=1)
    step = [GroupAdvantages.of_all(advantages)]
    batch = StepBatch([group], step, trained_decisions([group], step))
    before, after = (learner.step(batch)["loss/policy"] for _ in range(2))
    assert before == pytest.approx(-group.behavior_logprobs[0].sum() / batch.num_decisions, rel=1e-3)
    assert after < before


def run_program(program, folder):
    # A process of its own, as a user's: it starts its own Ray.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("RAY_ADDRESS", None)
    small = ", ".join(f'"{each}"' for each in (*SMALL, "train.num_steps=2"))
    program = program.replace('"train.num_steps=10"', small)
    assert "train.num_steps=2" in program
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_pipeline_of_the_readme_runs(tmp_path):
    last = run_program(blocks("README.md", "python")[0], tmp_path).splitlines()[-1]
    assert (tmp_path / "runs" / "from-python" / "policy" / "model.safetensors").is_file()
    assert "from-python" in last and "'trained': 4" in last


@pytest.mark.slow
def test_the_reward_of_the_guide_trains(tmp_path):
    run_program("\n".join(blocks(REWARD, "python")), tmp_path)
    assert (tmp_path / "runs" / "steady" / "policy" / "model.safetensors").is_file()
