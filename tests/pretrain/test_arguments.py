"""Settings as command-line arguments."""

import math
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from rlir_ray.pretrain.arguments import add_settings, build_parser, take_settings
from rlir_ray.pretrain.command import COMMANDS, main
from rlir_ray.pretrain.loop import open_device
from rlir_ray.pretrain.settings import (
    AutoencoderTraining,
    FlowTraining,
    InverseDynamicsTraining,
    TokenizerTraining,
    WorldModelTraining,
)


@dataclass(frozen=True)
class Settings:
    steps: int = 3
    """How many."""
    minutes: float | None = None
    """Instead of steps."""
    name: str = "a"
    """Of it."""
    widths: tuple[int, ...] = (1, 2)
    """Not an argument."""
    groups: tuple[str, ...] = ("jump",)
    """Names."""
    seed: int = 0
    """May be 0."""


def test_settings_are_read_with_their_types_and_taken_out():
    parser = build_parser("pretrain thing", "Does it.", "--steps 4")
    parser.add_argument("--out")
    add_settings(parser, Settings)
    chosen = vars(parser.parse_args(["--steps", "4", "--minutes", "2", "--out", "x"]))
    assert take_settings(chosen, Settings) == Settings(steps=4, minutes=2.0)
    assert chosen == {"out": "x"}


def test_names_are_read_with_and_without_brackets():
    parser = build_parser("pretrain thing", "Does it.", "--steps 4")
    add_settings(parser, Settings)
    for text, names in (("jump,yaw", ("jump", "yaw")), ("[jump, yaw]", ("jump", "yaw")), ("yaw", ("yaw",))):
        assert parser.parse_args(["--groups", text]).groups == names
    assert parser.parse_args([]).groups == ("jump",)


TRAININGS = (TokenizerTraining, AutoencoderTraining, InverseDynamicsTraining, WorldModelTraining, FlowTraining)


@pytest.mark.parametrize("training", TRAININGS)
def test_numbers_that_no_training_can_use_are_refused_in_one_line(training):
    for wrong in ({"minutes": 0, "num_steps": 0}, {"minutes": -1.0}, {"minutes": math.nan}, {"minutes": math.inf}):
        with pytest.raises(ValueError, match="--minutes") as error:
            training(**wrong)
        assert "\n" not in str(error.value)
    names = ("batch_size", "batch_pairs", "clips_per_step")
    name = next(name for name in names if name in training.__dataclass_fields__)
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} must be a finite number >= 1, got 0"):
        training(**{name: 0})
    # By steps, where there are no minutes.
    assert training(minutes=0, num_steps=7)


def test_a_device_that_is_not_there_is_refused():
    assert open_device("cpu") == torch.device("cpu")
    for name in ("gpu", "cuda:93"):
        with pytest.raises(ValueError, match=f"--device must be a torch device of this machine, got '{name}'"):
            open_device(name)


@pytest.mark.parametrize("model", COMMANDS)
def test_help_of_the_trainers_loads_nothing_heavy(model):
    code = (
        "import sys, rlir_ray.pretrain.assets\n"
        "from rlir_ray.pretrain.command import main\n"
        f"try: main('{model}', ['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'av', 'rich', 'accelerate') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert f"python -m rlir_ray pretrain {model} --{COMMANDS[model].source}" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_form_with_settings_of_its_own_has_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main("tokenizer", ["--form", "compressive", "--help"])
    text = capsys.readouterr().out
    assert "--clip-frames" in text and "--code-size" not in text
    with pytest.raises(ValueError, match="--form must be vq or compressive, got 'fsq'"):
        main("tokenizer", ["--form", "fsq", "--data", "none", "--out", "none"])


def test_help_holds_each_fields_line_and_the_example():
    parser = build_parser("pretrain thing", "Does it.", "--steps 4")
    add_settings(parser, Settings)
    text = parser.format_help()
    assert "How many. (default: 3)" in text
    assert "python -m rlir_ray pretrain thing --steps 4" in text
    assert "widths" not in text
