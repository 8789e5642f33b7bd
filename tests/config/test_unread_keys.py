"""What a user names acts, or is refused with the setting that it needs."""

import pytest

from rlir_ray.config.load import keys, load_config
from rlir_ray.config.unread_keys import CONDITIONS, reject_unread

NFT = ["train.objective=nft", "train.max_advantage=5", "flow.shared_noise=false"]
FLOW_DPO = ["train.objective=flow_dpo", "flow.shared_noise=false", "train.kl_coefficient=0"]
RWR = ["train.objective=rwr"]
CFM_RATIO = ["train.objective=cfm_ratio", "flow.shared_noise=false"]


def resolved(recipe, overrides):
    reject_unread(load_config(recipe, overrides), overrides)


@pytest.mark.parametrize(
    ("recipe", "override", "needed"),
    [
        ("doom_tiny_ar", "vllm.dtype=bfloat16", ["rollout.engine=vllm"]),
        ("doom_tiny_ar", "reward.axis_tolerance=3", ["reward.axis=within"]),
        ("doom_tiny_ar", "reward.axis_tolerance_in=unit", ["reward.axis=within"]),
        ("doom_tiny_ar", "reward.axis_scale=0.2", ["reward.axis=smooth"]),
        ("mineworld_300m", "reward.discount=0.9", ["reward.credit=frame"]),
        ("doom_tiny_flow", "train.nft.beta=0.5", NFT),
        ("doom_tiny_flow", "train.nft={beta: 0.5}", NFT),
        ("doom_tiny_flow", "train.fpo.num_pairs=4", CFM_RATIO),
        ("doom_tiny_flow", "train.dpo.beta=4", FLOW_DPO),
        ("doom_tiny_flow", "train.regression.num_levels=4", [*RWR, "flow.shared_noise=false"]),
        ("doom_tiny_ar", "train.regression.temperature=4", RWR),
        ("doom_tiny_flow", "flow.window_interval=2", ["flow.window_moves=sliding"]),
        ("doom_tiny_flow", "flow.window_end=3", ["flow.window_moves=random"]),
        ("doom_tiny_ar", "train.grpo.step_weights=noise", ["policy.family=flow"]),
        ("doom_tiny_ar", "reward.target_queue=4", ["reward.max_replicas=3"]),
        ("doom_tiny_ar", "train.grpo.clip_low=0.1", ["train.off_policy.importance=none"]),
        ("doom_tiny_ar", "train.grpo.clip_high=0.1", ["train.off_policy.importance=none"]),
        ("doom_tiny_ar", "train.grpo.loss=gspo", ["train.off_policy.importance=none"]),
        ("doom_tiny_ar", "train.grpo.dual_clip=3", ["train.updates_per_step=2"]),
        ("doom_tiny_ar", "train.grpo.gspo_clip_low=0.1", ["train.off_policy.importance=none", "train.grpo.loss=gspo"]),
        ("doom_tiny_ar", "train.grpo.gspo_clip_high=1", ["train.off_policy.importance=none", "train.grpo.loss=gspo"]),
        ("doom_tiny_ar", "train.grpo.cispo_clip_high=1", ["train.off_policy.importance=none", "train.grpo.loss=cispo"]),
        ("doom_tiny_ar", "train.kl_estimator=k2", ["train.kl_coefficient=0.1"]),
        ("doom_tiny_ar", "lora.alpha=4", ["lora.rank=4"]),
        ("doom_tiny_ar", "weights.bucket_bytes=1024", ["weights.transfer=broadcast"]),
    ],
)
def test_a_key_that_cannot_act_is_refused_and_the_setting_that_it_needs_helps(recipe, override, needed):
    with pytest.raises(ValueError, match=f"{override.split('=')[0]} is read only with .*, got '{override}'") as refusal:
        resolved(recipe, [override])
    assert "\n" not in str(refusal.value)
    resolved(recipe, [override, *needed])


@pytest.mark.parametrize(
    "overrides",
    [
        ["flow.sde=cps"],
        ["train.off_policy.importance=none", "train.max_staleness=0", "train.grpo.clip_low=0.1"],
        ["train.off_policy.importance=sequence", "train.max_staleness=0"],
        ["train.off_policy.importance=none", "train.grpo.loss=cispo", "train.grpo.dual_clip=3"],
        ["train.off_policy.importance=none", "train.off_policy.max_ratio=4"],
        [*RWR, "train.regression.num_levels=4"],
        [*RWR, "train.grpo.clip_low=0.1"],
        ["train.objective=best_of_n", "train.regression.max_weight=4"],
        ["train.objective=best_of_n", "train.advantage=dr_grpo"],
        ["policy.family=flow", *FLOW_DPO, "train.max_advantage=2"],
        ["policy.family=flow", *CFM_RATIO, "train.max_staleness=0", "train.fpo.clip_range=0.1"],
        ["learner.engine=torch", "learner.zero_stage=2"],
        ["reward.address=serve://x", "reward.num_replicas=2"],
        ["models.adapter=runs/first/policy", "lora.rank=4"],
    ],
)
def test_settings_that_contradict_each_other_are_refused(overrides):
    with pytest.raises(ValueError, match="is read only with"):
        resolved("doom_tiny_ar", overrides)


@pytest.mark.parametrize("override", ["flow.sde=cps", "train.grpo.clip_low=0.1", "train.off_policy.importance=none"])
@pytest.mark.parametrize("others", [NFT, CFM_RATIO, FLOW_DPO, [*RWR, "flow.shared_noise=false"]])
def test_settings_of_another_objective_are_refused_with_one_on_clean_latents(override, others):
    key = override.partition("=")[0]
    with pytest.raises(ValueError, match=f"{key} is read only with train.objective=grpo"):
        resolved("doom_tiny_flow", [override, *others])


def test_what_the_recipe_says_besides_may_stay_unread():
    # It has a window of exploring steps, which DiffusionNFT does not use.
    resolved("doom_tiny_flow", NFT)


@pytest.mark.parametrize("override", ["rule=joint", "axis=smooth", "match=exact"])
def test_settings_of_the_inverse_reward_are_refused_with_another(override):
    own = ["reward.name=docs.examples.reward:Brightness", "models.reward_idm="]
    with pytest.raises(ValueError, match=f"reward.{override.split('=')[0]} is read only with reward.name=inverse"):
        resolved("doom_tiny_ar", [*own, f"reward.{override}"])


def test_the_table_names_keys():
    for condition in CONDITIONS:
        for start in condition.keys:
            assert any(key.startswith(start) for key in keys())


@pytest.mark.parametrize("key", ["path", "heldout_path"])
def test_recordings_without_their_source_are_refused(key):
    with pytest.raises(ValueError, match=rf"prompts\.{key} must be empty with prompts\.source=doom, got 'clips'; set"):
        load_config("doom_tiny_ar", [f"prompts.{key}=clips"])
    with pytest.raises(ValueError, match=r"prompts\.path must be empty with prompts\.source=doom"):
        load_config("mineworld_300m", ["prompts.source=doom"])
    load_config("mineworld_300m", ["prompts.source=doom", "prompts.path=", "prompts.heldout_path="])
