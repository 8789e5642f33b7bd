"""Base of the samplers: the policy, loading of weights, and comparison of log-probabilities with the learner's model.

Every engine is a second implementation of the model. Therefore each engine rescores one clip a call with the learner's
model: a disagreement would bias every ratio.
Legend: G trajectories of a group, T decisions.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from rlir_ray.models.rescoring import Rescore
from rlir_ray.samplers import LogprobDifference
from rlir_ray.trajectory import Record, TrajectoryGroup
from rlir_ray.transfer.weights import Received, load_weights

Policy = TypeVar("Policy", bound=nn.Module)


class PolicySampler(Generic[Policy]):
    """Base of samplers that hold the policy as a torch module beside their engine.

    Args:
        policy: the sampler keeps this module and loads published weights into it.
        rescore: the learner's rescoring of this policy.
        compares: compare the first group of each call with the policy.
    """

    def __init__(self, policy: Policy, rescore: Rescore, compares: bool) -> None:
        self.policy, self.rescore, self.compares = policy, rescore, compares
        self.policy_version = 0
        self.difference: LogprobDifference | None = None

    def load_weights(self, weights: Received, version: int, published: str = "") -> None:
        """Load the weights of a version, and verify their checksum if given.

        Raises:
            ValueError: a name, a shape or the checksum differs; the sampler keeps the previous version.
        """
        before = load_weights(self.policy, weights, published)
        try:
            self._update_engine(version)
        except BaseException:
            load_weights(self.policy, before)
            self._update_engine(self.policy_version)
            raise
        self.policy_version = version

    def _update_engine(self, version: int) -> None:
        """Give the engine the policy's weights; by default the engine computes with the policy itself."""

    def _compare(self, group: TrajectoryGroup) -> None:
        """Store the difference for one trajectory of a group, if this sampler compares."""
        if self.compares:
            self.difference = compare(self.policy, self.rescore, group)


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
    behavior = torch.from_numpy(group.behavior_logprobs[row : row + 1].copy()).to(device)  # [1, T]
    scores = rescore(policy, clip_of(group.record, row, device), behavior.shape[1])
    apart = (scores.logprobs - behavior).abs()
    return LogprobDifference(mean=float(apart.mean()), maximum=float(apart.max()))


def clip_of(record: Record, row: int, device: torch.device) -> Record:
    """Return one clip of a record as a record of tensors on a device."""
    # Any: a tensor for each column of the record's own class.
    clip: dict[str, Any] = {
        entry.name: torch.from_numpy(column[row : row + 1].copy()).to(device)
        for entry in fields(record)
        if (column := getattr(record, entry.name)) is not None
    }
    return replace(record, **clip)
