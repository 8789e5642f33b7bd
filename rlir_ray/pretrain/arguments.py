"""Settings dataclasses as command-line arguments, with their fields' one-liners as help."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from rlir_ray.config_files import field_lines

Settings = TypeVar("Settings")


def build_parser(command: str, description: str, example: str) -> argparse.ArgumentParser:
    """The parser of `python -m rlir_ray COMMAND`."""
    return argparse.ArgumentParser(
        prog=f"python -m rlir_ray {command}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description=description,
        epilog=f"example: python -m rlir_ray {command} {example}",
    )


def add_settings(parser: argparse.ArgumentParser, settings: type, leave_out: Sequence[str] = ()) -> None:
    """An option for each field whose default is a number, a string or None (then a number)."""
    lines = field_lines(settings)
    for entry in dataclasses.fields(settings):
        if entry.name in leave_out or not isinstance(entry.default, int | float | str | None):
            continue
        kind: Any = float if entry.default is None else type(entry.default)
        text = lines[entry.name].replace("%", "%%")
        parser.add_argument(f"--{entry.name.replace('_', '-')}", type=kind, default=entry.default, help=text)


def take_settings(chosen: dict[str, Any], settings: type[Settings]) -> Settings:
    """Builds the settings out of parsed arguments, and removes them there."""
    names = {entry.name for entry in dataclasses.fields(settings)}  # type: ignore[arg-type]
    return settings(**{name: chosen.pop(name) for name in list(chosen) if name in names})
