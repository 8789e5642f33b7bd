"""The command line as a user types it."""

import subprocess
import sys

import pytest

from rlir_ray.cli import main
from rlir_ray.config import load_config
from rlir_ray.console import StepView


@pytest.mark.parametrize(
    "command",
    ["", "train", "collect", "report", "pretrain tokenizer", "pretrain idm", "pretrain world-model", "assets"],
)
def test_help_is_complete_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    assert caught.value.code == 0
    if command != "report":
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
    ["train --recipe doom_tiny", "train train.num_step=3", "train train.group_size=1", "report nowhere"],
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


def test_a_step_is_one_line():
    view = StepView(load_config("doom_tiny_ar").train)
    line = view.line(
        {"step": 3, "reward/mean": 0.712, "follow/macro_f1": 0.68, "time/step_s": 8.0, "staleness/mean": 1}
    )
    assert line.startswith("step   3/40  reward 0.712  macro-F1 0.680  staleness 1.0")
    assert line.endswith("left")
