"""Actions as a person types them: ``forward*8, forward+turn_right*4, yaw=2.5``. Numpy only."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from rlir_ray.spaces.fields import Axis, Choice
from rlir_ray.spaces.space import Actions, ActionSpace

NOTHING = "none"
# Share of the way from zero to the end of an axis that a word such as turn_right moves.
TURN = 0.5
DIRECTIONS = {"right": ("turn_left", "turn_right"), "down": ("look_up", "look_down")}
"""Direction of an axis -> the words for a move down and up the axis."""
MAX_ACTIONS = 100_000


def parse_actions(text: str, space: ActionSpace) -> Actions:
    """Read actions, one a frame.

    Args:
        text: parts separated by commas. A part is one or several words joined by ``+``, and a number of frames after
            ``*``. A word is a class of a choice (``forward``), ``FIELD=CLASS``, ``FIELD=NUMBER`` for an axis, a turn of
            an axis with a direction (``turn_left``, ``turn_right``, ``look_up``, ``look_down``), or ``none``.
        space: of the actions.

    Raises:
        ValueError: a word is unknown or ambiguous, a field is set twice in a part, or a number is wrong.
    """
    rows: list[npt.NDArray[np.float32]] = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        words, _, times = part.partition("*")
        number = _number_of_frames(times, part) if times or part.endswith("*") else 1
        if len(rows) + number > MAX_ACTIONS:
            raise ValueError(f"actions must be at most {MAX_ACTIONS} frames, got more with {part!r}; give fewer")
        rows += [_row(words, space)] * number
    if not rows:
        raise ValueError(f"actions must hold at least one word, got {text!r}; give for example {examples(space)}")
    return Actions(space, np.stack(rows))


def vocabulary(space: ActionSpace) -> dict[str, tuple[int, float]]:
    """Return word -> column and value, for each word that names a class or a direction of one field alone."""
    found: dict[str, list[tuple[int, float]]] = {}
    for column, field in enumerate(space.fields):
        for word, value in _own_words(field):
            found.setdefault(word, []).append((column, value))
    return {word: places[0] for word, places in found.items() if len(places) == 1 and word != NOTHING}


def examples(space: ActionSpace) -> str:
    """Return a text of actions of a space, for a message."""
    words = list(vocabulary(space))
    if len(words) > 1:
        return repr(f"{words[0]}*4, {words[1]}*4")
    field = space.fields[0]
    value = field.classes[-1] if isinstance(field, Choice) else f"{field.high:g}"
    return repr(f"{field.name}={value}*4")


def _own_words(field: Choice | Axis) -> list[tuple[str, float]]:
    if isinstance(field, Choice):
        return [(name, float(number)) for number, name in enumerate(field.classes) if number != field.null_class]
    if (words := DIRECTIONS.get(field.direction)) is None:
        return []
    return [(word, TURN * end) for word, end in zip(words, (field.low, field.high), strict=True)]


def _number_of_frames(text: str, part: str) -> int:
    if not re.fullmatch(r"\s*[1-9]\d{0,5}\s*", text):
        raise ValueError(f"a number of frames must follow *, got {part!r}; give for example forward*8")
    return int(text)


def _row(words: str, space: ActionSpace) -> npt.NDArray[np.float32]:
    """Return the values of one frame, float32 [D]."""
    row: npt.NDArray[np.float32] = space.nothing(1).values[0].copy()
    known, set_by = vocabulary(space), dict[int, str]()
    for word in (each.strip() for each in words.split("+")):
        if word == NOTHING:
            continue
        column, value = known[word] if word in known else _assignment(word, space)
        if column in set_by:
            raise ValueError(
                f"a frame must set {space.names[column]} once, got {set_by[column]} and {word}; leave one out"
            )
        row[column], set_by[column] = value, word
    return row


def _assignment(word: str, space: ActionSpace) -> tuple[int, float]:
    """Read FIELD=VALUE."""
    name, mark, value = (each.strip() for each in word.partition("="))
    if not mark:
        names = ", ".join((*vocabulary(space), NOTHING, *(f"{field.name}=…" for field in space.fields)))
        raise ValueError(f"an action must be one of {names}, got {word!r}; correct it")
    (column,) = space.columns([name])
    field = space.fields[column]
    if isinstance(field, Choice):
        if value not in field.classes:
            raise ValueError(f"{name} must be one of {', '.join(field.classes)}, got {value!r}; correct it")
        return column, float(field.classes.index(value))
    try:
        return column, float(value)
    except ValueError:
        raise ValueError(f"{name} must be a number, got {value!r}; give {field.low:g} to {field.high:g}") from None
