"""What a run says last."""

import json
import re

from rlir_ray.cli.outcome import outcome_lines
from rlir_ray.config import TrainConfig
from tests.evaluation.test_report import evaluation_of_axes, write_run

STEPS = [{"step": step, "time/step_s": 30.0} for step in (1, 2, 3)]
GROUPS = {"in_flight": 0, "trained": 24, "no_signal": 2}


def said(folder, num_steps=3, **options):
    steps = STEPS[:num_steps]
    train = TrainConfig(num_steps=options.pop("of", 3), max_minutes=6)
    return outcome_lines(folder, train, num_steps, steps, GROUPS, **options)


def test_the_last_lines_say_what_came_of_it_before_they_say_where_it_is(tmp_path):
    write_run(tmp_path, 0.4, 0.2)
    (tmp_path / "tensorboard").mkdir()
    lines = said(tmp_path)
    figures = re.findall(r"[0-9.]+%", lines[0])
    assert lines[0].startswith("result   the judge recovers") and 55 < float(figures[0][:-1]) < 65
    assert 75 < float(figures[1][:-1]) < 85 and lines[0].endswith("on 64 held-out prompts")
    assert lines[1:3] == ["trained  3 of 3 steps in 1.5 minutes", "groups   24 trained, 2 no signal"]
    assert [line.split()[0] for line in lines[3:]] == ["policy", "metrics", "report"]
    assert lines[4].endswith(f"metrics.jsonl   (tensorboard --logdir {tmp_path / 'tensorboard'})")
    # Without TensorBoard a run writes no events, and its last lines name none.
    (tmp_path / "tensorboard").rmdir()
    assert said(tmp_path)[4] == f"metrics  {tmp_path / 'metrics.jsonl'}"


def test_a_space_of_axes_ends_with_its_error(tmp_path):
    write_run(tmp_path, 0.2, 0.1, evaluation_of_axes)
    line = said(tmp_path)[0]
    assert line.startswith(
        "result   the judge reads the commanded axes with an error of 20.0% of their range before and 10"
    )
    assert line.endswith("; on 64 held-out prompts") and "R² " in line


def test_a_run_that_was_not_judged_says_the_rest(tmp_path):
    write_run(tmp_path, 0.4, 0.2)
    (tmp_path / "evaluation.json").unlink()
    assert said(tmp_path)[0].startswith("trained  3 of 3")


def test_a_run_that_ran_out_of_time_names_the_key_that_ended_it(tmp_path):
    line = next(line for line in said(tmp_path, of=100) if line.startswith("trained"))
    assert line == (
        "trained  3 of 100 steps in 1.5 minutes; train.max_minutes=6 ended the run: raise the limit to go on (0: none)"
    )


def test_a_judge_that_is_the_reward_is_called_so(tmp_path):
    write_run(tmp_path, 0.4, 0.2)
    (tmp_path / "content.json").write_text(json.dumps({"models.reward_idm": "a", "models.judge_idm": "a"}))
    assert said(tmp_path)[0].startswith("result   the judge, which is the reward IDM itself, recovers")


def test_a_stopped_run_says_how_to_go_on_and_one_without_a_step_that_nothing_was_saved(tmp_path):
    # Figures of an earlier end of it are not those of these steps.
    write_run(tmp_path, 0.4, 0.2)
    assert said(tmp_path, 0, interrupted=True) == ["stopped  before the first step; the same command starts again"]
    lines = said(tmp_path, of=9, interrupted=True)
    assert lines[0] == "trained  3 of 9 steps in 1.5 minutes"
    assert lines[-1] == "stopped  after step 3; to resume, run the same command again"
    # A name that was made up for the run is no part of its command.
    lines = said(tmp_path, interrupted=True, generated_name="run-1")
    assert lines[-1].endswith("run the same command again with run.name=run-1")
