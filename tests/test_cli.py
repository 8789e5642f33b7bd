"""The command line as a user types it."""

import subprocess
import sys

import pytest

from rlir_ray.cli import _fail, _where, main
from rlir_ray.config_files import load_config
from rlir_ray.console import StepView


@pytest.mark.parametrize(
    "command",
    [
        "",
        "train",
        "doctor",
        "collect",
        "report",
        "pretrain",
        "pretrain tokenizer",
        "pretrain idm",
        "pretrain world-model",
        "assets",
    ],
)
def test_help_is_complete_with_an_example(command, capsys):
    try:
        main([*command.split(), "--help"])
    except SystemExit as end:
        assert end.code == 0
    assert "example" in capsys.readouterr().out


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom rlir_ray.cli import main\ntry:\n    main(['train', '--help'])\nexcept SystemExit:\n"
        "    print('heavy:', [m for m in ('torch', 'ray', 'transformers', 'omegaconf') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "heavy: []" in out


@pytest.mark.parametrize(
    "arguments",
    [
        "train --recipe doom_tiny",
        "train train.num_step=3",
        "train train.group_size=1",
        "report nowhere",
        "train train.num_steps=[",
        "train prompts.source=recordings prompts.path=a",
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_keys_are_listed_with_defaults(capsys):
    main(["train", "--keys"])
    assert "train.group_size=8" in capsys.readouterr().out


def test_a_stopped_run_says_how_to_go_on_and_one_without_a_step_that_nothing_was_saved(tmp_path):
    assert _where(tmp_path / "first", 0, True, "policy") == [
        "stopped  before the first step; the same command starts again"
    ]
    *_, last = _where(tmp_path / "first", 3, True, "policy")
    assert f"models.policy={tmp_path / 'first' / 'policy'} run.dir={tmp_path} run.name=first-2" in last
    *_, last = _where(tmp_path / "first", 3, True, "adapter")
    assert f"models.adapter={tmp_path / 'first' / 'policy'}" in last
    assert _where(tmp_path / "first", 3, False, "policy")[-1].startswith("report")


def test_an_error_of_ray_ends_with_its_cause(capsys):
    lost = type("ActorDiedError", (Exception,), {"__module__": "ray.exceptions"})
    with pytest.raises(SystemExit) as caught:
        _fail(lost("The actor died because of an error raised in its creation task\n  File x\nKeyError: 'net'"), 1)
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: KeyError: 'net'\n"


def test_a_step_is_one_line():
    view = StepView(load_config("doom_tiny_ar").train)
    line = view.line(
        {"step": 3, "reward/mean": 0.712, "follow/macro_f1": 0.68, "time/step_s": 8.0, "staleness/mean": 1}
    )
    assert line.startswith("step   3/40  reward 0.712  macro-F1 0.680  staleness 1.0")
    assert line.endswith("left")


def test_a_stage_with_brackets_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    StepView(load_config("doom_tiny_ar").train).stage("left out: /data/[red]/clip.mp4")
    assert "/data/[red]/clip.mp4" in capsys.readouterr().out
