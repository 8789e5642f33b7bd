"""Settings as command-line arguments."""

import subprocess
import sys
from dataclasses import dataclass

from rlir_ray.pretrain.arguments import add_settings, build_parser, take_settings


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


def test_settings_are_read_with_their_types_and_taken_out():
    parser = build_parser("pretrain thing", "Does it.", "--steps 4")
    parser.add_argument("--out")
    add_settings(parser, Settings)
    chosen = vars(parser.parse_args(["--steps", "4", "--minutes", "2", "--out", "x"]))
    assert take_settings(chosen, Settings) == Settings(steps=4, minutes=2.0)
    assert chosen == {"out": "x"}


def test_help_of_the_trainers_loads_nothing_heavy():
    modules = [f"rlir_ray.pretrain.{name}" for name in ("tokenizer", "idm", "world_model", "assets")]
    code = f"import sys, {', '.join(modules)}\nprint([m for m in ('torch', 'av', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_help_holds_each_fields_line_and_the_example():
    parser = build_parser("pretrain thing", "Does it.", "--steps 4")
    add_settings(parser, Settings)
    text = parser.format_help()
    assert "How many. (default: 3)" in text
    assert "python -m rlir_ray pretrain thing --steps 4" in text
    assert "widths" not in text
