"""The guides to plug-ins show the examples that the tests run, and commands that the configuration takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from rlir_ray.config.load import load_config
from rlir_ray.config.unread_keys import reject_unread
from rlir_ray.registry import AXES, load

ROOT = Path(__file__).parents[2]
GUIDES = {"reward": "rewards", "objective": "objectives", "source": "sources", "idm": "idms", "model": "families"}
COMMAND = re.compile(r"```bash\npython -m rlir_ray train --recipe (.*?)\n```")


def text_of(guide: str) -> str:
    return (ROOT / "docs" / "plug-ins" / f"{guide}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("guide", GUIDES)
def test_guide_includes_its_example_and_names_its_member_and_entry_point(guide: str) -> None:
    text = text_of(guide)
    path, *others = re.findall(r'--8<-- "(.*?)"', text)
    assert all((ROOT / each).is_file() for each in (path, *others))
    (group,), (module, name) = re.findall(r'entry-points\."(.*?)"', text), re.findall(r'= "(my_\w+):(\w+)"', text)[0]
    assert group == AXES[GUIDES[guide]].group
    assert module == f"my_{Path(path).stem}"
    assert load(GUIDES[guide], f"docs.examples.{Path(path).stem}:{name}")


@pytest.mark.parametrize("guide", GUIDES)
def test_command_of_the_guide_is_taken(guide: str) -> None:
    (command,) = COMMAND.findall(text_of(guide))
    recipe, *overrides = shlex.split(command)
    recipe = "doom_tiny_ar" if recipe == "my_recipe.yaml" else recipe
    reject_unread(load_config(recipe, overrides), overrides)


@pytest.mark.parametrize("page", ["plug-ins/reward", "guides/rewards"])
def test_recipes_of_the_pages_on_rewards_are_taken(page: str, tmp_path: Path) -> None:
    recipes = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(recipes) >= 2
    for number, recipe in enumerate(recipes):
        path = tmp_path / f"{number}.yaml"
        path.write_text(recipe, encoding="utf-8")
        reward = load_config(str(path)).reward
        assert reward.terms or reward.args == {"target": 0.6} or len(reward.schedule) == 2
