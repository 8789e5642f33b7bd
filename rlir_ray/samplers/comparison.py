"""Comparison of a sampler's log-probabilities with the learner's model on the same decisions.

Every engine is a second implementation of the model. Therefore each engine compares one clip a call: a disagreement
would bias every ratio.
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
    """Compare one trajectory of a group; its row changes with the group's number, so that all rows are covered.

    Args:
        policy: holds the weights that sampled.
        rescore: the learner's rescoring of this policy.
        group: the sampled group.

    Returns:
        None: the group has no log-probabilities.
    """
    if group.behavior_logprobs is None:
        return None
    row, device = group.group_id % group.group_size, next(policy.parameters()).device
    # Any: the columns of the family's own record.
    clip: dict[str, Any] = {
        entry.name: torch.from_numpy(column[row : row + 1].copy()).to(device)
        for entry in fields(group.record)
        if (column := getattr(group.record, entry.name)) is not None
    }
    behavior = torch.from_numpy(group.behavior_logprobs[row : row + 1].copy()).to(device)  # [1, T]
    scores = rescore(policy, replace(group.record, **clip), behavior.shape[1])
    apart = (scores.logprobs - behavior).abs()
    return LogprobDifference(mean=float(apart.mean()), maximum=float(apart.max()))
