"""Sections check themselves, wherever they are built, and travel to other processes."""

import dataclasses
import operator
import subprocess
import sys

import pytest
from ray import cloudpickle

from rlir_ray.config import Config, FlowConfig, OffPolicyConfig, RewardConfig, RolloutConfig, TrainConfig, WorldConfig
from rlir_ray.config.load import load_config, recipes
from rlir_ray.config.schema import entries, sections


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (TrainConfig, {"group_size": 1}, "train.group_size must be a whole number >= 2, got 1; set train.group_size=2"),
        (TrainConfig, {"num_steps": True}, "train.num_steps must be a whole number >= 1, got True; set"),
        (TrainConfig, {"num_steps": 1.5}, "train.num_steps must be a whole number >= 1, got 1.5; set"),
        (TrainConfig, {"num_steps": "7.0"}, "train.num_steps must be a whole number >= 1, got '7.0'; set"),
        (TrainConfig, {"learning_rate": True}, "train.learning_rate must be a finite number > 0, got True; use 0.0001"),
        (TrainConfig, {"wait_timeout_s": float("inf")}, "train.wait_timeout_s must be a finite number > 0, got inf"),
        (
            OffPolicyConfig,
            {"max_ratio": "nan"},
            "train.off_policy.max_ratio must be a finite number > 1, got nan; use 8.0",
        ),
        (
            TrainConfig,
            {"objective": "ppo"},
            "train.objective must be one of grpo, nft, cfm_ratio, flow_dpo, rwr, best_of_n, or package.module:Name, "
            "got 'ppo'; did you mean grpo",
        ),
        (TrainConfig, {"steps": 3}, "'train.steps' is not a configuration key; did you mean 'train.num_steps'"),
        (RolloutConfig, {"resources": {"": 1}}, "rollout.resources must be names of custom resources of nodes, got ''"),
        (FlowConfig, {"window": 10}, "flow.window must be at most the 9 steps that may explore, got 10; set"),
        (WorldConfig, {"groups": 3}, "world.groups must be .*, got 3; "),
        (
            TrainConfig,
            {"objective": "nft", "max_advantage": 5.0, "ema_decay": 0.9},
            "train.ema_decay must be 0 with train.objective=nft, .* got 0.9; set train.nft.max_decay instead",
        ),
        (RewardConfig, {"axis": "near"}, "reward.axis must be one of exact, within, cell, smooth, ignore, got 'near'"),
        (RewardConfig, {"axis_tolerance": -1}, "reward.axis_tolerance must be a finite number >= 0, got -1"),
        (RewardConfig, {"axis_scale": 0}, "reward.axis_scale must be a finite number > 0, got 0"),
        (RewardConfig, {"axis_tolerance_in": "degrees"}, "reward.axis_tolerance_in must be one of bins, unit, got"),
        (Config, {"train": {"group_size": 0}}, "train.group_size must be a whole number >= 2, got 0; set"),
        (Config, {"train": 3}, "train must be a section of keys, got 3; write train.KEY=VALUE"),
        (Config, {"train": {"nft": 3}}, "train.nft must be a section of keys, got 3; write train.nft.KEY=VALUE"),
        (TrainConfig, {"nft": {"beta": 0}}, "train.nft.beta must be a finite number > 0, got 0; use 1.0"),
        (
            TrainConfig,
            {"grpo": {"clip": 1}},
            "'train.grpo.clip' is not a configuration key; did you mean 'train.grpo.cl",
        ),
        (Config, {"rewards": {}}, "'rewards' is not a configuration key; did you mean 'reward"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(section, values, message):
    with pytest.raises(ValueError, match=message) as refusal:
        section(**values)
    assert "\n" not in str(refusal.value)


def test_values_are_of_their_types():
    config = Config(train=TrainConfig(learning_rate=1, num_steps="3"), world=WorldConfig(groups=["jump"]))
    assert (config.train.learning_rate, config.train.num_steps, config.world.groups) == (1.0, 3, ("jump",))
    assert isinstance(config.train.learning_rate, float)


def test_a_section_is_frozen_and_a_changed_copy_is_checked_again():
    config = load_config("doom_tiny_ar")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    changed = dataclasses.replace(config, train=dataclasses.replace(config.train, num_steps=3))
    assert changed != config and changed.train.num_steps == 3
    with pytest.raises(ValueError, match=r"train\.num_steps must be a whole number"):
        dataclasses.replace(config.train, num_steps=0)
    with pytest.raises(ValueError, match=r"train\.wait_timeout_s must be above 4 attempts"):
        dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, timeout_s=1e6))


@pytest.mark.parametrize("recipe", recipes())
def test_a_configuration_arrives_in_another_process_as_it_was(recipe):
    config = load_config(recipe, ["rollout.resources={rollout_node: 0.5}"])
    arrived = cloudpickle.loads(cloudpickle.dumps(config))
    assert arrived == config and type(arrived) is Config and arrived.rollout_timeout_s == config.rollout_timeout_s
    assert hash(arrived.world) == hash(config.world)


@pytest.mark.parametrize("name", [name for name in sections(Config) if not name.endswith("[]")])
def test_the_name_of_a_section_in_messages_is_the_one_in_the_tree(name):
    part = operator.attrgetter(name)(Config())
    with pytest.raises(ValueError, match=f"'{name}.nonsense' is not a configuration key; did you mean '{name}"):
        type(part)(nonsense=1)


def test_defaults_in_the_schema_are_those_of_a_fresh_configuration():
    default = Config().to_dict()
    for key, entry in entries(Config).items():
        if "[]" in key:
            continue
        value = default
        for name in key.split("."):
            value = value[name]
        assert value == entry.default and entry.schema.get("default", entry.default) in (value, list_of(value))


def test_a_key_of_a_list_of_sections_is_checked_like_any_other():
    name = r"reward\.terms\[1\]"
    for term, message in (
        ("wieght: 2", rf"'{name}\.wieght' is not a configuration key; did you mean 'reward\.terms\[\]\.weight'"),
        ("weight: x", rf"^{name}\.weight must be a finite number, got 'x'"),
        ("normalize: both", rf"^{name}\.normalize must be one of auto, group, none, got 'both'"),
        ("weight: 0", "must have weights other than 0, got 'inverse with weight 0'"),
    ):
        with pytest.raises(ValueError, match=message):
            load_config("", ["reward.terms=[{name: inverse}, {name: inverse, " + term + "}]"])
    with pytest.raises(ValueError, match=r"^reward\.terms must be a list of mappings, got '3'"):
        load_config("", ["reward.terms=3"])


def list_of(value):
    return list(value) if isinstance(value, tuple) else value


def test_the_configuration_loads_without_heavy_libraries():
    code = """
import sys
from rlir_ray.config.load import load_config
load_config("doom_tiny_ar", ["train.num_steps=3"])
print("loaded:", [name for name in ("torch", "numpy", "ray", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "loaded: []" in done.stdout, done.stdout + done.stderr


def test_a_list_over_a_mapping_is_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("rollout: {resources: {node: 1}}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="settings must keep lists and mappings apart") as refusal:
        load_config(str(tmp_path / "mine.yaml"), ["rollout.resources=[node]"])
    assert "\n" not in str(refusal.value)


def test_a_text_that_omegaconf_cannot_read_is_refused():
    with pytest.raises(ValueError, match=r"run\.dir must be plain values, got .*; leave out") as refusal:
        load_config("", ["run.dir=${"])
    assert "\n" not in str(refusal.value)
