"""What the two families promise under one set of names."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.config.load import load_config, recipes
from rlir_ray.families import (
    action_space,
    cells_of,
    family_of,
    group_bytes,
    make_objective,
    open_codec,
    open_policy,
    open_reference,
)
from rlir_ray.learner.batches import StepBatch, trained_decisions
from rlir_ray.learner.step import Learner
from rlir_ray.learner.torch_engine import TorchEngine
from rlir_ray.models.flow import FlowWorldModel
from rlir_ray.run.preflight import check_checkpoints
from rlir_ray.run.resolved import resolve
from rlir_ray.spaces.vpt import VPT_SPACE
from tests.fakes import LATENT_SHAPE, tiny_flow_prompts, tiny_prompts
from tests.second_space import (
    SPACE,
    second_flow_model,
    second_flow_prompts,
    second_prompts,
    second_world_model,
)
from tests.world import flow_overrides


@pytest.mark.parametrize(
    "options",
    [[], ["train.grpo.ratio=guard"], ["train.objective=nft", "train.max_advantage=5", "flow.shared_noise=false"]],
    ids=["grpo", "guard", "nft"],
)
def test_estimate_of_a_flow_group_is_what_it_holds(make_config, checkpoints, options):
    config = make_config(*flow_overrides(checkpoints), *options)
    sampler = family_of(config).rollout_sampler(config, open_policy(config))
    group, video = sampler.sample(tiny_flow_prompts(1, num_frames=3), [0], [0], config.train.group_size)[0]
    assert group_bytes(config, LATENT_SHAPE) == group.nbytes + video.codes.nbytes


@pytest.mark.parametrize("family", ["autoregressive", "flow"])
def test_estimate_and_space_of_a_policy_of_another_space_are_its_own(make_config, checkpoints, tmp_path, family):
    is_flow = family == "flow"
    (second_flow_model() if is_flow else second_world_model()).save_pretrained(tmp_path / "policy")
    options = flow_overrides(checkpoints) if is_flow else []
    config = make_config(*options, f"models.policy={tmp_path / 'policy'}")
    prompts, frame = (second_flow_prompts(1), LATENT_SHAPE) if is_flow else (second_prompts(1), (12,))
    assert family_of(config).check_world(config) == frame and action_space(config) == SPACE
    sampler = family_of(config).rollout_sampler(config, open_policy(config))
    group, video = sampler.sample(prompts, [0], [0], config.train.group_size)[0]
    assert group_bytes(config, frame) == group.nbytes + video.codes.nbytes
    cells = cells_of(config)(SPACE.axes[0], np.array([0.5], np.float32))
    assert cells.nonzero()[1].tolist() == [6]


def test_families_cannot_tell_apart_what_their_inputs_do_not(make_config, checkpoints):
    yaw, degrees = VPT_SPACE.axes[1], np.array([0.6], np.float32)
    found = {}
    for family, options in (("tokens", []), ("classes", flow_overrides(checkpoints))):
        config = make_config(*options)
        assert action_space(config) == VPT_SPACE
        found[family] = cells_of(config)(yaw, degrees).nonzero()[1].tolist()
    # MineWorld's middle bin reaches to 1.05 degrees; tokens truncate to whole degrees first, so theirs reaches to 2.
    assert found == {"tokens": [3, 4, 5, 6, 7], "classes": [4, 5, 6]}


def test_flow_checkpoints_of_one_world_are_accepted(make_config, checkpoints):
    config = make_config(*flow_overrides(checkpoints))
    run = resolve(config)
    check_checkpoints(run.models)
    assert run.frame_shape == LATENT_SHAPE == open_codec(config).latent_shape
    with pytest.raises(ValueError, match=r"architecture.num_layers=5, got 2"):
        resolve(make_config(*flow_overrides(checkpoints), "architecture.num_layers=5"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "models.policy={}/policy",
            "must be a FlowWorldModel, an OasisWorldModel or a DiamondWorldModel with policy.family=flow",
        ),
        (
            "models.tokenizer={}/tokenizer",
            "must be an AutoencoderKL, an OasisAutoencoder or a PixelCodec with policy.family=flow, got VQModel",
        ),
        ("world.height=48", "must be for frames of 48x32, got 24x32"),
        ("policy.family=autoregressive", "got a flow model in .*; set policy.family=flow"),
    ],
)
def test_checkpoints_of_the_other_family_or_world_are_refused(make_config, checkpoints, override, message):
    config = make_config(*flow_overrides(checkpoints), override.format(checkpoints))
    with pytest.raises(ValueError, match=message):
        resolve(config)


@pytest.mark.parametrize("asking", ["train.kl_coefficient=0.1", "train.objective=flow_dpo"])
def test_reference_is_kept_only_where_a_penalty_or_an_objective_asks_for_it(make_config, checkpoints, asking):
    options = [*flow_overrides(checkpoints), "flow.shared_noise=false"]
    plain, held = make_config(*options), make_config(*options, asking)
    assert open_reference(plain, open_policy(plain)) is None
    policy = open_policy(held)
    reference = open_reference(held, policy)
    columns = (torch.zeros(1, 1, *LATENT_SHAPE), torch.ones(1, 1), torch.zeros(1, 1, 9, dtype=torch.int64))
    with torch.no_grad():
        before = policy(*columns)
        policy.head.weight.mul_(2)
        torch.testing.assert_close(reference(*columns), before)


@pytest.mark.parametrize(("size", "millions"), [("310m", 310), ("774m", 774)])
def test_nfd_recipes_are_of_the_published_sizes(size, millions):
    config = load_config(f"nfd_{size}")
    wanted, world = config.architecture, config.world
    with torch.device("meta"):
        model = FlowWorldModel(
            latent_channels=wanted.latent_channels,
            latent_height=world.height // 8,
            latent_width=world.width // 8,
            patch_size=wanted.patch_size,
            hidden_size=wanted.hidden_size,
            num_layers=wanted.num_layers,
            num_heads=wanted.num_heads,
        )
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.015)
    assert model.tokens_per_frame == wanted.tokens_per_frame == 336
    assert size in config.models.policy and config.flow.num_steps == 18


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.objective=nft", "policy.family=flow"], "train.max_advantage must be > 0 with train.objective=nft"),
        (
            ["train.objective=nft", "policy.family=flow", "train.max_advantage=5"],
            "flow.shared_noise must be false with train.objective=nft",
        ),
        (
            ["train.objective=cfm_ratio", "policy.family=flow"],
            "flow.shared_noise must be false with train.objective=cfm_ratio",
        ),
        (
            ["train.objective=cfm_ratio"],
            "train.objective must be grpo, rwr or best_of_n without policy.family=flow, got 'cfm_ratio'; set train",
        ),
        (["train.objective=flow_dpo"], "train.objective must be grpo, rwr or best_of_n without policy.family=flow"),
        (
            ["train.objective=flow_dpo", "train.kl_coefficient=0.1"],
            "train.kl_coefficient must be 0 with train.objective=flow_dpo, whose loss .*; set train.kl_coefficient=0",
        ),
        (
            ["train.objective=best_of_n", "train.best_and_worst=1"],
            "train.best_and_worst must be 0 with train.objective=best_of_n, which chooses the clips itself",
        ),
        (
            ["train.objective=rwr", "policy.family=flow"],
            "flow.shared_noise must be false with train.objective=rwr, or all clips",
        ),
        (["train.grpo.ratio=guard"], "train.grpo.ratio must be plain without policy.family=flow"),
        (["train.best_and_worst=5"], "must be at most half of train.group_size=8, got 5; set train.best_and_worst=4"),
        (["policy.family=flow", "rollout.temperature=0.9"], "rollout.temperature must be 1 with policy.family=flow"),
        (
            ["policy.family=flow", "flow.window=3", "flow.window_end=2"],
            "flow.window_end must be 0, or from flow.window=3 to the 9 steps that may explore, got 2; set flow.window",
        ),
        (["flow.noise_level=0"], "flow.noise_level must be a finite number > 0"),
        (["flow.num_steps=1"], "flow.num_steps must be a whole number >= 2"),
        (
            [
                "policy.family=flow",
                "train.objective=nft",
                "train.max_advantage=5",
                "flow.shared_noise=false",
                "train.grpo.ratio=guard",
            ],
            "train.grpo.ratio must be plain with train.objective=nft",
        ),
        (
            ["policy.family=flow", "flow.sde=cps", "train.grpo.ratio=guard"],
            "train.grpo.ratio must be plain with flow.sde=cps",
        ),
        (
            ["policy.family=flow", "flow.sde=cps", "flow.skip_last=false", "train.kl_coefficient=0.1"],
            "flow.skip_last must be true with flow.sde=cps and a KL penalty",
        ),
        (["policy.family=flow", "evaluation.top_p=0.8"], "evaluation.top_p must be 1 with policy.family=flow"),
        (["lora.rank=2", "train.kl_coefficient=0.1", "learner.zero_stage=3"], "learner.zero_stage must be < 3"),
        (["train.max_failed_fraction=1"], r"train.max_failed_fraction must be a finite number in \[0, 1\)"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_config("", overrides)


@pytest.mark.parametrize("recipe", recipes())
def test_every_shipped_recipe_holds_its_steps_in_its_budget(recipe):
    config = load_config(recipe)
    stated, world = config.architecture, config.world
    # Its own policy need not be here; all shipped recipes are of MineWorld's layout or have fewer fields.
    is_flow = config.policy.family == "flow"
    policy = f"asset:doom/{'flow_model' if is_flow else 'world_model'}"
    config = dataclasses.replace(config, models=dataclasses.replace(config.models, policy=policy))
    frame = (stated.tokens_per_frame or 48,)
    if is_flow:
        # The numbers of a latent: of each token's patch, or of the embedded worlds' grid.
        num_places = frame[0] * stated.patch_size**2 or world.height * world.width // 64
        frame = (stated.latent_channels or 8, num_places)
    steps = 1 + config.train.max_staleness
    # Where none is stated a run takes what is free: this much on a laptop of 8 GB.
    budget = config.object_store_budget_bytes or 1_000_000_000
    assert steps * config.train.prompts_per_step * group_bytes(config, frame) <= budget


@pytest.mark.gpu
@pytest.mark.parametrize("sde", ["flow_grpo", "dance_grpo", "cps"])
def test_ratio_is_one_on_a_gpu_though_sampler_and_learner_attend_through_other_kernels(make_config, checkpoints, sde):
    config = make_config(*flow_overrides(checkpoints), f"flow.sde={sde}", "learner.use_gpu=true")
    policy = open_policy(config, "cuda")
    groups = [
        group
        for group, _ in family_of(config)
        .rollout_sampler(config, policy)
        .sample(tiny_flow_prompts(4, num_frames=3), range(4), range(4), 4)
    ]
    advantages = [GroupAdvantages.of_all(np.ones((4, 3), np.float32)) for _ in groups]
    engine = TorchEngine(policy, config.train, config.learner)
    learner = Learner(engine, make_objective(config, policy), config.train, config.learner)
    metrics = learner.step(StepBatch(groups, advantages, trained_decisions(groups, advantages)))
    assert metrics["ratio/max_abs_log"] < 1e-5


@pytest.mark.parametrize("family", ["torch", "flow"])
def test_gradient_checkpointing_changes_no_gradient(make_config, checkpoints, family):
    config = make_config(*(flow_overrides(checkpoints) if family == "flow" else []))
    prompts = tiny_flow_prompts(1, num_frames=3) if family == "flow" else tiny_prompts(1, num_frames=3)
    group, _ = family_of(config).rollout_sampler(config, open_policy(config)).sample(prompts, [0], [0], 4)[0]
    advantages = [GroupAdvantages.of_all(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32))]
    norms = []
    for enabled in (False, True):
        policy = open_policy(config)
        if enabled:
            policy.enable_gradient_checkpointing()
        engine = TorchEngine(policy, config.train, config.learner)
        learner = Learner(engine, make_objective(config, policy), config.train, config.learner)
        norms.append(learner.step(StepBatch([group], advantages, trained_decisions([group], advantages)))["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5) and norms[0] > 0
