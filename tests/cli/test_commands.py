"""The command line as a user types it."""

import contextlib
import json
import subprocess
import sys
import time

import pytest

from rlir_ray.algorithm.ledger import Ledger
from rlir_ray.cli import console
from rlir_ray.cli.commands import _fail, main
from rlir_ray.cli.console import StepView
from rlir_ray.config.load import keys, load_config
from tests.evaluation.test_report import write_run


@pytest.mark.parametrize(
    "command",
    [
        "",
        "train",
        "doctor",
        "collect",
        "report",
        "ledger",
        "merge",
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
        "import sys\nfrom rlir_ray.cli.commands import main\ntry:\n    main(['train', '--help'])\nexcept SystemExit:\n"
        "    print('heavy:', [m for m in ('torch', 'ray', 'transformers', 'omegaconf') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "heavy: []" in out


@pytest.mark.parametrize(
    "arguments",
    [
        "train --recipe doom_tiny",
        "train",
        "train --recipe doom_tiny_ar train.num_step=3",
        "train --recipe doom_tiny_ar train.group_size=1",
        "train --recipe doom_tiny_ar run.name=../elsewhere",
        "report nowhere",
        "ledger nowhere",
        "train --recipe doom_tiny_ar train.num_steps=[",
        "train --recipe doom_tiny_ar prompts.source=recordings prompts.path=a",
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


def test_keys_are_listed_in_the_order_of_the_tree(capsys):
    main(["train", "--keys"])
    listed = [line.strip().partition("=")[0] for line in capsys.readouterr().out.splitlines() if line[2:3] > " "]
    assert listed[1:] == keys()


def test_a_run_without_a_recipe_is_refused_and_names_them(capsys):
    with pytest.raises(SystemExit):
        main(["train", "train.num_steps=3"])
    assert "train needs a recipe, got none; add --recipe doom_tiny_ar" in capsys.readouterr().err


def test_a_report_takes_a_runs_name_or_its_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    write_run(tmp_path / "runs" / "first", 0.4, 0.2)
    (tmp_path / "runs" / "first" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for name in ("first", "runs/first"):
        main(["report", name])
        assert capsys.readouterr().out == "runs/first/report.html\n"


def ledger_folder(tmp_path, states):
    ledger = Ledger()
    for group_id, (state, cause) in enumerate(states):
        ledger.admit(group_id, "p")
        if state != "in_flight":
            ledger.finish(group_id, state, cause)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "ledger.json").write_text(ledger.to_json())
    return tmp_path / "ledger.json"


def test_the_ledger_of_a_run_is_printed_by_state_and_cause(tmp_path, capsys):
    ledger_folder(tmp_path, [("trained", ""), ("failed", "x"), ("failed", "y"), ("failed", "y"), ("stale", "")])
    main(["ledger", str(tmp_path)])
    assert [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()] == [
        ["0", "in flight"],
        ["1", "trained"],
        ["1", "stale"],
        ["0", "no signal"],
        ["3", "failed"],
        ["2", "failed: y"],
        ["1", "failed: x"],
        ["5", "groups: each that ended did so in one state, no number is missing"],
    ]


def test_a_ledger_that_lost_a_group_ends_with_exit_code_1_and_a_line(tmp_path, capsys):
    path = ledger_folder(tmp_path, [("trained", ""), ("in_flight", ""), ("trained", "")])
    with pytest.raises(SystemExit) as caught:
        main(["ledger", str(tmp_path)])
    error = capsys.readouterr().err
    assert caught.value.code == 1 and error.count("\n") == 1 and "got 1 in flight, first 1" in error
    # While the run trains, or when it was killed, a group may be in flight.
    (tmp_path / "ray.json").write_text("{}")
    main(["ledger", str(tmp_path)])
    assert "3  groups: each that ended did so in one state, the others in flight" in capsys.readouterr().out
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "groups": content["groups"][1:]}))
    with pytest.raises(SystemExit) as caught:
        main(["ledger", str(tmp_path)])
    assert caught.value.code == 1 and "no number may be missing, got 1 that are, first 0" in capsys.readouterr().err


def test_an_error_of_ray_ends_with_its_cause(capsys):
    lost = type("ActorDiedError", (Exception,), {"__module__": "ray.exceptions"})
    with pytest.raises(SystemExit) as caught:
        _fail(lost("The actor died because of an error raised in its creation task\n  File x\nKeyError: 'net'"), 1)
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: KeyError: 'net'\n"


def test_an_error_that_was_not_meant_for_a_person_keeps_its_name(capsys):
    for error, said in ((KeyError("net"), "KeyError: 'net'"), (RuntimeError("it broke"), "it broke")):
        with pytest.raises(SystemExit):
            _fail(error, 1)
        assert capsys.readouterr().err == f"error: {said}\n"


def test_a_step_is_one_line():
    view = StepView(load_config("doom_tiny_ar").train)
    line = view.line(
        {"step": 3, "reward/mean": 0.712, "follow/macro_f1": 0.68, "time/step_s": 8.0, "staleness/mean": 1}
    )
    assert line.startswith("step   3/40  reward 0.712  macro-F1 0.680  staleness 1.0")
    assert line.endswith("left")


def test_the_time_left_of_a_run_that_goes_on_is_of_its_own_steps(monkeypatch):
    view = StepView(load_config("doom_tiny_ar").train)
    now = view.started
    monkeypatch.setattr("time.monotonic", lambda: now + 10)
    view.step({"step": 31, "time/step_s": 10.0})
    # Nine steps of ten seconds, though thirty were done before.
    assert view.seconds_left(31) == pytest.approx(90)


def test_a_stage_with_brackets_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    StepView(load_config("doom_tiny_ar").train).stage("left out: /data/[red]/clip.mp4")
    assert "/data/[red]/clip.mp4" in capsys.readouterr().out


def test_a_stage_that_lasts_is_said_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "TICK_S", 0.001)
    monkeypatch.setattr(console, "STILL_EVERY_S", 0.0)
    with contextlib.closing(StepView(load_config("doom_tiny_ar").train)) as view:
        view.stage("making prompts")
        lines = ""
        for _ in range(2000):
            lines += capsys.readouterr().out
            if "last" in lines:
                break
            time.sleep(0.005)
    assert lines.splitlines()[:2] == ["0:00  making prompts", "0:00  still at work (last: making prompts)"]
