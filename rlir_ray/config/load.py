"""Reads configurations: YAML recipes and dotted overrides, merged onto the defaults; and lists their keys."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.resources
import inspect
import itertools
import logging
import textwrap
from pathlib import Path
from typing import Any, ClassVar, get_origin, get_type_hints

import yaml

from rlir_ray.config.sections import Config, require

# Keys of earlier versions.
MOVED = {"vllm.max_logprob_difference": "rollout.max_logprob_difference"}
# Keys of earlier versions that are read over, so that recipes and configurations of old runs still work.
DROPPED = {"reward.backend": "the reward pool always uses Ray Serve"}

logger = logging.getLogger(__name__)


class TextLoader(yaml.SafeLoader):
    """Reads every scalar as text, and refuses a key that is there twice."""

    yaml_implicit_resolvers: ClassVar = {
        # `<<` still takes in the keys of an anchor.
        "<": [pair for pair in yaml.SafeLoader.yaml_implicit_resolvers["<"] if pair[0].endswith(":merge")]
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


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
    layers += [_read_override(override) for override in overrides or []]
    for layer in layers:
        _drop_old(layer, "")
        _refuse_unknown(layer, "")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), *(_with_lists(layer, "") for layer in layers))
        container: Any = OmegaConf.to_container(merged)
    except OmegaConfBaseException as error:
        # Of a list's entry OmegaConf names neither key nor value.
        text = str(error.msg or error).splitlines()[0] if error.full_key else "a list holds a value of another type"
        raise ValueError(f"{error.full_key or 'settings'}: {text}; give a value of that type") from None
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
            if name in ("args", "objective_args"):
                value = _read_scalars(value)
            built[name] = tuple(value) if isinstance(value, list) else value
    return node(**built)


def _read_scalars(value: Any) -> Any:
    """The arguments of a plug-in, whose types the configuration does not know, as plain YAML reads them."""
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
    # Text that only looks like a mapping or a date stays text.
    return found if value and isinstance(found, (bool, int, float, type(None))) else value


def _read_recipe(recipe: str, read: tuple[Path, ...] = ()) -> list[dict[str, Any]]:
    """A recipe's layers, those of its bases first.

    Args:
        read: the recipes whose base it is.
    """
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        path = Path(str(importlib.resources.files("rlir_ray") / "recipes" / f"{recipe}.yaml"))
    if not path.is_file():
        near = difflib.get_close_matches(recipe, recipes(), 1) or recipes()
        raise ValueError(f"a recipe must be a shipped name or a .yaml file, got {recipe!r}; try {', '.join(near)}")
    path = path.resolve()
    require(path not in read, "base", "must not lead back to the recipe itself", recipe, "leave one base out")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"a recipe must be a text file in UTF-8, got {str(path)!r} (byte {error.start}: {error.reason}); save it "
            "as UTF-8"
        ) from None
    layer = _parse(text, str(path))
    layer = {} if layer == "" else layer
    require(isinstance(layer, dict), "settings", "must map keys to values", str(path), "write key: value lines")
    base = layer.pop("base", "")
    require(isinstance(base, str), "base", "must be one recipe's name or file", base, "name one")
    return [*(_read_recipe(base, (*read, path)) if base else []), layer]


def _read_override(override: str) -> dict[str, Any]:
    require("=" in override, "an override", "must be KEY=VALUE", override, "for example train.num_steps=10")
    key, _, text = override.partition("=")
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    # What stands for text is taken as it is, also where YAML would read a number, a comment or a mapping.
    value: Any = text if _key_types().get(key) is str and not is_quoted else _parse(text, override)
    first, *rest = key.split(".")
    for part in reversed(rest):
        value = {part: value}
    return {first: value}


def _parse(text: str, source: str) -> Any:
    """YAML whose scalars all stay text: the type of its key says how one is read, so that a name 007 stays 007.

    Raises:
        ValueError: it is no YAML, or has a key twice.
    """
    try:
        value = yaml.load(text, TextLoader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"settings must be YAML, got {source!r} ({problem}); check brackets and quotes") from None
    return "" if value is None else value


def _key_types(node: type = Config, prefix: str = "") -> dict[str, Any]:
    """The type of each dotted key."""
    hints = get_type_hints(node)
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(node):
        name = prefix + entry.name
        found |= _key_types(hints[entry.name], f"{name}.") if _is_part(entry) else {name: hints[entry.name]}
    return found


def _with_lists(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The same settings, with a list where a key that takes one has ``a,b`` or ``a``."""
    types, found = _key_types(), {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in types:
            value = _with_lists(value, f"{name}.")
        elif isinstance(value, str) and get_origin(types[name]) is tuple:
            value = [part.strip() for part in value.split(",") if part.strip()]
        found[key] = value
    return found


def _drop_old(values: dict[str, Any], prefix: str) -> None:
    """Take the keys of `DROPPED` out, with a line for each that says why it is gone."""
    for key, value in list(values.items()):
        name = f"{prefix}{key}"
        if name in DROPPED:
            tell_dropped(name, value)
            del values[key]
        elif isinstance(value, dict):
            _drop_old(value, f"{name}.")


def tell_dropped(name: str, value: Any) -> None:
    """Say in one line why a key of `DROPPED` is gone."""
    logger.warning("%s=%s is not read any more: %s; leave it out", name, value, DROPPED[name])


def _refuse_unknown(values: dict[str, Any], prefix: str) -> None:
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
