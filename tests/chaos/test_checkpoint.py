"""R9: the newest checkpoint was truncated; the run goes on from the one before."""

from __future__ import annotations

import pytest

from actors.pipeline import Pipeline
from tests.actors.test_checkpointing import run_until
from tests.actors.test_driver import assert_same_run
from tests.world import tiny_prompt_set

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


def test_a_truncated_checkpoint_is_named_and_costs_the_steps_since_the_one_before(ray_cluster, make_config) -> None:
    config, lines = make_config("train.num_steps=5", "checkpoint.every=2"), []
    first = run_until(config, 4)
    newest = first.folder / "checkpoints" / "step_00000004" / "learner.safetensors"
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size // 2)
    result = Pipeline(config, prompts=tiny_prompt_set, progress=lines.append).train(calibrate=False, evaluate=False)
    (skipped,) = (line for line in lines if "skipped a checkpoint" in line)
    assert str(newest) in skipped and "\n" not in skipped
    assert any("resumes after step 2" in line for line in lines)
    assert_same_run(result, config)
