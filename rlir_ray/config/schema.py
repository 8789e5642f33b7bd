"""The keys of the configuration, read from its JSON schema: what each takes, in words, for messages and pages."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

KINDS = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "array": "list",
    "object": "mapping of names to numbers",
}
Schema = dict[str, Any]
"""A JSON schema, as pydantic writes it."""
# Where the schema of a part of a value lies: of an entry of a list, of the value or the name in a mapping.
ITEM, VALUE, NAME = "items", "additionalProperties", "propertyNames"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One key."""

    key: str
    """With its section: `train.num_steps`."""
    schema: Schema
    """JSON schema of its value."""
    default: Any
    """Value without recipe and override, of the type that the schema says."""

    @property
    def description(self) -> str:
        return str(self.schema.get("description", ""))

    @property
    def choices(self) -> list[str]:
        return list(self.schema.get("enum", ()))

    @property
    def is_text(self) -> bool:
        return bool(self.schema["type"] == "string")

    @property
    def kind(self) -> str:
        """Type of the value in words."""
        if self.choices:
            return "choice"
        if self.schema["type"] == "array":
            return f"list of {KINDS[self.schema[ITEM]['type']]}s"
        return KINDS[self.schema["type"]]

    @property
    def values(self) -> str:
        """Range or choices; empty: any value of the type."""
        if rule := self.schema.get("rule"):
            return str(rule)
        if self.schema["type"] == "object":
            return self.part(VALUE, self.key).values
        if self.schema["type"] == "array":
            return self._values_of_list()
        return ", ".join(self.choices) or _range(self.schema)

    def _values_of_list(self) -> str:
        item = self.part(ITEM, self.key)
        number = "one or more" if self.schema.get("minItems") else "any number"
        if not item.values:
            return ""
        return f"{number} of {item.values}" if item.choices else f"{number}, each {item.values}"

    @property
    def rule(self) -> str:
        """The end of "KEY must be ..."."""
        if rule := self.schema.get("rule"):
            return str(rule)
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.schema["type"] == "boolean":
            return self.kind
        if self.schema["type"] in ("array", "object"):
            return f"a {self.kind}" + (" with one value or more" if self.schema.get("minItems") else "")
        finite = "finite " if self.schema["type"] == "number" else ""
        return " ".join(part for part in (f"a {finite}{self.kind}", _range(self.schema)) if part)

    @property
    def way_out(self) -> str:
        """A remedy for a value that breaks the rule."""
        if way_out := self.schema.get("way_out"):
            return str(way_out).format(key=self.key)
        if self.choices:
            return f"try {self.key}={self.choices[0]}"
        if self.schema["type"] == "object":
            return f"write {self.key}={{NAME: NUMBER}}"
        if self.schema["type"] == "string":
            return f"write {self.key}=TEXT"
        if "minimum" in self.schema and "maximum" not in self.schema and "exclusiveMaximum" not in self.schema:
            return f"set {self.key}={self.schema['minimum']:g} or more"
        return f"use {shown(self.default)}"

    def part(self, where: str, key: str) -> Entry:
        """Describe a part of the value; `where` is `ITEM`, `VALUE` or `NAME`."""
        default = self.default[0] if where == ITEM and self.default else None
        return Entry(key=key, schema=self.schema[where], default=default)


def shown(value: object) -> str:
    """Write a value as an override does."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(shown(part) for part in value)}]"
    return str(value)


@functools.cache
def entries(node: type, prefix: str = "") -> dict[str, Entry]:
    """List the keys of a section, or of the whole configuration, by their dotted names."""
    schema = TypeAdapter(node).json_schema()
    return _entries(schema, schema.get("$defs", {}), node(), prefix)


@functools.cache
def sections(node: type) -> dict[str, str]:
    """List the sections of the whole configuration, with the descriptions of their classes."""
    schema = TypeAdapter(node).json_schema()
    parts = {name: _part(field, schema["$defs"]) for name, field in schema["properties"].items()}
    return {name: str(part.get("description", "")) for name, part in parts.items() if part}


def _entries(schema: Schema, definitions: Schema, default: object, prefix: str) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for name, field in schema["properties"].items():
        key, value = f"{prefix}{name}", getattr(default, name)
        if part := _part(field, definitions):
            found |= _entries(part, definitions, value, f"{key}.")
        else:
            found[key] = Entry(key=key, schema=field, default=value)
    return found


def _part(field: Schema, definitions: Schema) -> Schema:
    """Find the schema of a section; empty: the field is a key."""
    found: Schema = definitions[field["$ref"].rpartition("/")[2]] if "$ref" in field else {}
    return found


def _range(schema: Schema) -> str:
    least, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    most, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    if most is None and below is None:
        return f">= {least:g}" if least is not None else f"> {above:g}" if above is not None else ""
    if schema["type"] == "integer":
        return f"in {least}..{most}"
    low = f"({above:g}" if least is None else f"[{least:g}"
    return f"in {low}, " + (f"{below:g})" if most is None else f"{most:g}]")
