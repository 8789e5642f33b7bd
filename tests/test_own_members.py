"""Runs with members of one's own, named in YAML, in this process and in the pools, without any IDM."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.evaluation.actor import EvaluationActor
from actors.pipeline import Pipeline
from actors.reward.replica import build_reward
from actors.rollout.actor import build_sampler
from docs.examples.family import NextFrame
from docs.examples.reward import Brightness
from rlir_ray.algorithm.ledger import Ledger
from rlir_ray.config import Config
from rlir_ray.config.load import load_config
from rlir_ray.data.digests import used_models
from rlir_ray.data.prompts import prepare_prompts
from rlir_ray.evaluation.report import write_report
from rlir_ray.families import make_objective, open_codec, open_policy
from rlir_ray.learner.step import Learner
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.local import train_local
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.models.token_sequence import TokenSequence, TokenShape
from rlir_ray.run.preflight import check_checkpoints
from rlir_ray.run.resolved import check_reward_idm, resolve
from rlir_ray.spaces.layouts import MineworldLayout
from rlir_ray.testing import check_family
from tests.fakes import NUM_CODES, TOKENS_PER_FRAME, tiny_prompts
from tests.world import MakeConfig, tiny_prompt_set

OWN = """
models: {reward_idm: '', judge_idm: ''}
reward: {name: 'docs.examples.reward:Brightness', args: {target: 1.0}}
"""


@pytest.fixture
def own_config(make_config: MakeConfig, tmp_path: Path):
    """The tiny world under a recipe of the user's; the checkpoints have no inverse dynamics model."""

    def make(*overrides: str) -> Config:
        recipe = tmp_path / "own.yaml"
        recipe.write_text(OWN, encoding="utf-8")
        plain = make_config()
        fixed = [f"models.{name}={getattr(plain.models, name)}" for name in ("policy", "tokenizer")]
        fixed += [f"run.dir={tmp_path}", "run.name=own", "world.height=24", "world.width=32", "world.num_frames=3"]
        fixed += ["prompts.num_train=12", "prompts.num_heldout=6", "rollout.prompts_per_call=2"]
        fixed += ["learner.engine=torch", "train.group_size=4", "train.prompts_per_step=4", "train.max_staleness=0"]
        fixed += ["train.num_steps=2", "train.learning_rate=0.003", "train.wait_timeout_s=250"]
        fixed += ["object_store_budget_bytes=10000000", "evaluation.num_videos=2"]
        return load_config(str(recipe), [*fixed, *overrides])

    return make


def run_local(config: Config, prompts) -> list[dict[str, float]]:
    policy = open_policy(config)
    learner = Learner(
        TorchEngine(policy, config.train, config.learner), make_objective(config, policy), config.train, config.learner
    )
    return train_local(config, prompts, build_sampler(config), build_reward(config, None), learner)


def test_reward_source_and_objective_of_ones_own_train_in_one_process(own_config, tmp_path: Path) -> None:
    config = own_config(
        "prompts.source=docs.examples.source:Square",
        "prompts.args.size=6",
        "prompts.actions=sampled",
        "train.objective=docs.examples.objective:Reinforce",
        "train.objective_args={scale: 2.0}",
        "train.num_steps=8",
        "train.learning_rate=0.01",
    )
    check_checkpoints(resolve(config).models)
    prompts = prepare_prompts(config, "train", open_codec(config), tmp_path)
    assert len(prompts) == 12 and prompts.frames.max() == 255
    history = run_local(config, prompts.prompts)
    assert len(history) == 8 and "follow/accuracy" not in history[0]
    assert sum(m["reward/mean"] for m in history[-2:]) > sum(m["reward/mean"] for m in history[:2])


def next_frame(num_codes: int) -> NextFrame:
    return NextFrame(TokenSequence(layout=MineworldLayout(), shape=TokenShape(num_codes, TOKENS_PER_FRAME)))


def test_family_of_ones_own_keeps_the_contract_and_trains(own_config, tmp_path: Path) -> None:
    torch.manual_seed(0)
    next_frame(NUM_CODES).save_pretrained(tmp_path / "next_frame")
    config = own_config("policy.family=docs.examples.family:FAMILY", f"models.policy={tmp_path / 'next_frame'}")
    resolve(config)
    prompts = tiny_prompts(6)
    check_family(config, prompts[:2])
    history = run_local(config, prompts)
    assert max(step["ratio/max_abs_log"] for step in history) < 1e-4
    other = next_frame(NUM_CODES + 1)
    other.save_pretrained(tmp_path / "next_frame")
    with pytest.raises(ValueError, match=r"12 tokens of 32 codes, as the tokenizer, got 12 tokens of 33"):
        check_family(config, prompts[:2])


@pytest.mark.parametrize("restrict", [True, False])
def test_policy_of_compressive_tokens_keeps_the_contract_and_trains(own_config, tmp_path: Path, restrict: bool) -> None:
    """RLVR-World's form: 20 tokens a frame of 64x80 pixels after a keyframe of 80, drawn from image ids or from all."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_heads": 1, "num_layers": 1}
    policy = WorldModel.create(
        num_codes=4375, tokens_per_frame=20, num_keyframe_codes=4375, tokens_per_keyframe=80, **sizes
    )
    policy.save_pretrained(tmp_path / "policy")
    tokenizer = Path(__file__).parent / "golden" / "rlvr_compressive"
    models = (f"models.policy={tmp_path / 'policy'}", f"models.tokenizer={tokenizer}")
    size = ("world.height=64", "world.width=80", f"rollout.restrict={restrict}", "learner.decision_budget=2000")
    config = own_config("prompts.source=docs.examples.source:Square", *models, *size)
    assert resolve(config).frame_shape == (20,)
    prompts = prepare_prompts(config, "train", open_codec(config), tmp_path).prompts
    assert all(prompt.keyframe is not None and prompt.keyframe.shape == (80,) for prompt in prompts)
    check_family(config, prompts[:2])
    history = run_local(config, prompts)
    assert max(step["ratio/max_abs_log"] for step in history) < 1e-4
    with pytest.raises(ValueError, match=r"must be for frames of 48x64, got 64x80; set world\.height=64"):
        resolve(own_config(*models, "world.height=48", "world.width=64"))


@pytest.mark.slow
def test_overlapped_pipeline_with_a_reward_from_yaml_needs_no_inverse_dynamics_model(ray_cluster, own_config) -> None:
    """The small run with overlap of `make test`: test_driver.py has the one without."""
    config = own_config(
        "train.objective=docs.examples.objective:Reinforce", "train.max_staleness=1", "train.num_steps=4"
    )
    result = Pipeline(config, prompts=tiny_prompt_set).train()
    assert result.groups["trained"] == 16 and 0 < result.metrics[0]["reward/mean"] < 1
    Ledger.from_json((result.folder / "ledger.json").read_text(encoding="utf-8")).check()
    lags = [step["staleness/max"] for step in result.metrics]
    assert lags[0] == 0 and max(lags) == 1
    assert result.metrics[0]["reward/mean"] == pytest.approx(
        run_local(config, tiny_prompt_set("train").prompts)[0]["reward/mean"], rel=1e-4
    )
    # The evaluation reports what it can: picture quality.
    evaluation = json.loads((result.folder / "evaluation.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in evaluation["evaluations"]] == ["base", "post-trained"]
    assert all(each["following"] == {} for each in evaluation["evaluations"])
    assert evaluation["evaluations"][1]["quality"]["brightness"]["mean"] > 0
    page = " ".join(write_report(result.folder).read_text(encoding="utf-8").split())
    assert "The mean reward is" in page and "has no models.judge_idm" in page and "recovered it" not in page


def test_missing_idm_is_no_error_where_the_reward_reads_none_and_one_where_it_does(own_config, make_config) -> None:
    config = own_config("models.reward_idm=models/of_nobody")
    check_checkpoints(used_models(config))
    check_reward_idm(own_config())
    check_reward_idm(make_config())
    rule = r"models\.reward_idm must name a folder with reward\.name="
    with pytest.raises(ValueError, match=f"{rule}inverse"):
        check_reward_idm(make_config("models.reward_idm="))
    with pytest.raises(ValueError, match=f"{rule}inverse"):
        Pipeline(make_config("models.reward_idm="))
    with pytest.raises(ValueError, match=f"{rule}tests.test_own_members:ReadsIdm"):
        check_reward_idm(own_config("reward.name=tests.test_own_members:ReadsIdm"))
    with pytest.raises(ValueError, match=r"a checkpoint must be an existing folder, got 'models/of_nobody'"):
        used_models(make_config("models.reward_idm=models/of_nobody"))


@pytest.mark.parametrize("path", ["", "models/of_nobody"])
def test_reward_of_a_program_needs_neither_an_idm_nor_a_name(
    path: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(f"models.reward_idm={path}", "models.judge_idm=")
    assert config.reward.name == "inverse"
    pipeline = Pipeline(config, prompts=tiny_prompt_set, make_reward=Brightness)
    assert "models.reward_idm" not in pipeline.folder.content
    assert EvaluationActor(pipeline.config, tmp_path, num_threads=1).idms == {}
    # An earlier version kept the path.
    folder = pipeline.folder.begin()
    folder.log_step({"step": 1.0})
    settings = json.loads((folder.path / "config.json").read_text(encoding="utf-8"))
    settings["models"]["reward_idm"] = "asset:doom/reward_idm"
    (folder.path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    Pipeline(config, prompts=tiny_prompt_set, make_reward=Brightness)


class ReadsIdm(Brightness):
    reads_idm = True


def test_own_reward_that_says_so_has_its_idm_checked(own_config) -> None:
    with pytest.raises(ValueError, match="a checkpoint must be an existing folder"):
        used_models(own_config("reward.name=tests.test_own_members:ReadsIdm", "models.reward_idm=models/x"))


def test_member_that_cannot_be_used_is_refused_before_anything_starts(own_config) -> None:
    config = own_config("reward.name=docs.examples.reward:encoded_clips")
    with pytest.raises(ValueError, match=r"reward\.name=.*encoded_clips must name a class, got a function"):
        Pipeline(config, prompts=tiny_prompt_set)
    assert not Path(config.run.dir, "own").exists()


def test_run_of_the_version_before_resumes_under_the_new_key_of_its_family(make_config, checkpoints, tmp_path) -> None:
    from rlir_ray.run.folder import RunFolder
    from tests.world import flow_overrides

    config = make_config(*flow_overrides(checkpoints))
    folder = RunFolder(config).begin()
    settings = json.loads((folder.path / "config.json").read_text(encoding="utf-8"))
    del settings["policy"], settings["reward"]["name"], settings["reward"]["args"]
    settings["rollout"]["engine"] = "flow"
    (folder.path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    folder.log_step({"step": 1.0})
    RunFolder(config)
    tokens = replace(make_config(), run=config.run)
    with pytest.raises(ValueError, match=r"exists with another config \(models\.policy differs\)"):
        RunFolder(tokens)


def test_other_arguments_of_a_plug_in_are_another_config(own_config) -> None:
    from rlir_ray.run.folder import RunFolder

    RunFolder(own_config()).begin().log_step({"step": 1.0})
    RunFolder(own_config())
    with pytest.raises(ValueError, match=r"exists with another config \(reward\.args differs\)"):
        RunFolder(own_config("reward.args={target: 0.5}"))
