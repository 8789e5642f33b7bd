"""The keys of the configuration from its JSON schema: their types, ranges and remedies in words."""

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
# Keys of JSON schema for the parts of a value: an item of a list, a value of a mapping, a name of a mapping.
ITEM, VALUE, NAME = "items", "additionalProperties", "propertyNames"
# The schema of an item that is a section of its own.
SECTION: Schema = {
    "type": "object",
    "rule": "a mapping of keys to values",
    "way_out": "write {key}={{KEY: VALUE}}",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One key of the configuration."""

    key: str
    """Dotted name of the key: `train.num_steps`."""
    schema: Schema
    """JSON schema of the value."""
    default: Any
    """Value if neither a recipe nor an override sets the key."""

    @property
    def description(self) -> str:
        """Description of the key: the docstring of its field."""
        return str(self.schema.get("description", ""))

    @property
    def choices(self) -> list[str]:
        """Allowed values; empty: the key takes other values than choices."""
        return list(self.schema.get("enum", ()))

    @property
    def is_text(self) -> bool:
        """Whether the value is text."""
        return bool(self.schema["type"] == "string")

    @property
    def kind(self) -> str:
        """Type of the value, in words."""
        if self.choices:
            return "choice"
        if self.schema["type"] == "array":
            item = self.schema[ITEM]
            return "list of mappings" if item["type"] == "object" else f"list of {KINDS[item['type']]}s"
        return KINDS[self.schema["type"]]

    @property
    def values(self) -> str:
        """Range or choices, in words; empty: any value of the type."""
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
        """The rule in words, as the end of "KEY must be ..."."""
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
        """The remedy for a value that breaks the rule."""
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
        """Return the entry of a part of the value; `where` is `ITEM`, `VALUE` or `NAME`."""
        default = self.default[0] if where == ITEM and self.default else None
        return Entry(key=key, schema=self.schema[where], default=default)


def shown(value: object) -> str:
    """Format a value as in an override."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(shown(part) for part in value)}]"
    return str(value)


@functools.cache
def entries(node: type, prefix: str = "") -> dict[str, Entry]:
    """Return the keys of a section, or of the whole configuration, by their dotted names."""
    schema = TypeAdapter(node).json_schema()
    return _entries(schema, schema.get("$defs", {}), node(), prefix)


@functools.cache
def sections(node: type) -> dict[str, str]:
    """Return the sections of the whole configuration by their dotted names, with the docstrings of their classes."""
    schema = TypeAdapter(node).json_schema()
    return _sections(schema, schema["$defs"], "")


def _sections(schema: dict[str, Any], definitions: dict[str, Any], prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, field in schema["properties"].items():
        if part := _part(field, definitions):
            found[f"{prefix}{name}"] = str(part.get("description", ""))
            found |= _sections(part, definitions, f"{prefix}{name}.")
        elif part := _part(field.get(ITEM, {}), definitions):
            found[f"{prefix}{name}[]"] = str(part.get("description", ""))
    return found


def _entries(schema: Schema, definitions: Schema, default: object, prefix: str) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    of_items: dict[str, Schema] = {}
    for name, field in schema["properties"].items():
        key, value = f"{prefix}{name}", getattr(default, name)
        if part := _part(field, definitions):
            found |= _entries(part, definitions, value, f"{key}.")
        elif part := _part(field.get(ITEM, {}), definitions):
            found[key] = Entry(key=key, schema={**field, ITEM: SECTION}, default=value)
            of_items |= {f"{key}[].{each}": schema for each, schema in part["properties"].items()}
        else:
            found[key] = Entry(key=key, schema=field, default=value)
    return found | {key: _of_item(key, schema) for key, schema in of_items.items()}


def _of_item(key: str, schema: Schema) -> Entry:
    """Return a key of the sections of a list, whose default is that of the schema."""
    return Entry(key=key, schema=schema, default=schema.get("default", {} if schema["type"] == "object" else ""))


def _part(field: Schema, definitions: Schema) -> Schema:
    """Return the schema of a section; empty if the field is a key."""
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
