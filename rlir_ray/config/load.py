"""Load configurations: merge YAML recipes and dotted overrides; the sections check the result."""

from __future__ import annotations

import difflib
import importlib.resources
from pathlib import Path
from typing import Any, ClassVar, cast

import yaml

from rlir_ray.config.config import Config
from rlir_ray.config.messages import require
from rlir_ray.config.old_keys import DROPPED, tell_dropped, upgraded
from rlir_ray.config.schema import entries

Layer = dict[str, Any]
"""Settings of a recipe or of overrides, by section, before they are checked."""


class TextLoader(yaml.SafeLoader):
    """A YAML loader that reads every scalar as text and rejects a key that occurs twice."""

    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc]  # yaml has it on the class too
        # Keep `<<`, which merges the keys of an anchor.
        "<": [pair for pair in yaml.SafeLoader.yaml_implicit_resolvers["<"] if pair[0].endswith(":merge")]
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]} occurs twice", node.start_mark)
        found: dict[object, object] = super().construct_mapping(node, deep)  # type: ignore[no-untyped-call]  # yaml's
        return found


def recipes() -> list[str]:
    """List the names of the shipped recipes."""
    folder = importlib.resources.files("rlir_ray") / "recipes"
    return sorted(Path(str(item)).stem for item in folder.iterdir() if str(item).endswith(".yaml"))


def keys() -> list[str]:
    """List the dotted names of all keys."""
    return list(entries(Config))


def load_config(recipe: str = "", overrides: list[str] | None = None) -> Config:
    """Load a recipe and apply overrides.

    Args:
        recipe: name of a shipped recipe, path of a YAML file, or empty for the defaults. A recipe may name another
            recipe as its `base` and override its keys.
        overrides: dotted keys with values, ``["train.num_steps=10", "reward.rule=joint"]``; later overrides win.

    Raises:
        ValueError: a recipe or key is unknown (the message names the nearest valid one), or a value has a wrong type or
            range.
    """
    layers = _read_recipe(recipe) if recipe else []
    layers += [_read_override(override) for override in overrides or []]
    for layer in layers:
        _drop_old(layer, "")
    settings = _merge(layers)
    settings["recipe"] = settings.get("recipe") or Path(recipe).stem
    return Config(**settings)


def _merge(layers: list[Layer]) -> Layer:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = cast(Layer, OmegaConf.to_container(OmegaConf.merge({}, *layers)))  # layers have texts as names
    except OmegaConfBaseException as error:
        text = str(error.msg or error).splitlines()[0]
        raise ValueError(
            f"{error.full_key or 'settings'} must be plain values, got {text}; leave out ${{...}} and ???"
        ) from None
    except TypeError as error:
        # OmegaConf raises a TypeError for a list in the place of a mapping.
        raise ValueError(
            f"settings must keep lists and mappings apart, got {error}; write {{NAME: VALUE}} for a mapping"
        ) from None
    return merged


def _drop_old(values: Layer, prefix: str) -> None:
    """Remove the keys of `DROPPED`, and warn about each of them."""
    for key, value in list(values.items()):
        name = f"{prefix}{key}"
        if name in DROPPED:
            tell_dropped(name, value)
            del values[key]
        elif isinstance(value, dict):
            _drop_old(value, f"{name}.")


def _read_recipe(recipe: str, read: tuple[Path, ...] = ()) -> list[Layer]:
    """Read the layers of a recipe, its bases first.

    Args:
        recipe: name or path of the recipe.
        read: the recipes that lead to this one through their bases.
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
    if path.name == "config.yaml" and path.with_name("config.json").is_file():
        # A run saved both, perhaps a run of an earlier version.
        layer = upgraded(layer)
    base = layer.pop("base", "")
    require(isinstance(base, str), "base", "must be one recipe's name or file", base, "name one")
    return [*(_read_recipe(base, (*read, path)) if base else []), layer]


def _read_override(override: str) -> Layer:
    require("=" in override, "an override", "must be KEY=VALUE", override, "for example train.num_steps=10")
    key, _, text = override.partition("=")
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    entry = entries(Config).get(key)
    # Keep the text of a text key unchanged, even if YAML would read a number, a comment or a mapping.
    value: object = text if entry and entry.is_text and not is_quoted else _parse(text, override)
    layer: Layer = {}
    for part in reversed(key.split(".")):
        value = layer = {part: value}
    return layer


def _parse(text: str, source: str) -> Any:
    """Parse YAML and keep each scalar as text. The type of the key decides later, so that the name 007 stays 007.

    Raises:
        ValueError: the text is not YAML, or a key occurs twice.
    """
    try:
        value = yaml.load(text, TextLoader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"settings must be YAML, got {source!r} ({problem}); check brackets and quotes") from None
    return "" if value is None else value
