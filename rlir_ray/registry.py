"""Named plug-ins: the members that the configuration may name on each axis, and the import of a member by its name.

A name is a built-in name, an entry point of an installed package (`rlir_ray.rewards`, ...), or `package.module:Name`.
This file imports a plug-in only in `load`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Member = TypeVar("Member")


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One kind of plug-in."""

    group: str
    """Name of the group of entry points."""
    key: str
    """The configuration key that names a member."""
    members: Mapping[str, str]
    """Built-in name -> `package.module:Name`."""
    needs: tuple[str, ...]
    """Names of the attributes and methods that a member must have."""
    is_class: bool = True
    """Whether a member is a class; otherwise a member is an object."""


AXES = {
    "families": Axis(
        group="rlir_ray.families",
        key="policy.family",
        members={"autoregressive": "rlir_ray.families.autoregressive:FAMILY", "flow": "rlir_ray.families.flow:FAMILY"},
        needs=(
            *("open_policy", "codec", "check_world", "rollout_sampler", "evaluation_sampler", "rescorer"),
            *("sampling_text", "layout", "cells", "record"),
        ),
        is_class=False,
    ),
    "idms": Axis(
        group="rlir_ray.idms",
        key="architecture",
        members={
            "vpt": "rlir_ray.idm.vpt:VptInverseDynamics",
            "correlation": "rlir_ray.idm.correlation_idm:CorrelationInverseDynamics",
            "keypoints": "rlir_ray.idm.keypoint_idm:KeypointInverseDynamics",
            "difference": "rlir_ray.idm.difference_idm:DifferenceInverseDynamics",
        },
        needs=("from_pretrained", "read"),
    ),
    "rewards": Axis(
        group="rlir_ray.rewards",
        key="reward.name",
        members={
            "inverse": "rlir_ray.rewards.inverse:InverseTerm",
            "recorded": "rlir_ray.rewards.recorded:RecordedTerm",
            "motion": "rlir_ray.rewards.guards:Motion",
            "brightness": "rlir_ray.rewards.guards:Brightness",
            "sharpness": "rlir_ray.rewards.guards:Sharpness",
            "context": "rlir_ray.rewards.guards:Context",
            "smoothness": "rlir_ray.rewards.smoothness:SmoothnessTerm",
            "preference": "rlir_ray.rewards.preference_term:PreferenceTerm",
        },
        needs=("score",),
    ),
    "objectives": Axis(
        group="rlir_ray.objectives",
        key="train.objective",
        members={
            "grpo": "rlir_ray.learner.objectives:PolicyGradient",
            "nft": "rlir_ray.learner.objectives:DiffusionNFT",
            "cfm_ratio": "rlir_ray.learner.flow_objectives:CfmRatio",
            "flow_dpo": "rlir_ray.learner.flow_objectives:FlowDpo",
            "rwr": "rlir_ray.learner.regression:RewardWeighted",
            "best_of_n": "rlir_ray.learner.regression:BestOfN",
        },
        needs=("from_parts", "loss", "end_step", "state", "load_state"),
    ),
    "sources": Axis(
        group="rlir_ray.sources",
        key="prompts.source",
        members={
            "doom": "rlir_ray.worlds.doom_source:DoomSource",
            "pusht": "rlir_ray.worlds.pusht_source:PushtSource",
            "recordings": "rlir_ray.data.recorded_clips:RecordedSource",
        },
        needs=("clips",),
    ),
}


def known(axis: str) -> list[str]:
    """Return the short names of an axis: built-in names first, then those of installed packages."""
    offered = {point.name for point in _entry_points(axis)} - AXES[axis].members.keys()
    return [*AXES[axis].members, *sorted(offered)]


def check_name(axis: str, name: str) -> None:
    """Check that a name is a known short name or has the form `package.module:Name`. Import nothing.

    Raises:
        ValueError: the name is neither; the message lists the known names and the nearest one.
    """
    if name in AXES[axis].members:
        return
    module, _, attribute = name.partition(":")
    if all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        return
    names = known(axis)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, cutoff=0.0) or names
        raise ValueError(
            f"{AXES[axis].key} must be one of {', '.join(names)}, or package.module:Name, got {name!r}; did you mean "
            f"{near[0]}?"
        )


def load(axis: str, name: str) -> Any:
    """Import a member and check that it has the attributes and methods that its axis needs.

    The type of the member depends on the axis, hence Any.

    Raises:
        ValueError: the name is unknown, its module cannot be imported or lacks the member, or the member lacks an
            attribute or method.
    """
    check_name(axis, name)
    member: Any = import_target(f"{AXES[axis].key}={name}", _target(axis, name))
    if AXES[axis].is_class and not inspect.isclass(member):
        found = type(member).__name__
        raise ValueError(f"{AXES[axis].key}={name} must name a class, got a {found}; name the class itself")
    if lacking := [need for need in AXES[axis].needs if not hasattr(member, need)]:
        raise ValueError(
            f"{AXES[axis].key}={name} must have {', '.join(AXES[axis].needs)}, got none named {', '.join(lacking)}; "
            f"add {lacking[0]} (rlir_ray.testing checks the rest)"
        )
    return member


def any_declares(axis: str, names: Iterable[str], attribute: str) -> bool:
    """Return whether one of these members has a true attribute, such as `reads_idm` of a reward.

    Raises:
        ValueError: see `load`.
    """
    return any(getattr(load(axis, name), attribute, False) for name in names)


def build(axis: str, name: str, args: Mapping[str, object], make: Callable[..., Member], *parts: object) -> Member:
    """Build a member by `make(*parts, **args)`.

    Args:
        axis: axis of the member, for the error.
        name: name of the member, for the error.
        args: the user's arguments, from the configuration.
        make: the class of the member, or its class method that builds the member.
        parts: arguments that every member of the axis gets.

    Raises:
        ValueError: the arguments do not fit the signature.
    """
    try:
        inspect.signature(make).bind(*parts, **args)
    except TypeError as error:
        part = AXES[axis].key.partition(".")[0]
        raise ValueError(
            f"{AXES[axis].key}={name} must take the arguments that {part} gives it, got {dict(args)}: {error}; compare "
            f"them with {getattr(make, '__qualname__', make)}{inspect.signature(make)}"
        ) from None
    return make(*parts, **args)


def _target(axis: str, name: str) -> str:
    """Return `package.module:Name` for a name that `check_name` accepts."""
    if ":" in name:
        return name
    if name in AXES[axis].members:
        return AXES[axis].members[name]
    offered = sorted({point.value for point in _entry_points(axis) if point.name == name})
    if len(offered) > 1:
        raise ValueError(
            f"{AXES[axis].key}={name} must be offered by one package, got {' and '.join(offered)}; name one of these"
        )
    return offered[0]


def _entry_points(axis: str) -> list[importlib.metadata.EntryPoint]:
    return list(importlib.metadata.entry_points(group=AXES[axis].group))


def import_target(label: str, target: str) -> object:
    """Import an object by `package.module:Name`.

    Args:
        label: what names the object, for the error.
        target: `package.module:Name`.

    Raises:
        ValueError: the module cannot be imported or lacks the object.
    """
    module_name, _, attribute = target.partition(":")
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{label} must be importable, got no module {error.name!r}; install it, put its folder on PYTHONPATH, or "
            "start `python -m rlir_ray` in its folder"
        ) from error
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{label} must be importable, got {type(error).__name__} in module {module_name!r}: {first}; correct that "
            "module"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, [each for each in vars(found) if each[0] != "_"], 1)
            way_out = f"did you mean {near[0]}?" if near else "correct the name"
            raise ValueError(f"{label} must be in module {module_name}, got no {part!r} there; {way_out}")
        found = getattr(found, part)
    return found
