"""Which rewards are the same."""

import shutil
from dataclasses import replace

import pytest

from rlir_ray.config import PolicyConfig, asset_path
from rlir_ray.config.load import load_config
from rlir_ray.rewards.fingerprint import check_fingerprint, reward_fingerprint


def fingerprint(*overrides: str) -> dict[str, str]:
    return reward_fingerprint(load_config("doom_tiny_ar", list(overrides)))


def test_what_changes_no_score_is_no_difference(tmp_path):
    copied = shutil.copytree(asset_path("asset:doom/reward_idm"), tmp_path / "elsewhere")
    (copied / "training.json").write_text("{}")
    others = fingerprint(
        f"models.reward_idm={copied}",
        "seed=3",
        "reward.num_replicas=4",
        "reward.credit=clip",
        "world.num_frames=4",
        "reward.axis_tolerance=2",
        "reward.axis_tolerance_in=unit",
        "reward.axis_scale=0.3",
    )
    check_fingerprint(fingerprint(), others, "serve://x")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reward.match=exact", "reward.match exact there and soft here"),
        ("world.groups=[jump,yaw]", "world.groups jump,yaw there and forward_back,use_attack,jump,yaw here"),
        ("models.reward_idm=asset:doom/judge_idm", "models.reward_idm [0-9a-f]{16} there and [0-9a-f]{16} here"),
        ("reward.axis=within", "reward.axis within there and exact here"),
    ],
)
def test_another_reward_is_refused_with_the_key_and_both_values(override, message):
    with pytest.raises(ValueError, match=f"^reward.address=serve://x must give the run's reward, got {message}") as no:
        check_fingerprint(fingerprint(), fingerprint(override), "serve://x")
    assert "\n" not in str(no.value)


def test_settings_of_the_comparison_in_use_make_another_reward():
    for kind, override in (
        ("within", "reward.axis_tolerance=2"),
        ("within", "reward.axis_tolerance_in=unit"),
        ("smooth", "reward.axis_scale=0.3"),
    ):
        one, other = fingerprint(f"reward.axis={kind}"), fingerprint(f"reward.axis={kind}", override)
        with pytest.raises(ValueError, match=r"must give the run's reward, got reward\.axis_"):
            check_fingerprint(one, other, "serve://x")


def test_another_family_of_codes_is_another_reward():
    config = load_config("doom_tiny_ar")
    flow = reward_fingerprint(replace(config, policy=PolicyConfig(family="flow")))
    assert flow["policy.family"] != reward_fingerprint(config)["policy.family"]
