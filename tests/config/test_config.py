"""Configuration: overrides, recipes, and what is refused."""

import dataclasses
from pathlib import Path

import pytest
import torch

from rlir_ray.config import Config, GrpoConfig, LearnerConfig, asset_path
from rlir_ray.config.load import keys, load_config, recipes
from rlir_ray.config.old_keys import MOVED, upgraded
from rlir_ray.config.schema import entries

TYPED_NAMES = [
    "run.name",
    "run.dir",
    "seed",
    "train.num_steps",
    "train.group_size",
    "train.prompts_per_step",
    "train.max_staleness",
    "train.learning_rate",
    "rollout.engine",
    "rollout.num_actors",
    "reward.num_replicas",
    "reward.rule",
    "learner.num_workers",
    "learner.zero_stage",
    "object_store_budget_bytes",
]


def test_the_names_that_people_type_are_keys():
    assert set(TYPED_NAMES) <= set(keys())


def test_every_key_has_one_line_of_explanation():
    lines = {key: entry.description for key, entry in entries(Config).items()}
    assert list(lines) == keys()
    assert all(line and "\n" not in line for line in lines.values())


def test_later_overrides_win_over_earlier_ones_and_over_the_recipe():
    config = load_config("doom_tiny_ar", ["train.num_steps=7", "train.num_steps=9", "world.groups=[jump,yaw]"])
    assert (config.train.num_steps, config.world.groups, config.recipe) == (9, ("jump", "yaw"), "doom_tiny_ar")


@pytest.mark.parametrize("name", ["007", "1e3", "yes", "on", "null", "2026-01-01", "0x10", "1_0", "a #b", "~"])
def test_a_text_is_never_read_as_a_number_a_truth_or_nothing(name, tmp_path):
    assert load_config("", [f"run.name={name}"]).run.name == name
    (tmp_path / "mine.yaml").write_text(f'run: {{name: {name.replace(" #b", "")}, dir: "{name}"}}\n')
    run = load_config(str(tmp_path / "mine.yaml")).run
    assert (run.name, run.dir) == (name.replace(" #b", ""), name)
    assert load_config("", [f"run.name='{name}'"]).run.name == name


def test_names_in_lists_and_of_resources_are_texts_too():
    config = load_config("", ["lora.targets=[007, on]", "rollout.resources={007: 1, no: 0.5}"])
    assert config.lora.targets == ("007", "on") and config.rollout.resources == {"007": 1.0, "no": 0.5}


@pytest.mark.parametrize("text", ["[jump,yaw]", "jump,yaw", "jump, yaw"])
def test_a_list_is_given_with_or_without_brackets(text):
    assert load_config("", [f"world.groups={text}", "evaluation.temperatures=1"]).world.groups == ("jump", "yaw")


def test_no_named_field_is_a_value_of_its_own():
    assert load_config("", ["world.groups=[]"]).world.groups == ()


@pytest.mark.parametrize("name", ["../x", "/tmp/x", ".", "..", "a/b", "a/", "a\nb"])
def test_the_name_of_a_run_stays_below_its_folder(name):
    # An unnamed run is called after its recipe.
    for key in ("run.name", "recipe"):
        with pytest.raises(ValueError, match=f"{key} must be the name of one folder, without slashes, got") as refusal:
            load_config("", [f"{key}={name}"])
        assert "\n" not in str(refusal.value)


def test_a_number_that_is_none_of_its_type_is_refused_and_not_cut():
    with pytest.raises(ValueError, match=r"train\.num_steps must be a whole number >= 1, got '7\.5'; set"):
        load_config("", ["train.num_steps=7.5"])


def test_recipes_that_are_each_others_base_are_refused_in_one_line(tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(f"base: {two}\n")
    two.write_text(f"base: {tmp_path}/../{tmp_path.name}/one.yaml\n")
    for recipe in (one, two):
        with pytest.raises(ValueError, match=r"base must not lead back to the recipe itself, got .*leave one base out"):
            load_config(str(recipe))


def test_a_key_that_occurs_twice_is_rejected(tmp_path):
    (tmp_path / "twice.yaml").write_text("train:\n  num_steps: 1\n  num_steps: 2\n")
    with pytest.raises(ValueError, match=r"settings must be YAML, got .*num_steps occurs twice"):
        load_config(str(tmp_path / "twice.yaml"))


def test_custom_resources_are_set_whole_or_one_by_one_and_taken_back_with_0(tmp_path):
    (tmp_path / "mine.yaml").write_text("rollout: {resources: {old: 1}}\n")
    overrides = ["rollout.resources={rollout_node: 0.01}", "rollout.resources.old=0", 'reward.resources={"node:a": 1}']
    config = load_config(str(tmp_path / "mine.yaml"), overrides)
    assert config.rollout.resources == {"old": 0, "rollout_node": 0.01}
    assert config.reward.resources == {"node:a": 1}


def test_every_shipped_recipe_loads():
    assert recipes()
    for name in recipes():
        assert load_config(name).recipe == name


def test_a_saved_config_is_a_recipe(tmp_path):
    from omegaconf import OmegaConf

    config = load_config("doom_tiny_ar", ["train.num_steps=7"])
    settings = {key: value for key, value in config.to_dict().items() if key != "run"}
    OmegaConf.save(OmegaConf.create(settings), tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.num_step=3", "did you mean 'train.num_steps'"),
        ("reward.rul=joint", "did you mean 'reward.rule'"),
        ("train.num_steps=many", "train.num_steps must be a whole number >= 1, got 'many'; set train.num_steps=1"),
        ("train.group_size=1", "train.group_size must be a whole number >= 2, got 1; set train.group_size=2"),
        ("train.max_staleness=-1", "train.max_staleness must be a whole number >= 0, got -1"),
        ("reward.rule=best", "reward.rule must be one of groups, joint, fields, got 'best'"),
        ("learner.zero_stage=4", "learner.zero_stage must be a whole number in 0..3, got 4; use 1"),
        ("rollout.temperature=0", "rollout.temperature must be a finite number > 0, got 0.0; use 1.0"),
        ("rollout.engine=vlm", "rollout.engine must be one of torch, vllm, got 'vlm'"),
        ("vllm.dtype=float16", "vllm.dtype must be one of float32, bfloat16, got 'float16'; try vllm.dtype=float32"),
        (
            "vllm.gpu_memory_utilization=1.2",
            r"memory_utilization must be a finite number in \(0, 1\), got 1.2; use 0.7",
        ),
        ("vllm.max_num_seqs=0", "vllm.max_num_seqs must be a whole number >= 1, got 0"),
        ("prompts.source=recordings", "prompts.path must name a folder"),
        ("train.num_steps", "an override must be KEY=VALUE"),
        (
            "rollout.resources={CPU: 1}",
            "rollout.resources must be names of custom resources of nodes, got 'CPU'; use num_cpus",
        ),
        ("reward.resources.node=-1", "reward.resources.node must be 0 or >= 0.0001, got -1.0"),
        (
            "learner.resources=[node]",
            r"resources must be a mapping of names to numbers, got \['node'\]; write .*={NAME",
        ),
        ("run.wait_for_nodes_s=-1", "run.wait_for_nodes_s must be a finite number >= 0"),
    ],
)
def test_bad_overrides_say_rule_value_and_way_out(override, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_config("", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["train: [", "- a\n- b\n"])
def test_a_file_that_is_no_mapping_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match="settings must") as refusal:
        load_config(str(tmp_path / "bad.yaml"))
    assert "\n" not in str(refusal.value)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="try doom_tiny_ar"):
        load_config("doom_tiny")


def test_a_missing_checkpoint_is_refused():
    with pytest.raises(ValueError, match="existing folder, got 'nowhere'"):
        asset_path("nowhere")


@pytest.mark.parametrize(
    ("overrides", "broadcasts", "nccl"),
    [
        ([], False, False),
        (["learner.use_gpu=true"], False, False),
        # Two actors on one GPU: NCCL refuses them.
        (["learner.use_gpu=true", "rollout.num_gpus=0.5"], False, False),
        (["learner.use_gpu=true", "rollout.num_gpus=1"], True, True),
        (["learner.use_gpu=true", "rollout.num_gpus=1", "weights.transfer=store"], False, True),
        (["weights.transfer=broadcast"], True, False),
    ],
)
def test_weights_are_broadcast_where_both_sides_have_gpus_of_their_own_or_when_told_so(overrides, broadcasts, nccl):
    config = load_config("", overrides)
    assert (config.broadcasts_weights, config.uses_nccl) == (broadcasts, nccl)


def test_defaults_build():
    assert Config() == load_config()


@pytest.mark.parametrize(("recipe", "millions"), [("300m", 321.0), ("700m", 726.0), ("1200m", 1229.3)])
def test_mineworlds_recipes_are_of_the_published_sizes(recipe: str, millions: float) -> None:
    from rlir_ray.models.autoregressive import WorldModel

    config = load_config(f"mineworld_{recipe}")
    sizes = {name: size for name, size in dataclasses.asdict(config.architecture).items() if size}
    with torch.device("meta"):
        model = WorldModel.create(**sizes)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == millions
    assert model.config.vocab_size == 8262 and model.config.head_dim == 64
    assert (config.world.height // 16) * (config.world.width // 16) == config.architecture.tokens_per_frame
    # Sixteen frames with the actions between them.
    assert config.world.num_context + config.world.num_frames == 16
    assert recipe in config.models.policy and config.evaluation.top_p == 0.8


def test_a_recipe_is_laid_over_its_base(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: mineworld_700m\ntrain: {group_size: 4}\n")
    config = load_config(str(tmp_path / "mine.yaml"), ["train.num_steps=3"])
    assert config.recipe == "mine" and config.train.group_size == 4 and config.train.num_steps == 3
    assert config.architecture.hidden_size == 2048 and config.architecture.num_layers == 20
    (tmp_path / "mine.yaml").write_text("base: absent\n")
    with pytest.raises(ValueError, match="a recipe must be a shipped name"):
        load_config(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward.min_replicas=2"], "reward.num_replicas must lie between .*=2 and .*=1, got 1; set .*num_replicas=2"),
        (["reward.num_replicas=5", "reward.max_replicas=4"], "must lie between .* got 5; set reward.num_replicas=4"),
        (["reward.target_queue=0"], "reward.target_queue must be a finite number > 0, got 0"),
        (["reward.address=rlir_reward"], "reward.address must be serve://NAME, .* got 'rlir_reward'"),
        (
            ["train.supervised_coefficient=0.1", "prompts.actions=sampled"],
            "prompts.actions must be recorded with train.supervised_coefficient, .* got 'sampled'",
        ),
        (["train.reference_every=5"], "train.reference_every must be 0 without train.kl_coefficient, .* got 5"),
        (
            ["train.kl_coefficient=0.1", "train.reference_decay=0.9"],
            "train.reference_decay must be 0 without train.reference_every, .* got 0.9; set train.reference_every=1",
        ),
        (
            ["train.kl_coefficient=0.1", "train.reference_every=5", "lora.rank=2"],
            "train.reference_every must be 0 with an adapter, .* got 5",
        ),
        (["reward.lookback=1", "reward.credit=clip"], "reward.credit must be frame with reward.lookback.* got 'clip'"),
        (["reward.lookback=1", "reward.discount=0"], "reward.discount must be > 0 with reward.lookback, .* got 0"),
        (["reward.address=serve://x", "reward.balance=class"], "reward.balance must be none with reward.address"),
    ],
)
def test_replicas_and_services_that_cannot_be_meant_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config("", overrides)


def test_all_attempts_of_a_group_end_before_the_wait_for_it():
    config = load_config("", ["train.wait_timeout_s=100"])
    assert config.rollout_timeout_s == config.reward_timeout_s == 20
    assert load_config("", ["train.wait_timeout_s=100", "reward.timeout_s=24"]).reward_timeout_s == 24
    with pytest.raises(ValueError, match=r"must be above 4 attempts .*, got 100\.0; set train\.wait_timeout_s=125 or"):
        load_config("", ["train.wait_timeout_s=100", "rollout.timeout_s=25"])


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_key_that_moved_says_where_it_is_now(old: str, new: str, tmp_path: Path) -> None:
    section, _, name = old.partition(".")
    (tmp_path / "old.yaml").write_text(f"base: doom_tiny_ar\n{section}: {{{name}: 1}}\n")
    for recipe, overrides in (("", [f"{old}=1"]), (str(tmp_path / "old.yaml"), [])):
        with pytest.raises(ValueError, match=f"^'{old}' is now called '{new}'; set that key instead$"):
            load_config(recipe, overrides)
    assert new in keys() and old not in keys()


def test_settings_of_the_camera_are_those_of_axes_now() -> None:
    old = {"reward": {"camera": "within", "camera_tolerance": 2, "rule": "joint"}, "policy": {"family": "flow"}}
    assert upgraded(old) == {
        "reward": {"axis": "within", "axis_tolerance": 2, "rule": "joint"},
        "policy": {"family": "flow"},
    }
    assert "camera" in old["reward"]
    reward = Config(**upgraded(old)).reward
    assert (reward.axis, reward.axis_tolerance, reward.axis_tolerance_in) == ("within", 2.0, "bins")


@pytest.mark.parametrize("backend", ["serve", "actors"])
def test_a_backend_of_the_reward_pool_is_read_over_with_one_line(backend: str, tmp_path: Path, caplog) -> None:
    (tmp_path / "old.yaml").write_text(f"base: doom_tiny_ar\nreward: {{backend: {backend}, num_replicas: 2}}\n")
    line = f"reward.backend={backend} is not read any more: the reward pool always uses Ray Serve; leave it out"
    assert load_config(str(tmp_path / "old.yaml")).reward.num_replicas == 2
    assert [record.getMessage() for record in caplog.records] == [line]
    caplog.clear()
    assert load_config("", [f"reward.backend={backend}"]) == load_config()
    assert [record.getMessage() for record in caplog.records] == [line]


def test_bf16_without_zero_is_refused_since_it_would_add_up_gradients_in_bfloat16() -> None:
    with pytest.raises(ValueError, match=r"learner.zero_stage must be 1\.\.3 with .*precision=bf16.* got 0; use 1"):
        LearnerConfig(zero_stage=0, precision="bf16")
    LearnerConfig(zero_stage=0, precision="bf16", engine="torch")
    LearnerConfig(zero_stage=0)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("sde", ["flow_grpo", "dance_grpo", "cps"])
def test_flow_policies_take_no_importance_weights_and_clip_around_the_behavior_policy(level: str, sde: str) -> None:
    flow = ["policy.family=flow", f"flow.sde={sde}"]
    with pytest.raises(
        ValueError, match=rf"train.off_policy.importance must be none with policy.family=flow.* got '{level}'"
    ):
        load_config("", [*flow, f"train.off_policy.importance={level}"])
    config = load_config("", flow)
    assert config.importance_level == "none" and config.has_clip
    assert load_config("").importance_level == "token" and not load_config("").has_clip


def test_losses_of_likelihood_ratios_are_for_tokens() -> None:
    with pytest.raises(ValueError, match=r"train.grpo.loss must be clip with policy.family=flow.* got 'cispo'"):
        load_config("", ["policy.family=flow", "train.grpo.loss=cispo"])
    with pytest.raises(ValueError, match=r"train.kl_estimator must be k3 with policy.family=flow.* got 'k2'"):
        load_config("", ["policy.family=flow", "train.kl_estimator=k2"])
    with pytest.raises(ValueError, match=r"train.grpo.dual_clip must be 0 or > 1.*, got 1.0; use 3.0"):
        load_config("", ["train.grpo.dual_clip=1"])


@pytest.mark.parametrize("recipe", recipes())
def test_no_recipe_sets_a_clip_that_cannot_act(recipe: str) -> None:
    config = load_config(recipe)
    assert config.has_clip or config.train.grpo == GrpoConfig()
