"""Action spaces of any world: an ordered list of fields, and the actions of a clip as values in them.

The action at index k leads INTO frame k. Numpy only; knows no world, dataset or model.
Legend: F frames, D fields, C classes of a field.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from rlir_ray.spaces.fields import STRICT, ActionField, Axis, Choice

if TYPE_CHECKING:
    import gymnasium

SPACE_FILE = "action_space.json"
"""Beside recordings and checkpoints."""


@pydantic_dataclass(frozen=True, config=STRICT)
class ActionSpace:
    """What the actions of a world are.

    Args:
        fields: in the order of the columns of `Actions.values`; names are unique.
    """

    fields: Annotated[tuple[ActionField, ...], Field(min_length=1)]

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"names of an action space must be unique, got {twice} twice; rename one of these fields")

    def __len__(self) -> int:
        return len(self.fields)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    @property
    def axes(self) -> tuple[Axis, ...]:
        return tuple(field for field in self.fields if isinstance(field, Axis))

    def select(self, names: Sequence[str]) -> tuple[ActionField, ...]:
        """Return the fields of these names, in this order.

        Raises:
            ValueError: the space has no field of a name.
        """
        return tuple(self.fields[column] for column in self.columns(names))

    def columns(self, names: Sequence[str]) -> list[int]:
        """Return the columns of `Actions.values` that hold the fields of these names.

        Raises:
            ValueError: the space has no field of a name.
        """
        if unknown := [name for name in names if name not in self.names]:
            raise ValueError(
                f"a field must be of the action space, got {unknown[0]}; name some of {', '.join(self.names)}"
            )
        return [self.names.index(name) for name in names]

    def nothing(self, num_frames: int) -> Actions:
        """Return F actions that do nothing, as far as each field allows it: class 0, or the end nearest to zero."""
        row = []
        for field in self.fields:
            if isinstance(field, Choice):
                row.append(float(field.null_class or 0))
            else:
                row.append(min(max(0.0, field.low), field.high))
        return Actions(self, np.tile(np.array(row, np.float32), (num_frames, 1)))

    @classmethod
    def from_gymnasium(cls, space: gymnasium.Space[Any], num_bins: int = 21) -> ActionSpace:
        """Map a Gymnasium action space; see `rlir_ray.spaces.gymnasium`.

        Args:
            num_bins: of the axes of a `Box`.

        Raises:
            ValueError: an unbounded Box, or a space without a fixed length (Text, Sequence, Graph, OneOf).
        """
        from rlir_ray.spaces.gymnasium import fields_of

        return cls(tuple(fields_of(space, num_bins)))

    @classmethod
    def from_plain(cls, content: object) -> ActionSpace:
        """Read a space from plain values, as a checkpoint's config.json holds them; see `from_json`."""
        return cls.from_json(json.dumps(content))

    def to_plain(self) -> dict[str, Any]:
        """Return plain values, which JSON can hold."""
        plain: dict[str, Any] = json.loads(self.to_json())
        return plain

    @classmethod
    def from_json(cls, text: str) -> ActionSpace:
        """Read a space that `to_json` wrote.

        Raises:
            ValueError: the text is no JSON or no action space; the message names the entry.
        """
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            reason = first["msg"].removeprefix("Value error, ")
            raise ValueError(
                f"{SPACE_FILE} must hold an action space, got an error at {where}: {reason}; write it with "
                "ActionSpace.to_json"
            ) from None

    def to_json(self) -> str:
        """Write the space as JSON, a field a line."""
        rows = TypeAdapter(type(self)).dump_python(self)["fields"]
        return '{"fields": [\n' + ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows) + "\n]}\n"

    def differences(self, other: ActionSpace) -> list[str]:
        """Describe field by field how another space differs from this space; empty: they are equal."""
        found = []
        for number in range(max(len(self.fields), len(other.fields))):
            mine, theirs = (space.fields[number : number + 1] for space in (self, other))
            if mine != theirs:
                found.append(f"field {number}: {_words(mine)} here, {_words(theirs)} there")
        return found


def read_space(path: Path) -> ActionSpace:
    """Read the file of a space.

    Raises:
        ValueError: the file cannot be read, or holds no action space.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"an action space must be a readable file, got {type(error).__name__} for {path}; write it with "
            "ActionSpace.to_json"
        ) from None
    return ActionSpace.from_json(text)


def _words(fields: tuple[ActionField, ...]) -> str:
    if not fields:
        return "none"
    (field,) = fields
    if isinstance(field, Choice):
        return f"{field.name}, a choice of {', '.join(field.classes)}"
    quantizer = f"{field.num_classes} {field.quantizer.kind} bins"
    return f"{field.name}, an axis from {field.low:g} to {field.high:g} {field.unit} in {quantizer}".replace("  ", " ")


@dataclass(frozen=True)
class Actions:
    """The actions of one clip in a space.

    Args:
        space: of the values.
        values: float32 [F, D]; the class of a choice, the number of an axis.

    Raises:
        ValueError: another shape, NaN or infinity, a class that does not exist, or a number outside its axis.
    """

    space: ActionSpace
    values: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        num_fields = len(self.space.fields)
        if self.values.ndim != 2 or self.values.shape[1] != num_fields:
            raise ValueError(
                f"actions of this space need values [F, {num_fields}], got {list(self.values.shape)}; give one column "
                "a field"
            )
        for column, field in enumerate(self.space.fields):
            _check_column(field, self.values[:, column])

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, frames: slice) -> Actions:
        return Actions(self.space, self.values[frames])

    @cached_property
    def classes(self) -> npt.NDArray[np.int64]:
        """The class of each field in each frame, [F, D]."""
        columns = [field.bins(self.values[:, column]) for column, field in enumerate(self.space.fields)]
        return np.stack(columns, axis=1)

    def classes_of(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the classes of some fields, [F, len(names)]."""
        return self.classes[:, self.space.columns(names)]

    def values_of(self, names: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the values of some fields, [F, len(names)]."""
        return self.values[:, self.space.columns(names)]

    def equals(self, other: Actions) -> bool:
        """Return whether both are the same actions in the same space."""
        return self.space == other.space and np.array_equal(self.values, other.values)

    def shifted(self, shift: int) -> Actions:
        """Return F actions; action k is the action k + shift of this object, or nothing if there is none."""
        values, shift = self.space.nothing(len(self)).values, max(-len(self), min(shift, len(self)))
        kept, taken = slice(max(0, -shift), len(self) - max(0, shift)), slice(max(0, shift), len(self) - max(0, -shift))
        values[kept] = self.values[taken]
        return Actions(self.space, values)

    def followed_by(self, other: Actions) -> Actions:
        """Return these actions and then the other ones.

        Raises:
            ValueError: the spaces differ.
        """
        if differences := self.space.differences(other.space):
            raise ValueError(f"actions must be of one space, got {differences[0]}; give actions of the same world")
        return Actions(self.space, np.concatenate([self.values, other.values]))


def _check_column(field: ActionField, values: npt.NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        wrong, rule, way_out = ~np.isfinite(values), "be finite", "leave the recording out or repair it"
    elif isinstance(field, Choice):
        wrong = (values < 0) | (values >= field.num_classes) | (values != np.floor(values))
        rule, way_out = f"be a class from 0 to {field.num_classes - 1}", "correct the recording or its action space"
    elif field.is_clipped:
        return
    else:
        wrong = (values < field.low) | (values > field.high)
        rule = f"be within {field.low:g} and {field.high:g}"
        way_out = "correct the recording, widen the axis, or set is_clipped"
    if wrong.any():
        frame = int(wrong.argmax())
        raise ValueError(f"actions of {field.name} must {rule}, got {values[frame]:g} in frame {frame}; {way_out}")
