"""The error messages of bad settings: key, rule, value and remedy, in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic_core import PydanticCustomError

from rlir_ray.config.old_keys import MOVED
from rlir_ray.config.schema import ITEM, NAME, VALUE, Entry, entries

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

UNKNOWN = "unexpected_keyword_argument"


def require(rule: bool, key: str, text: str, value: object, remedy: str) -> None:
    """Check a rule about a setting.

    Args:
        rule: whether the rule holds.
        key: the configuration key.
        text: the rule in words, such as "must be >= 1".
        value: the value of the key.
        remedy: what the user can do.

    Raises:
        ValueError: the rule does not hold.
    """
    if not rule:
        raise ValueError(f"{key} {text}, got {value!r}; {remedy}")


def broken_rule() -> PydanticCustomError:
    """Return the error of a type's validator; the schema of the type holds the rule and the remedy."""
    return PydanticCustomError("rule", "breaks the rule of its type")


def one_line(error: ValidationError, node: type, section: str) -> str:
    """Describe the first problem of a section, unknown keys before wrong values.

    Args:
        error: the validation error.
        node: class of the section.
        section: name of the section; empty for the whole configuration.
    """
    problems = error.errors(include_url=False)
    problem = next((problem for problem in problems if problem["type"] == UNKNOWN), problems[0])
    prefix = f"{section}." if section else ""
    if problem["type"] == "value_error":
        # `require` has written the whole line.
        return str(problem["ctx"]["error"])
    if problem["type"] == UNKNOWN:
        return unknown_key(prefix + _name(problem["loc"]), list(entries(node, prefix)))
    return _broken(problem, entries(node, prefix), prefix)


def unknown_key(name: str, known: list[str]) -> str:
    """Return the message about an unknown key, with its new name or the nearest known key."""
    if name in MOVED:
        return f"{name!r} is now called {MOVED[name]!r}; set that key instead"
    near = difflib.get_close_matches(name, known, 1, cutoff=0.0)
    return f"{name!r} is not a configuration key; did you mean {near[0]!r}?"


def _broken(problem: ErrorDetails, known: dict[str, Entry], prefix: str) -> str:
    place, value = problem["loc"], problem["input"]
    # The location of the problem is the key, followed by names of parts of its value.
    schema_names = [prefix + re.sub(r"\[\d+\]", "[]", _name(place[:end])) for end in range(len(place) + 1)]
    length = next((end for end in range(len(place), 0, -1) if schema_names[end] in known), 0)
    key = prefix + _name(place[: length or None])
    if not length:
        return f"{key} must be a section of keys, got {value!r}; write {key}.KEY=VALUE"
    entry = _of_part(replace(known[schema_names[length]], key=key), [str(name) for name in place[length:]])
    return f"{entry.key} must be {entry.rule}, got {value!r}; {entry.way_out}"


def _name(place: Sequence[int | str]) -> str:
    """Return the dotted name of a key; the number of an item of a list stands in brackets."""
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in place).lstrip(".")


def _of_part(entry: Entry, names: list[str]) -> Entry:
    if not names:
        return entry
    if names[-1] == "[key]":
        return entry.part(NAME, entry.key)
    return entry.part(ITEM, entry.key) if ITEM in entry.schema else entry.part(VALUE, f"{entry.key}.{names[0]}")
