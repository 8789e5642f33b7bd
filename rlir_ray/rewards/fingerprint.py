"""The fingerprint of a reward: two rewards with the same fingerprint give the same scores."""

from __future__ import annotations

from collections.abc import Mapping

from rlir_ray.config import Config, asset_path
from rlir_ray.data.content import checkpoint_content


def reward_fingerprint(config: Config) -> dict[str, str]:
    """Collect every configuration key on which the scores of an encoded video depend, with its value.

    Checkpoints are named by their content: the same ones may lie elsewhere on another machine.
    """
    world, reward = config.world, config.reward
    return {
        "policy.family": config.policy.family,
        "world.height": str(world.height),
        "world.width": str(world.width),
        "world.groups": ",".join(world.groups),
        "reward.rule": reward.rule,
        "reward.camera": reward.camera,
        "reward.camera_tolerance": str(reward.camera_tolerance if reward.camera == "within" else 0),
        "reward.match": reward.match,
        "reward.balance": reward.balance,
        "models.tokenizer": checkpoint_content(asset_path(config.models.tokenizer)),
        "models.reward_idm": checkpoint_content(asset_path(config.models.reward_idm)),
    }


def check_fingerprint(wanted: Mapping[str, str], served: Mapping[str, str], address: str) -> None:
    """Check that a service gives the scores that a run wants.

    Args:
        wanted, served: `reward_fingerprint` of the run's and of the service's configuration.
        address: the service's, for the error.

    Raises:
        ValueError: names the first key that differs, and both values.
    """
    for key, value in wanted.items():
        if served.get(key) != value:
            raise ValueError(
                f"reward.address={address} must give the run's reward, got {key} {served.get(key)} there and {value} "
                "here; choose the service's recipe or deploy one with yours"
            )
