"""The fingerprint of a reward: rewards with equal fingerprints give equal scores."""

from __future__ import annotations

from collections.abc import Mapping

from rlir_ray.config import Config, asset_path
from rlir_ray.data.digests import checkpoint_digest


def reward_fingerprint(config: Config) -> dict[str, str]:
    """Return every configuration key that the scores of an encoded video depend on, with its value.

    The value of a checkpoint is its content: on another machine, the same checkpoint may have another path.
    """
    world, reward = config.world, config.reward
    return {
        "policy.family": config.policy.family,
        "world.height": str(world.height),
        "world.width": str(world.width),
        "world.groups": ",".join(world.groups),
        "reward.rule": reward.rule,
        "reward.axis": reward.axis,
        "reward.axis_tolerance": f"{reward.axis_tolerance:g} {reward.axis_tolerance_in}"
        if reward.axis == "within"
        else "",
        "reward.axis_scale": f"{reward.axis_scale:g}" if reward.axis == "smooth" else "",
        "reward.match": reward.match,
        "reward.balance": reward.balance,
        "reward.schedule": "; ".join(map(str, reward.schedule)),
        "models.tokenizer": checkpoint_digest(asset_path(config.models.tokenizer)),
        "models.reward_idm": checkpoint_digest(asset_path(config.models.reward_idm)),
    }


def check_fingerprint(wanted: Mapping[str, str], served: Mapping[str, str], address: str) -> None:
    """Check that a service gives the scores of a run's own reward.

    Args:
        wanted: `reward_fingerprint` of the run's configuration.
        served: `reward_fingerprint` of the service's configuration.
        address: address of the service, for the error.

    Raises:
        ValueError: a key differs; the message names the first such key and both values.
    """
    for key, value in wanted.items():
        if served.get(key) != value:
            raise ValueError(
                f"reward.address={address} must give the run's reward, got {key} {served.get(key)} there and {value} "
                "here; choose the service's recipe or deploy one with yours"
            )
