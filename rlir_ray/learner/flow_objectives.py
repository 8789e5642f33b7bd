"""Objectives that need the clean latents of sampled clips only.

Legend: B trajectories, F generated frames, S pairs of a level and a noise for each frame, T = F * S decisions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlir_ray.algorithm.flow_losses import cfm_log_ratio, dpo_loss, masked_mean
from rlir_ray.algorithm.losses import plain_log_ratio, ratio_metrics
from rlir_ray.algorithm.surrogates import Clipped, Decisions, surrogate_loss
from rlir_ray.config import TrainConfig
from rlir_ray.learner.objectives import Columns, Metrics, ObjectiveParts, Stateless
from rlir_ray.models.flow_matcher import FlowMatcher
from rlir_ray.models.rescoring import Forward, Rescore, Scores
from rlir_ray.trajectory import FlowRecord


class CfmRatio(Stateless):
    """FPO (https://arxiv.org/abs/2507.21053): the clipped surrogate of ratios of flow-matching errors.

    The sampler draws S pairs of a level and a noise for each frame from the trajectory's seed, and stores the errors of
    its weights there. The learner draws the same pairs again. So the ratio is relative to the policy that sampled: it
    is 1 at the first update of fresh groups, and right for stale ones, whatever versions lie between. Each pair is a
    decision; a frame's pairs have the frame's advantage.

    A bad clip's error is pushed up, without a bound but for the clip: use small learning rates, or a KL penalty, which
    is the squared distance of the velocities.

    Args:
        policy, train, reference: as of `Stateless`.
        rescore: scores the pairs of a record.
    """

    def __init__(
        self, policy: nn.Module, rescore: Rescore, train: TrainConfig, reference: Forward | None = None
    ) -> None:
        super().__init__(policy, train, reference)
        self.rescore = rescore

    @classmethod
    def from_parts(cls, parts: ObjectiveParts) -> CfmRatio:
        return cls(parts.policy, parts.rescore, parts.config.train, parts.reference)

    def loss(self, forward: Forward, columns: Columns, num_decisions: int) -> tuple[Tensor, Metrics]:
        mask, fpo = columns.loss_mask, self.train.fpo
        assert columns.behavior_logprobs is not None
        scores = self.rescore(forward, columns.record, mask.shape[1])
        differences = plain_log_ratio(scores.logprobs, columns.behavior_logprobs)  # old error - new error
        log_ratio = cfm_log_ratio(differences, mask, fpo.num_pairs, fpo.ratio, fpo.max_difference)
        decisions = Decisions(
            log_ratio=log_ratio,
            logprobs=scores.logprobs,
            advantages=columns.advantages,
            loss_mask=mask,
            num_decisions=num_decisions,
            num_trajectories=columns.num_trajectories,
        )
        loss, metrics = surrogate_loss(Clipped(fpo.clip_range, fpo.clip_range), decisions)
        metrics |= ratio_metrics(log_ratio.detach(), mask)
        if not self.train.has_clip("none"):
            # The ratio is always 1: a clip fraction would be meaningless.
            del metrics["ratio/clip_fraction"]
        metrics["matching/error"] = -masked_mean(scores.logprobs.detach(), mask, 1)
        if self.reference is None:
            return loss, metrics
        with torch.no_grad():
            ref = self.rescore(self.reference, columns.record, mask.shape[1])
        penalty = velocity_distance(scores, ref, mask, num_decisions)
        metrics["loss/kl"] = penalty.detach() * num_decisions
        return loss + self.train.kl_coefficient * penalty, metrics


class FlowDpo(Stateless):
    """Flow-DPO: the best clip of each group is preferred to the worst, relative to the frozen reference.

    A micro-batch holds pairs of neighbouring rows of one group; each frame of both has the same levels and noise. A
    clip's error is the mean over its frames that train. A pair whose clips have equal advantages is left out.

    Args:
        policy, train, reference: as of `Stateless`.
        matcher: scores clean clips.
    """

    def __init__(self, policy: nn.Module, matcher: FlowMatcher, train: TrainConfig, reference: Forward) -> None:
        super().__init__(policy, train, reference)
        self.matcher = matcher

    @classmethod
    def from_parts(cls, parts: ObjectiveParts) -> FlowDpo:
        assert parts.reference is not None, "train.needs_reference asks for it"
        config = parts.config
        matcher = FlowMatcher.of(parts.policy, config.flow, config.train.dpo.num_levels)
        return cls(parts.policy, matcher, config.train, parts.reference)

    def loss(self, forward: Forward, columns: Columns, num_decisions: int) -> tuple[Tensor, Metrics]:
        mask, advantages = columns.loss_mask, torch.where(columns.loss_mask, columns.advantages, 0.0)  # [B, F]
        assert len(mask) % 2 == 0 and self.reference is not None
        errors = self._errors(forward, columns)  # [B]
        with torch.no_grad():
            ref_errors = self._errors(self.reference, columns)
        # A pair counts as the decisions of both its clips.
        first, second = advantages.sum(1).unflatten(0, (-1, 2)).unbind(1)  # [B / 2]
        weights = mask.sum(1).unflatten(0, (-1, 2)).sum(1) * (first != second)
        gains = (errors - ref_errors).unflatten(0, (-1, 2))  # [B / 2, 2]
        winner_gains, loser_gains = torch.where((first > second)[:, None], gains, gains.flip(1)).unbind(1)
        losses, margins = dpo_loss(winner_gains, loser_gains, self.train.dpo.beta)
        loss = masked_mean(weights * losses, weights > 0, num_decisions)
        return loss, {
            "loss/policy": loss.detach() * num_decisions,
            "decisions": mask.sum().float(),
            "matching/error": (errors.detach() * mask.sum(1)).sum(),
            "dpo/margin": (weights * margins).sum(),
            "dpo/accuracy": (weights * (margins > 0)).sum().float(),
            "dpo/winner_gain": (weights * winner_gains.detach()).sum(),
        }

    def _errors(self, forward: Forward, columns: Columns) -> Tensor:
        """Return the error of each clip [B], at the same levels and noise in the clips of a pair."""
        assert isinstance(columns.record, FlowRecord)
        mask = columns.loss_mask
        seeds = [seed for seed in columns.seeds[::2] for _ in range(2)]
        errors = -self.matcher.scores(forward, columns.record, seeds).logprobs  # [B, F * S]
        frames = errors.unflatten(1, (mask.shape[1], -1)).mean(-1)
        return torch.where(mask, frames, 0.0).sum(1) / mask.sum(1).clamp(min=1)


def velocity_distance(scores: Scores, ref: Scores, mask: Tensor, num_decisions: int) -> Tensor:
    """Compute the squared distance of two policies' velocities, mean over numbers and decisions."""
    assert scores.means is not None and ref.means is not None
    return masked_mean((scores.means - ref.means).square().mean(-1), mask, num_decisions)
