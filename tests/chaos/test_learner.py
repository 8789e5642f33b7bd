"""R3: a learner rank killed in the middle of a step costs the steps since the latest checkpoint, and no group.

R9: the newest checkpoint was truncated; the run goes on from the one before.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import actors.learner.group
from actors.learner.actor import build_learner
from actors.learner.group import LearnerLost
from actors.pipeline import Pipeline, TrainResult
from rlir_ray.algorithm.ledger import Ledger
from rlir_ray.config import Config
from rlir_ray.learner.step import Learner
from tests.actors.test_driver import assert_same_run
from tests.world import tiny_prompt_set

# Each start of learner ranks takes ten to twenty seconds here.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

VICTIM_STEP = 3


def mortal_learner(config: Config) -> Learner:
    """The configured one, whose last rank dies once, between the gradients and the update of the fourth step."""
    learner, marker = build_learner(config), Path(config.run.dir) / "killed"
    update = learner.engine.optimizer_step

    def die_or_update(learning_rate: float) -> float:
        is_victim = learner.engine.rank == config.learner.num_workers - 1
        if is_victim and learner.num_steps == VICTIM_STEP and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return update(learning_rate)

    learner.engine.optimizer_step = die_or_update  # type: ignore[method-assign]
    return learner


def learner_that_starts_badly(config: Config) -> Learner:
    """The mortal one, whose first successor dies before it is ready."""
    folder = Path(config.run.dir)
    if (folder / "killed").exists() and not (folder / "killed again").exists():
        (folder / "killed again").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return mortal_learner(config)


def make_pipeline(config: Config, monkeypatch: pytest.MonkeyPatch, lines: list[str], build=mortal_learner) -> Pipeline:
    monkeypatch.setattr(actors.learner.group, "build_learner", build)
    return Pipeline(config, prompts=tiny_prompt_set, progress=lines.append)


def train(*arguments) -> TrainResult:
    return make_pipeline(*arguments).train(calibrate=False, evaluate=False)


def check_recovered(result, config: Config, lines: list[str], after: int) -> None:
    (told,) = (line for line in lines if "lost" in line)
    assert told.startswith("the learner was lost in step 4 (learner ")
    assert told.endswith(f"new ranks resume after step {after} (restart 1 of learner.max_restarts=3)")
    assert_same_run(result, config)
    ledger = Ledger.from_json((result.folder / "ledger.json").read_text())
    ledger.check()
    assert ledger.counts()["trained"] == 4 * config.train.num_steps and ledger.counts()["failed"] == 0


def test_new_ranks_go_on_from_the_latest_checkpoint_and_broadcast_like_the_first_ones(
    ray_cluster, make_config, monkeypatch
) -> None:
    options = ["train.num_steps=5", "checkpoint.every=2", "weights.transfer=broadcast", "rollout.num_actors=2"]
    config, lines = make_config(*options), []
    pipeline = make_pipeline(config, monkeypatch, lines)
    check_recovered(pipeline.train(calibrate=False, evaluate=False), config, lines, after=2)
    assert not [line for line in lines if line.startswith("weights")]
    # The last version before the loss and the last one of all may still be in flight then.
    assert pipeline.driver.session.sync.broadcasts.num_complete >= config.train.num_steps


def test_new_ranks_that_die_before_they_are_ready_are_replaced_too(ray_cluster, make_config, monkeypatch) -> None:
    config, lines = make_config("train.num_steps=4", "checkpoint.every=2", "train.max_staleness=1"), []
    result = train(config, monkeypatch, lines, learner_that_starts_badly)
    told = [line for line in lines if "lost" in line]
    assert [line[line.index("(restart") :] for line in told] == [
        f"(restart {number} of learner.max_restarts=3)" for number in (1, 2)
    ]
    ledger = Ledger.from_json((result.folder / "ledger.json").read_text())
    ledger.check()
    assert ledger.counts()["trained"] == 16 and ledger.counts()["failed"] == 0


def test_without_a_checkpoint_ranks_start_again_and_one_of_two_ranks_ends_the_other(
    ray_cluster, make_config, monkeypatch
) -> None:
    config, lines = (
        make_config(
            "train.num_steps=4",
            "checkpoint.every=0",
            "learner.engine=deepspeed",
            "learner.num_workers=2",
            "learner.num_cpus=0.25",
        ),
        [],
    )
    check_recovered(train(config, monkeypatch, lines), config, lines, after=0)


def test_a_run_that_may_not_start_ranks_anew_ends_in_one_line_and_goes_on_from_a_checkpoint_that_is_whole(
    ray_cluster, make_config, monkeypatch
) -> None:
    config, lines = make_config("train.num_steps=4", "checkpoint.every=1", "learner.max_restarts=0"), []
    pipeline = make_pipeline(config, monkeypatch, lines)
    with pytest.raises(LearnerLost, match=r"learner group: .*the run cannot go on without its learner") as stop:
        pipeline.train(calibrate=False, evaluate=False)
    assert "\n" not in str(stop.value)
    damaged = pipeline.folder.path / "checkpoints" / "step_00000003" / "learner.safetensors"
    with damaged.open("r+b") as file:
        file.truncate(damaged.stat().st_size // 2)
    lines.clear()
    assert_same_run(train(config, monkeypatch, lines), config)
    (skipped,) = (line for line in lines if "skipped a checkpoint" in line)
    assert str(damaged) in skipped and "\n" not in skipped
    assert any("resumes after step 2" in line for line in lines)
