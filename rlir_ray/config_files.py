"""Reads configurations: YAML recipes and dotted overrides, merged onto the defaults; and lists their keys."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.resources
import inspect
import itertools
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rlir_ray.config import Config, require

# Keys of earlier versions.
MOVED = {"vllm.max_logprob_difference": "rollout.max_logprob_difference"}


def keys(node: type = Config, prefix: str = "") -> list[str]:
    """All dotted keys of the tree."""
    found = []
    for entry in dataclasses.fields(node):
        part = entry.default_factory if dataclasses.is_dataclass(entry.default_factory) else None
        found += keys(part, f"{prefix}{entry.name}.") if part else [prefix + entry.name]  # type: ignore[arg-type]
    return found


def field_lines(node: type) -> dict[str, str]:
    """The one-line string under each field of a dataclass, read from its source."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(node))).body
    assert isinstance(tree, ast.ClassDef)
    lines = {}
    for item, after in itertools.pairwise(tree.body):
        if isinstance(item, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(item.target, ast.Name):
            lines[item.target.id] = ast.literal_eval(after.value)
    return lines


def describe(node: type = Config, prefix: str = "") -> dict[str, str]:
    """Each dotted key with its one line, for `--keys`."""
    lines = {prefix + name: text for name, text in field_lines(node).items()}
    for entry in dataclasses.fields(node):
        if dataclasses.is_dataclass(part := entry.default_factory):
            lines |= describe(part, f"{prefix}{entry.name}.")  # type: ignore[arg-type]
    return lines


def _is_part(entry: dataclasses.Field[Any]) -> bool:
    return dataclasses.is_dataclass(entry.default_factory)


def recipes() -> list[str]:
    """Names of the shipped recipes."""
    folder = importlib.resources.files("rlir_ray") / "recipes"
    return sorted(Path(str(item)).stem for item in folder.iterdir() if str(item).endswith(".yaml"))


def load_config(recipe: str = "", overrides: list[str] | None = None) -> Config:
    """The resolved configuration.

    Args:
        recipe: a shipped recipe's name, a path of a YAML file, or empty for the defaults. A recipe may name another
            one as its `base`, over which it is laid.
        overrides: dotted ones, ``["train.num_steps=10", "reward.rule=joint"]``; later ones win.

    Raises:
        ValueError: an unknown recipe or key (the nearest valid one is named), a wrong type or range.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    layers = _read_recipe(recipe) if recipe else []
    for override in overrides or []:
        require("=" in override, "an override", "must be KEY=VALUE", override, "for example train.num_steps=10")
        layers.append(_parse(override, partial(OmegaConf.from_dotlist, [override])))
    for layer in layers:
        _refuse_unknown(OmegaConf.to_container(layer), "")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), *layers)
        container: Any = OmegaConf.to_container(merged)
    except OmegaConfBaseException as error:
        raise ValueError(
            f"{error.full_key}: {str(error.msg or error).splitlines()[0]}; give a value of that type"
        ) from None
    except TypeError as error:
        # OmegaConf's own errors do not cover a list in a mapping's place.
        raise ValueError(
            f"settings must keep lists and mappings apart, got {error}; write {{NAME: VALUE}} for a mapping"
        ) from None
    container["recipe"] = container["recipe"] or Path(recipe).stem
    return _build(Config, container)


def _build(node: type, values: dict[str, Any]) -> Any:
    parts = {entry.name: entry.default_factory for entry in dataclasses.fields(node) if _is_part(entry)}
    built = {}
    for name, value in values.items():
        if name in parts:
            built[name] = _build(parts[name], value)  # type: ignore[arg-type]
        else:
            built[name] = tuple(value) if isinstance(value, list) else value
    return node(**built)


def _read_recipe(recipe: str) -> list[Any]:
    """A recipe's layers, those of its bases first."""
    from omegaconf import OmegaConf

    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        path = Path(str(importlib.resources.files("rlir_ray") / "recipes" / f"{recipe}.yaml"))
    if not path.is_file():
        near = difflib.get_close_matches(recipe, recipes(), 1) or recipes()
        raise ValueError(f"a recipe must be a shipped name or a .yaml file, got {recipe!r}; try {', '.join(near)}")
    layer = _parse(str(path), partial(OmegaConf.load, path))
    base = layer.pop("base", None)
    require(base != recipe, "base", "must be another recipe", base, "leave it out")
    return [*(_read_recipe(base) if base else []), layer]


def _parse(source: str, read: Callable[[], Any]) -> Any:
    """A layer of settings out of YAML.

    Raises:
        ValueError: it is no YAML, or no mapping of keys to values.
    """
    from omegaconf import DictConfig
    from yaml import YAMLError

    try:
        layer = read()
    except YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"settings must be YAML, got {source!r} ({problem}); check brackets and quotes") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"a recipe must be a text file in UTF-8, got {source!r} (byte {error.start}: {error.reason}); save it "
            "as UTF-8"
        ) from None
    require(isinstance(layer, DictConfig), "settings", "must map keys to values", source, "write key: value lines")
    return layer


def _refuse_unknown(values: Any, prefix: str) -> None:
    known = keys()
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and any(k.startswith(name + ".") for k in known):
            _refuse_unknown(value, name + ".")
        elif name in MOVED:
            raise ValueError(f"{name!r} holds for every engine now and is {MOVED[name]!r}; set that instead")
        elif name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.0)
            raise ValueError(f"{name!r} is not a configuration key; did you mean {near[0]!r}?")
