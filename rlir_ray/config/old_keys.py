"""Keys of earlier versions: what became of them."""

from __future__ import annotations

import copy
import logging
from typing import Any

# Keys that have another name now, with the same values. Who types one gets a line with the new name.
MOVED = {
    "vllm.max_logprob_difference": "rollout.max_logprob_difference",
    "reward.camera": "reward.axis",
    "reward.camera_tolerance": "reward.axis_tolerance",
    "train.ratio": "train.grpo.ratio",
    "train.clip_low": "train.grpo.clip_low",
    "train.clip_high": "train.grpo.clip_high",
    "train.nft_beta": "train.nft.beta",
    "train.nft_levels": "train.nft.num_levels",
    "train.nft_decay": "train.nft.max_decay",
    "train.importance": "train.off_policy.importance",
    "train.max_importance": "train.off_policy.max_weight",
    "train.min_ratio": "train.off_policy.min_ratio",
    "train.max_ratio": "train.off_policy.max_ratio",
}
# Keys that have no effect: recipes and configurations of old runs that set them still work.
DROPPED = {"reward.backend": "the reward pool always uses Ray Serve"}

logger = logging.getLogger(__name__)


def tell_dropped(name: str, value: Any, way_out: str = "leave it out") -> None:
    """Say in one line why a key of `DROPPED` is gone."""
    logger.warning("%s=%s is not read any more: %s; %s", name, value, DROPPED[name], way_out)


def upgraded(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a run saved, under today's keys if an earlier version saved them."""
    settings = copy.deepcopy(settings)
    for old, new in MOVED.items():
        section, _, name = old.partition(".")
        if name in _section(settings, section):
            _set(settings, new, settings[section].pop(name))
    rollout = _section(settings, "rollout")
    if "policy" not in settings and "engine" in rollout:
        # rollout.engine=flow named a family.
        is_flow = rollout["engine"] == "flow"
        _set(settings, "policy.family", "flow" if is_flow else "autoregressive")
        rollout["engine"] = "torch" if is_flow else rollout["engine"]
    return settings


def _section(settings: dict[str, Any], name: str) -> dict[str, Any]:
    section = settings.get(name)
    return section if isinstance(section, dict) else {}


def _set(settings: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
    settings[name] = value
