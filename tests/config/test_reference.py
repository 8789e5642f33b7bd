"""The reference page, the keys in the terminal and the JSON schema come from one source."""

import importlib.resources
import json
import subprocess
import sys

import jsonschema
import pytest
import yaml

from rlir_ray.config import Config
from rlir_ray.config.load import keys, recipes
from rlir_ray.config.reference import config_schema, configuration_page, keys_help
from rlir_ray.config.schema import entries, shown


def rows():
    """The cells of each row of the page, by key."""
    lines = [line for line in configuration_page().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.replace("\\|", "\0").strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): [cell.replace("\0", "|") for cell in row[1:]] for row in cells}


@pytest.mark.parametrize("key", keys())
def test_the_page_names_each_key_with_type_values_default_and_description(key):
    entry = entries(Config)[key]
    kind, values, default, description = rows()[key]
    assert kind == entry.kind and description == entry.description
    assert default == (f"`{shown(entry.default)}`" if entry.default != "" else "empty")
    assert values.replace("`", "") == entry.values


def test_the_page_has_no_other_rows():
    assert list(rows()) == keys()


@pytest.mark.parametrize(
    ("key", "row"),
    [
        (
            "train.num_steps",
            ["whole number", ">= 1", "`40`", "Steps; each trains a set of groups and publishes new weights."],
        ),
        ("learner.zero_stage", ["whole number", "in 0..3", "`1`", "DeepSpeed ZeRO stage."]),
        (
            "train.off_policy.max_ratio",
            ["number", "> 1", "`8.0`", "With importance weights: highest ratio of a decision (or clip) that trains."],
        ),
        (
            "reward.discount",
            [
                "number",
                "in [0, 1]",
                "`0.5`",
                "Discount of the rewards of other frames, for each frame of distance, with credit=frame.",
            ],
        ),
        (
            "learner.use_gpu",
            ["true or false", "", "`false`", "true: one GPU per rank, with NCCL; false: CPUs, with gloo."],
        ),
    ],
)
def test_rows_are_in_words(key, row):
    assert rows()[key] == row


@pytest.mark.parametrize(
    ("key", "kind", "values", "default"),
    [
        ("rollout.engine", "choice", "`torch`, `vllm`", "`torch`"),
        ("evaluation.temperatures", "list of numbers", "one or more, each > 0", "`[1.0]`"),
        ("rollout.resources", "mapping of names to numbers", "0 or >= 0.0001", "`{}`"),
        ("run.name", "text", "the name of one folder, without slashes", "empty"),
    ],
)
def test_choices_lists_and_mappings_are_in_words(key, kind, values, default):
    assert rows()[key][:3] == [kind, values, default]
    assert rows()["world.groups"][:2] == ["list of texts", ""]
    assert rows()["reward.axis"][1] == "`exact`, `within`, `cell`, `smooth`, `ignore`"


def test_the_terminal_shows_each_key_with_default_and_description():
    text = keys_help()
    for key, entry in entries(Config).items():
        assert f"  {key}={shown(entry.default)}\n      {entry.description} ({entry.kind}" in text


def test_the_command_writes_the_page_and_the_schema(tmp_path):
    page, schema = tmp_path / "reference" / "configuration.md", tmp_path / "schema.json"
    command = [sys.executable, "-m", "rlir_ray.config.reference", str(page), "--schema", str(schema)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert page.read_text(encoding="utf-8") == configuration_page()
    assert json.loads(schema.read_text(encoding="utf-8")) == config_schema()


def settings_of(recipe):
    file = importlib.resources.files("rlir_ray") / "recipes" / f"{recipe}.yaml"
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    settings.pop("base", None)
    return settings


@pytest.mark.parametrize("recipe", recipes())
def test_the_schema_accepts_each_shipped_recipe(recipe):
    jsonschema.validate(settings_of(recipe), config_schema())


def test_the_schema_refuses_what_is_no_key_or_out_of_range():
    for settings in ({"train": {"num_step": 3}}, {"train": {"num_steps": 0}}, {"rollout": {"engine": "vlm"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(settings, config_schema())
