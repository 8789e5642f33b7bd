"""Pages that the code writes: the configuration's keys and the command line. MkDocs calls `on_files`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from rlir_ray.cli.commands import main
from rlir_ray.cli.parser import build_parser
from rlir_ray.config.load import describe
from rlir_ray.config.sections import Config

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

# Characters a line of help text: what a page shows without scrolling.
WIDTH = "96"
# Models whose trainers have a parser of their own.
PRETRAINED = ("tokenizer", "autoencoder", "idm", "world-model", "flow")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for name, page in (("configuration", configuration_page()), ("cli", cli_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=page))
    return files


def configuration_page() -> str:
    """Write a table for each section of the configuration, a row for each key."""
    lines, defaults = describe(), _defaults(Config())
    sections: dict[str, list[str]] = {}
    for key in lines:
        sections.setdefault(key.partition(".")[0] if "." in key else "", []).append(key)
    parts = [
        "# Configuration",
        "A recipe (YAML) sets keys by section. An override on the command line sets one key by its dotted name; later "
        "overrides win. The defaults below hold where neither the recipe nor an override sets a key. `python -m "
        "rlir_ray train --keys` prints the same list.",
    ]
    for section in sorted(sections, key=lambda name: bool(name)):
        rows = [f"| `{key}` | `{defaults[key]!r}` | {_cell(lines[key])} |" for key in sections[section]]
        table = "\n".join(["| Key | Default | Meaning |", "| --- | --- | --- |", *rows])
        parts += [f"## {section or 'Whole run'}", table]
    return "\n\n".join(parts) + "\n"


def cli_page() -> str:
    """Write the help of each command."""
    parts = [
        "# Command line",
        "Installed, the program is `rlir_ray`; `python -m rlir_ray` is the same program. A command exits with 0 for "
        "success, 1 for failure, 2 for wrong input and 130 after an interrupt.",
    ]
    with patch.dict(os.environ, {"COLUMNS": WIDTH, "NO_COLOR": "1"}):
        for name, text in [*_helps(build_parser(), ""), *_own_helps()]:
            parts += [f"## {name}" if name else "## All commands", f"``` {{ .text .help }}\n{text.strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def _helps(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, str]]:
    """Yield the help of a parser and of its subcommands, except of commands that parse their own arguments."""
    yield name, parser.format_help()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, sub in action.choices.items():
                if command != "assets":
                    yield from _helps(sub, f"{name} {command}".strip())


def _own_helps() -> Iterator[tuple[str, str]]:
    """Yield the help of commands that parse their own arguments, as a user sees it."""
    for arguments in [*(["pretrain", model] for model in PRETRAINED), ["assets"]]:
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            main([*arguments, "--help"])
        yield " ".join(arguments), output.getvalue()


def _defaults(node: Any, prefix: str = "") -> dict[str, Any]:
    """Map each dotted key to its default."""
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(node):
        value = getattr(node, entry.name)
        key = prefix + entry.name
        found |= _defaults(value, f"{key}.") if dataclasses.is_dataclass(value) else {key: value}
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
