"""How far a sampler's log-probabilities are from those that the learner's model gives the same decisions.

Every engine is a second implementation of the model, so each compares one clip a call. Knows no engine.
Legend: G trajectories of a group, T decisions.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn

from rlir_ray.models.rescoring import Rescore
from rlir_ray.samplers import LogprobDifference
from rlir_ray.trajectory import TrajectoryGroup


@torch.inference_mode()
def compare(policy: nn.Module, rescore: Rescore, group: TrajectoryGroup) -> LogprobDifference | None:
    """Over one trajectory of a group, another one from group to group.

    Args:
        policy: with the weights that sampled.
        rescore: as the learner does for this policy.
        group: what was sampled.

    Returns:
        None: the group has no log-probabilities.
    """
    if group.behavior_logprobs is None:
        return None
    row, device = group.group_id % group.group_size, next(policy.parameters()).device
    clip: dict[str, Any] = {
        entry.name: torch.from_numpy(column[row : row + 1].copy()).to(device)
        for entry in fields(group.record)
        if (column := getattr(group.record, entry.name)) is not None
    }
    behavior = torch.from_numpy(group.behavior_logprobs[row : row + 1].copy()).to(device)  # [1, T]
    scores = rescore(policy, replace(group.record, **clip), behavior.shape[1])
    apart = (scores.logprobs - behavior).abs()
    return LogprobDifference(mean=float(apart.mean()), maximum=float(apart.max()))
