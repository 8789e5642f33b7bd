"""An objective of one's own: REINFORCE, the log-probability of each decision weighed by its advantage."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlir_ray.learner.objectives import Columns, Gathered, Metrics, ObjectiveParts
from rlir_ray.learner.state import State
from rlir_ray.models.rescoring import Forward, Rescore
from rlir_ray.transfer.weights import Weights


class Reinforce:
    def __init__(self, policy: nn.Module, rescore: Rescore, scale: float) -> None:
        self.sampling_policy, self.rescore, self.scale = policy, rescore, scale

    @classmethod
    def from_parts(cls, parts: ObjectiveParts, scale: float = 1.0) -> Reinforce:
        """Called in each learner rank; `scale` comes from train.objective_args."""
        return cls(parts.policy, parts.rescore, scale)

    def loss(self, forward: Forward, columns: Columns, num_decisions: int) -> tuple[Tensor, Metrics]:
        mask = columns.loss_mask  # [B, T]
        logprobs = self.rescore(forward, columns.record, mask.shape[1]).logprobs
        gains = torch.where(mask, columns.advantages * logprobs, 0.0).sum()
        # The step's count, not the micro-batch's: accumulation and ranks change no gradient.
        loss = -self.scale * gains / num_decisions
        # Metrics are sums over decisions; the learner divides them by `decisions`.
        return loss, {"loss/policy": -self.scale * gains.detach(), "decisions": mask.sum().float()}

    def end_step(self, step: int, gathered: Gathered) -> None:
        """Nothing moves after an update."""

    def state(self) -> Weights:
        return {}

    def load_state(self, state: State) -> None:
        if state:
            raise ValueError(f"Reinforce keeps no state, got {sorted(state)[0]!r}; use the run's own objective")
