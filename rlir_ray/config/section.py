"""The decorator that makes a section of the configuration, and the types of its fields.

Recipes and overrides give text, and code gives values. The types accept both for numbers and lists.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

import pydantic.dataclasses
import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError

from rlir_ray.config.messages import broken_rule, one_line
from rlir_ray.registry import check_name

# Ray counts resources in steps of a ten-thousandth.
LEAST_RESOURCE = 1e-4
SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)
Section = TypeVar("Section")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
def section(name: str) -> Callable[[type[Section]], type[Section]]:
    """Return a decorator for a frozen dataclass that checks its values and reports an error in one line.

    Args:
        name: name of the section, for the keys in messages; empty for the whole configuration.
    """

    def build(plain: type[Section]) -> type[Section]:
        make = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
        # Any: the class that pydantic makes, whose __init__ is replaced below.
        checked: Any = make(plain)
        check = checked.__init__

        @functools.wraps(check)
        def __init__(self: Section, **values: object) -> None:
            try:
                check(self, **values)
            except ValidationError as error:
                raise ValueError(one_line(error, checked, name)) from None

        checked.__init__ = __init__
        return cast("type[Section]", checked)

    return build


def _read(kind: type[int] | type[float]) -> BeforeValidator:
    def read(value: object) -> object:
        with contextlib.suppress(ValueError):
            return kind(value) if isinstance(value, str) else value
        return value

    return BeforeValidator(read)


def _read_list(value: object) -> object:
    """Convert the text ``a,b`` or ``a`` to a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _read_scalars(value: object) -> object:
    """Convert texts in the arguments of a plug-in by YAML's rules: the configuration does not know their types."""
    if isinstance(value, dict):
        return {key: _read_scalars(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_read_scalars(each) for each in value]
    if not isinstance(value, str):
        return value
    try:
        found = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    # Keep text that looks like a mapping or a date.
    return found if value and isinstance(found, bool | int | float | None) else value


def _check_member(axis: str, name: str) -> str:
    check_name(axis, name)
    return name


def _check_folder_name(name: str) -> str:
    if name in (".", "..") or "/" in name or not name.isprintable():
        raise broken_rule()
    return name


def _check_resource(name: str) -> str:
    if not name or name.lower() in ("cpu", "gpu", "memory", "object_store_memory"):
        raise broken_rule()
    return name


def _check_amount(amount: float) -> float:
    if amount != 0 and amount < LEAST_RESOURCE:
        raise broken_rule()
    return amount


# Put the conversion last: pydantic runs it first there, and the ranges stay in the schema.
INT, FLOAT, LIST = _read(int), _read(float), BeforeValidator(_read_list)
PositiveInt = Annotated[int, Field(strict=True, ge=1), INT]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0), INT]
PositiveFloat = Annotated[float, Field(strict=True, gt=0), FLOAT]
NonNegativeFloat = Annotated[float, Field(strict=True, ge=0), FLOAT]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1), FLOAT]
FractionBelowOne = Annotated[float, Field(strict=True, ge=0, lt=1), FLOAT]
# 1: the model's prediction with the action, without guidance.
GuidanceScale = Annotated[float, Field(strict=True, ge=1), FLOAT]
OpenFraction = Annotated[float, Field(strict=True, gt=0, lt=1), FLOAT]
# A run's folder must lie directly in `run.dir`.
FolderName = Annotated[
    str,
    AfterValidator(_check_folder_name),
    Field(
        json_schema_extra={
            "rule": "the name of one folder, without slashes",
            "way_out": "use letters and digits: {key}=a1",
        }
    ),
]
# Custom resources of a pool; CPUs and GPUs have their own keys.
ResourceName = Annotated[
    str,
    AfterValidator(_check_resource),
    Field(
        json_schema_extra={
            "rule": "names of custom resources of nodes",
            "way_out": "use num_cpus and num_gpus (learner.use_gpu) for CPUs and GPUs",
        }
    ),
]
ResourceAmount = Annotated[
    float,
    Field(
        strict=True,
        json_schema_extra={
            "rule": f"0 or >= {LEAST_RESOURCE}",
            "way_out": "set {key}=0.01, which leaves room for 100 actors on a node that has 1",
        },
    ),
    AfterValidator(_check_amount),
    FLOAT,
]
Resources = dict[ResourceName, ResourceAmount]
# Names of plug-ins: a short name or package.module:Name.
FamilyName = Annotated[str, AfterValidator(partial(_check_member, "families"))]
RewardName = Annotated[str, AfterValidator(partial(_check_member, "rewards"))]
ObjectiveName = Annotated[str, AfterValidator(partial(_check_member, "objectives"))]
SourceName = Annotated[str, AfterValidator(partial(_check_member, "sources"))]
Arguments = Annotated[
    # Any: the plug-in takes its arguments in its own types.
    dict[str, Any],
    Field(json_schema_extra={"rule": "a mapping of names to values", "way_out": "write {key}={{NAME: VALUE}}"}),
    BeforeValidator(_read_scalars),
]
