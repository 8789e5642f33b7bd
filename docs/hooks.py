"""Pages that the code writes: the configuration's keys and the command line. MkDocs calls `on_files`."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING
from unittest.mock import patch

from rlir_ray.cli.commands import main
from rlir_ray.cli.parser import build_parser
from rlir_ray.config.reference import configuration_page

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

# Characters a line of help text: what a page shows without scrolling.
WIDTH = "96"
# Models whose trainers have a parser of their own.
PRETRAINED = ("tokenizer", "autoencoder", "idm", "world-model", "flow", "preference")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for name, page in (("configuration", configuration_page()), ("cli", cli_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=page))
    return files


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
