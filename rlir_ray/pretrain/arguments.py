"""Command-line arguments from the fields of a settings dataclass; the line under a field is its help text."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import math
import re
import shlex
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from rlir_ray.data.recordings import Recording, Split

Settings = TypeVar("Settings", bound="DataclassInstance")
Chosen = dict[str, Any]
"""Parsed arguments of a command by their names, each of the type that its parser gives it."""


def field_lines(node: type) -> dict[str, str]:
    """Read the string under each field of a dataclass from the source, because Python does not keep it."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(node))).body
    assert isinstance(tree, ast.ClassDef)
    lines = {}
    for item, after in itertools.pairwise(tree.body):
        if isinstance(item, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(item.target, ast.Name):
            lines[item.target.id] = ast.literal_eval(after.value)
    return lines


def build_parser(command: str, description: str, example: str) -> argparse.ArgumentParser:
    """Build the parser of `python -m rlir_ray COMMAND`."""
    return argparse.ArgumentParser(
        prog=f"python -m rlir_ray {command}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description=description,
        epilog=f"example: python -m rlir_ray {command} {example}",
    )


def add_settings(parser: argparse.ArgumentParser, settings: type, leave_out: Sequence[str] = ()) -> None:
    """Add an option for each field whose default is a number, a string, None (a number then) or names (A,B,C)."""
    lines = field_lines(settings)
    for entry in dataclasses.fields(settings):
        if entry.name not in leave_out and _is_names(default := entry.default):
            option, text = f"--{entry.name.replace('_', '-')}", lines[entry.name].replace("%", "%%")
            parser.add_argument(option, type=_names, default=",".join(default), metavar="A,B,...", help=text)
        if entry.name in leave_out or not isinstance(entry.default, int | float | str | None):
            continue
        kind: Callable[[str], object] = float if entry.default is None else type(entry.default)
        text = lines[entry.name].replace("%", "%%")
        parser.add_argument(f"--{entry.name.replace('_', '-')}", type=kind, default=entry.default, help=text)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that read recordings; see `read_chosen`."""
    parser.add_argument("--camera", default="", help="camera of a LeRobot dataset; empty: the only one")
    parser.add_argument("--size", type=parse_size, metavar="HxW", help="reduce the frames to this size")
    parser.add_argument(
        "--action-shift",
        type=int,
        default=0,
        help="stored action k + this number leads INTO frame k; -1: pairs in the order of a Gymnasium loop",
    )


def repeat_reading(chosen: Chosen) -> str:
    """Return the recordings and the options of `add_reading` as text, for a command that reads them alike."""
    size = chosen["size"] and "{}x{}".format(*chosen["size"])
    options = {
        "data": chosen["data"],
        "camera": chosen["camera"],
        "size": size,
        "action-shift": chosen["action_shift"],
    }
    return " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value)


def parse_size(text: str) -> tuple[int, int]:
    """Read HxW, as 64x96.

    Raises:
        argparse.ArgumentTypeError: the text has another form.
    """
    if not (found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise argparse.ArgumentTypeError(f"a size must be HEIGHTxWIDTH in pixels, got {text!r}; use for example 64x64")
    return int(found[1]), int(found[2])


def read_chosen(chosen: Chosen) -> dict[Split, list[Recording]]:
    """Read the recordings that the options name, with all their frames."""
    from rlir_ray.data.recordings import read_splits

    return read_splits(chosen["data"], chosen["action_shift"], chosen["camera"], chosen["size"])


def _is_names(default: object) -> TypeGuard[tuple[str, ...]]:
    return isinstance(default, tuple) and all(isinstance(name, str) for name in default)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.strip("[]").split(",") if name.strip())


# Counts that may be 0, and numbers that may be negative.
FROM_ZERO, ANY_SIGN = ("seed", "num_steps"), ("level_mean",)


def check_settings(settings: Any) -> None:
    """Reject settings that no training can use: a number out of range, or a training without length.

    Args:
        settings: a dataclass with `minutes` and `num_steps`.

    Raises:
        ValueError: a setting is out of range; the error names the option.
    """
    for entry in dataclasses.fields(settings):
        value = getattr(settings, entry.name)
        if not isinstance(value, int | float) or entry.name in ANY_SIGN:
            continue
        least = 1 if isinstance(entry.default, int) and entry.name not in FROM_ZERO else 0
        if not least <= value < math.inf:
            option = f"--{entry.name.replace('_', '-')}"
            raise ValueError(f"{option} must be a finite number >= {least}, got {value}; set {least} or more")
    if not (settings.minutes or settings.num_steps):
        raise ValueError("a training needs --minutes or --num-steps above 0, got 0 of both; set one of them")


def take_settings(chosen: Chosen, settings: type[Settings]) -> Settings:
    """Build the settings from parsed arguments, and remove these arguments from `chosen`."""
    names = {entry.name for entry in dataclasses.fields(settings)}
    return settings(**{name: chosen.pop(name) for name in list(chosen) if name in names})
