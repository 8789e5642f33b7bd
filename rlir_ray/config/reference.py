"""The reference of the configuration, generated from its JSON schema.

`python -m rlir_ray.config.reference PAGE.md` writes the page. The option `--schema` also writes the JSON schema, which
editors use to complete and check recipes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pydantic import TypeAdapter

from rlir_ray.config.config import Config
from rlir_ray.config.schema import Entry, Schema, entries, sections, shown

INTRODUCTION = """\
# Configuration

A recipe (YAML) sets keys by section. An override on the command line sets one key by its dotted name; later overrides
win:

```
python -m rlir_ray train --recipe doom_tiny_ar train.num_steps=10 reward.rule=joint
```

The defaults below apply if neither the recipe nor an override sets a key. `python -m rlir_ray train --keys` prints the
same list.
"""
HEAD = "| Key | Type | Values | Default | Description |\n| --- | --- | --- | --- | --- |\n"


def config_schema() -> Schema:
    """Build the JSON schema of a recipe."""
    return TypeAdapter(Config).json_schema()


def configuration_page() -> str:
    """Return the reference page in Markdown: a table for each section, a row for each key."""
    known = entries(Config)
    single = [entry for key, entry in known.items() if "." not in key]
    parts = [INTRODUCTION, "## Whole run\n", HEAD + _rows(single)]
    for name, text in sections(Config).items():
        of_section = [entry for key, entry in known.items() if key.rpartition(".")[0] == name]
        parts += [f"## {name}\n", *([f"{text}\n"] if text else []), HEAD + _rows(of_section)]
    return "\n".join(parts)


def keys_help() -> str:
    """Return the list of keys in plain text, for `--keys`."""
    lines = ["configuration keys, with their defaults (a recipe may set others):"]
    for key, entry in entries(Config).items():
        takes = f"{entry.kind}: {entry.values}" if entry.values else entry.kind
        lines += [f"  {key}={shown(entry.default)}", f"      {entry.description} ({takes})"]
    return "\n".join(lines)


def _rows(of_section: list[Entry]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in map(_cells, of_section))


def _cells(entry: Entry) -> list[str]:
    values = ", ".join(f"`{choice}`" for choice in entry.choices) or entry.values
    cells = [f"`{entry.key}`", entry.kind, values, f"`{shown(entry.default)}`" if entry.default != "" else "empty"]
    return [cell.replace("|", "\\|") for cell in [*cells, entry.description]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rlir_ray.config.reference", description=__doc__)
    parser.add_argument("page", type=Path, help="file for the page, such as docs/reference/configuration.md")
    parser.add_argument("--schema", type=Path, help="file for the JSON schema")
    arguments = parser.parse_args()
    arguments.page.parent.mkdir(parents=True, exist_ok=True)
    arguments.page.write_text(configuration_page(), encoding="utf-8")
    if arguments.schema:
        arguments.schema.write_text(json.dumps(config_schema(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
