"""Objectives that train on sampled clips as on recorded ones, with more weight on the better clips.

A flow policy's error is its flow-matching error, a token policy's the cross entropy, -log p of the clip's tokens at the
sampling temperature. Legend: B trajectories, T decisions, S levels of each (1 for tokens).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlir_ray.algorithm.flow_losses import masked_mean, reward_weights
from rlir_ray.algorithm.losses import kl_loss
from rlir_ray.config import TrainConfig
from rlir_ray.learner.flow_objectives import velocity_distance
from rlir_ray.learner.objectives import Columns, Metrics, ObjectiveParts, Stateless
from rlir_ray.models.flow_matcher import FlowMatcher
from rlir_ray.models.rescoring import Forward, Rescore, Scores
from rlir_ray.trajectory import FlowRecord


class BestOfN(Stateless):
    """Supervised training on the clips that a step chose: the best of each group, whatever its advantage.

    Args:
        policy, train, reference: as of `Stateless`.
        rescore: scores a token policy's decisions.
        matcher: scores a flow policy's clean clips; None for tokens.
    """

    def __init__(
        self,
        policy: nn.Module,
        rescore: Rescore,
        matcher: FlowMatcher | None,
        train: TrainConfig,
        reference: Forward | None = None,
    ) -> None:
        super().__init__(policy, train, reference)
        self.rescore, self.matcher = rescore, matcher

    @classmethod
    def from_parts(cls, parts: ObjectiveParts) -> BestOfN:
        config, matcher = parts.config, None
        if config.policy.family == "flow":
            matcher = FlowMatcher.of(parts.policy, config.flow, config.train.regression.num_levels)
        return cls(parts.policy, parts.rescore, matcher, config.train, parts.reference)

    def loss(self, forward: Forward, columns: Columns, num_decisions: int) -> tuple[Tensor, Metrics]:
        scores = self._scores(forward, columns)
        num_levels = scores.logprobs.shape[1] // columns.loss_mask.shape[1]
        mask = columns.loss_mask.repeat_interleave(num_levels, 1)  # [B, T * S]
        weights, metrics = self._weights(columns)
        errors = -scores.logprobs.float()
        loss = masked_mean(weights.repeat_interleave(num_levels, 1) * errors, mask, num_decisions * num_levels)
        metrics |= {
            "loss/policy": loss.detach() * num_decisions,
            "decisions": columns.loss_mask.sum().float(),
            "matching/error": masked_mean(errors.detach(), mask, num_levels),
        }
        if self.reference is None:
            return loss, metrics
        with torch.no_grad():
            ref = self._scores(self.reference, columns)
        if scores.means is None:
            penalty, _ = kl_loss(scores.logprobs, ref.logprobs, mask, num_decisions)
        else:
            penalty = velocity_distance(scores, ref, mask, num_decisions * num_levels)
        metrics["loss/kl"] = penalty.detach() * num_decisions
        return loss + self.train.kl_coefficient * penalty, metrics

    def _scores(self, forward: Forward, columns: Columns) -> Scores:
        """Score the decisions, of a flow policy at S levels each: log-probabilities [B, T * S]."""
        if self.matcher is None:
            return self.rescore(forward, columns.record, columns.loss_mask.shape[1])
        assert isinstance(columns.record, FlowRecord)
        return self.matcher.scores(forward, columns.record, columns.seeds)

    def _weights(self, columns: Columns) -> tuple[Tensor, Metrics]:
        """Return the weights of the decisions [B, T] and their metrics."""
        return torch.ones_like(columns.advantages), {}


class RewardWeighted(BestOfN):
    """Reward-weighted regression: every clip trains, with the weight exp(advantage / temperature)."""

    def _weights(self, columns: Columns) -> tuple[Tensor, Metrics]:
        settings, mask = self.train.regression, columns.loss_mask
        weights = reward_weights(columns.advantages, settings.temperature, settings.max_weight)
        is_truncated = weights >= settings.max_weight * (1 - 1e-6)
        return weights, {
            "rwr/weight": masked_mean(weights, mask, 1),
            "rwr/truncated": (is_truncated & mask).sum().float(),
        }
