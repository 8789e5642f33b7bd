"""The configuration of a policy that is used outside of its run: recipe, codec and judge, found from its folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rlir_ray.config import Config, asset_path
from rlir_ray.config.load import load_config, recipes
from rlir_ray.models.adapters import is_adapter_folder
from rlir_ray.models.flow_forms import stated_architecture


def _folder(path: str, option: str) -> Path:
    try:
        return asset_path(path)
    except ValueError:
        raise ValueError(f"{option} must be an existing folder, got {path!r}; check the path") from None


def policy_config(
    named: str, *, recipe: str = "", tokenizer: str = "", judge: str = "", overrides: Sequence[str] = ()
) -> Config:
    """Find the configuration of a policy, with its models as absolute folders; a missing judge is left out.

    Args:
        named: the policy's folder, or its path in the package (`asset:...`).
        recipe: recipe of the policy; empty: that of its run, or the shipped one of its size.
        tokenizer: codec's folder; empty: POLICY/tokenizer, or the recipe's.
        judge: judge's folder; empty: the recipe's.
        overrides: dotted overrides of the recipe.

    Raises:
        ValueError: no recipe is given and none fits the policy, or a folder does not exist.
    """
    policy = _folder(named, "--policy")
    config = load_config(recipe or find_recipe(policy), list(overrides))
    if not recipe:
        config = _with_run_folders(config, policy)
    given = bool(judge)
    tokenizer = tokenizer or (str(policy / "tokenizer") if (policy / "tokenizer").is_dir() else "")
    judge = judge or config.models.judge_idm
    if not given and judge and not judge.startswith("asset:") and not Path(judge).is_dir():
        # The recipe's judge does not exist here: leave out action following instead of failing.
        judge = ""
    # An adapter needs the policy from which its run started.
    checkpoint = {"adapter": str(policy)} if is_adapter_folder(policy) else {"policy": str(policy)}
    models = dataclasses.replace(
        config.models,
        **checkpoint,
        tokenizer=str(_folder(tokenizer or config.models.tokenizer, "--tokenizer")),
        judge_idm=str(_folder(judge, "--idm")) if judge else "",
    )
    return dataclasses.replace(config, models=models)


def _with_run_folders(config: Config, policy: Path) -> Config:
    """Resolve a run's relative folders: first in the working folder, then in the parent folders of the policy."""
    found = {entry.name: getattr(config.models, entry.name) for entry in dataclasses.fields(config.models)}
    for name, path in found.items():
        places = [home / path for home in policy.absolute().parents]
        if path and not path.startswith("asset:") and not Path(path).is_dir():
            found[name] = next((str(place) for place in places if place.is_dir()), path)
    return dataclasses.replace(config, models=dataclasses.replace(config.models, **found))


def find_recipe(policy: Path) -> str:
    """Find the configuration of the policy's run, otherwise the shipped recipe of the policy's size.

    Raises:
        ValueError: neither exists.
    """
    if (run := policy.absolute().parent / "config.yaml").is_file():
        return str(run)
    if is_adapter_folder(policy):
        raise ValueError(f"an adapter outside a run's folder needs --recipe, got {policy}; name its policy's recipe")
    try:
        held = stated_architecture(json.loads((policy / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"--policy must be a world model's folder, got {error}; check {policy}") from None
    for name in recipes():
        recipe = load_config(name)
        if recipe.architecture == held or _is_folder(recipe.models.policy, policy):
            return name
    raise ValueError(
        f"a policy outside a run's folder and of no shipped size needs --recipe, got {policy}; name one of "
        f"{', '.join(recipes())} or a YAML file"
    )


def _is_folder(named: str, folder: Path) -> bool:
    return named.startswith("asset:") and asset_path(named).samefile(folder)
