"""Objectives: the loss of a micro-batch, and the policy whose weights the samplers get after a step.

Legend: B trajectories, T decisions, F generated frames, S noise levels, N numbers of a latent.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rlir_ray.algorithm.flow_steps import interpolate
from rlir_ray.algorithm.losses import (
    entropy_bonus,
    guarded_log_ratio,
    kl_loss,
    mean_kl_loss,
    nft_errors,
    noise_weights,
    optimality,
    plain_log_ratio,
    ratio_metrics,
)
from rlir_ray.algorithm.off_policy import decoupled_loss
from rlir_ray.algorithm.surrogates import (
    CappedWeight,
    Clipped,
    Decisions,
    SequenceClipped,
    Surrogate,
    surrogate_loss,
)
from rlir_ray.config import Config, GrpoConfig, TrainConfig
from rlir_ray.learner.state import State
from rlir_ray.models.flow_matcher import draw_pairs
from rlir_ray.models.rescoring import Forward, Rescore, Scores, stream_velocities
from rlir_ray.trajectory import FlowRecord, TokenRecord
from rlir_ray.transfer.weights import Weights, load_weights, weights_of

Metrics = dict[str, Tensor]
Gathered = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Columns:
    """A micro-batch on the learner's device."""

    record: TokenRecord[Tensor] | FlowRecord[Tensor]
    """The columns to rescore, B rows."""
    behavior_logprobs: Tensor | None
    """[B, T]."""
    loss_mask: Tensor
    """bool [B, T]."""
    advantages: Tensor
    """[B, T]."""
    seeds: list[int]
    """[B], seeds for an objective's draws; they depend on the trajectory and the step, not on the rank."""
    num_trajectories: int
    """Trajectories of the whole update with decisions that train, over all micro-batches and ranks."""
    proximal_logprobs: Tensor | None = None
    """[B, T], under the weights at the start of the step; None: as under the weights of this update."""
    term_advantages: Tensor | None = None
    """[K, B, T], weighted advantages of each term of the reward, whose losses are summed; None: one loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveParts:
    """What an objective is made of."""

    config: Config
    policy: nn.Module
    """The module that trains."""
    rescore: Rescore
    """Of the policy's family."""
    reference: Forward | None
    """The forward pass of the frozen reference; None where `train.needs_reference` is false."""


class Objective(Protocol):
    """A member of the axis `objectives`: its class is built by `from_parts(parts, **train.objective_args)`."""

    @classmethod
    def from_parts(cls, parts: ObjectiveParts) -> Objective:
        """The objective of a run."""

    def loss(self, forward: Forward, columns: Columns, num_decisions: int) -> tuple[Tensor, Metrics]:
        """Return a scalar to sum over micro-batches and ranks, and its metrics; `forward` carries the gradient."""

    def end_step(self, step: int, gathered: Gathered) -> None:
        """Act after the update of a step, counted from 1; in `gathered()` trained parameters are whole on each rank."""

    @property
    def sampling_policy(self) -> nn.Module:
        """The module whose weights the samplers get."""

    def state(self) -> Weights:
        """Return the objective's own state between steps, without the trained policy."""

    def load_state(self, state: State) -> None:
        """Load the state of another objective of the same kind; raise ValueError if it does not fit."""


@runtime_checkable
class DecoupledObjective(Protocol):
    """An objective that compares the policy with the policy at the start of the step."""

    def proximal_logprobs(self, forward: Forward, columns: Columns) -> Tensor | None:
        """Score the decisions before the first of several updates, [B, T], without gradient; None: not needed."""


class Stateless:
    """Base of objectives that remember nothing between steps and sample with the trained policy.

    Args:
        policy: the module that trains.
        train: the objective's settings.
        reference: the forward pass of the frozen reference; None: no KL penalty.
    """

    def __init__(self, policy: nn.Module, train: TrainConfig, reference: Forward | None = None) -> None:
        self.sampling_policy, self.train, self.reference = policy, train, reference

    def end_step(self, step: int, gathered: Gathered) -> None:
        pass

    def state(self) -> Weights:
        return {}

    def load_state(self, state: State) -> None:
        if state:
            rule = f"train.objective={self.train.objective} remembers nothing"
            raise ValueError(f"{rule}, got {sorted(state)[0]!r}; use the run's own")


class PolicyGradient(Stateless):
    """GRPO and its variants: a surrogate over decisions, with a KL penalty towards the reference.

    Args:
        policy: the module that trains.
        rescore: rescoring of the policy's family.
        train: ratio, clipping and penalty.
        reference: the forward pass of the frozen reference; None when `kl_coefficient` is 0.
    """

    def __init__(
        self, policy: nn.Module, rescore: Rescore, train: TrainConfig, reference: Forward | None = None
    ) -> None:
        if (train.kl_coefficient > 0) != (reference is not None):
            raise ValueError(
                f"a reference policy goes with train.kl_coefficient > 0, got {train.kl_coefficient} and "
                f"{'no ' if reference is None else 'a '}reference; give both or neither"
            )
        super().__init__(policy, train, reference)
        self.rescore = rescore
        self.surrogate = SURROGATES[train.grpo.loss](train.grpo)

    @classmethod
    def from_parts(cls, parts: ObjectiveParts) -> PolicyGradient:
        # What `auto` means depends on the family: a flow log-probability is a mean over a latent's numbers, so that its
        # ratio is no importance weight.
        train, level = parts.config.train, parts.config.importance_level
        train = replace(train, off_policy=replace(train.off_policy, importance=level))  # type: ignore[arg-type]  # a choice
        return cls(parts.policy, parts.rescore, train, parts.reference)

    def loss(self, forward: Forward, columns: Columns, num_decisions: int) -> tuple[Tensor, Metrics]:
        mask = columns.loss_mask
        scores = self.rescore(forward, columns.record, mask.shape[1])
        if columns.term_advantages is None:
            loss, metrics = self._policy_loss(scores, columns, num_decisions)
        else:
            # DanceGRPO (https://arxiv.org/abs/2505.07818) clips the loss of each reward alone.
            terms = [replace(columns, advantages=each) for each in columns.term_advantages]
            losses, found = zip(*(self._policy_loss(scores, each, num_decisions) for each in terms), strict=True)
            loss, metrics = torch.stack(losses).sum(), _of_all_terms(found)
        if isinstance(columns.record, TokenRecord):
            bonus, more = entropy_bonus(scores.logprobs, mask, num_decisions)
            loss, metrics = loss - self.train.entropy_coefficient * bonus, metrics | more
        if self.reference is None:
            return loss, metrics
        with torch.no_grad():
            ref = self.rescore(self.reference, columns.record, mask.shape[1])
        penalty, more = _divergence(scores, ref, mask, num_decisions, self.train.kl_estimator)
        return loss + self.train.kl_coefficient * penalty, metrics | more

    def _policy_loss(self, scores: Scores, columns: Columns, num_decisions: int) -> tuple[Tensor, Metrics]:
        mask, off_policy = columns.loss_mask, self.train.off_policy
        log_ratio, advantages = RATIOS[self.train.grpo.ratio](scores, columns)
        if self.train.grpo.step_weights == "noise" and scores.stds is not None:
            advantages = advantages * noise_weights(scores.stds)
        decisions = Decisions(
            log_ratio=log_ratio,
            logprobs=scores.logprobs,
            advantages=advantages,
            loss_mask=mask,
            num_decisions=num_decisions,
            num_trajectories=columns.num_trajectories,
        )
        if (level := self.train.importance_level) == "none":
            loss, metrics = surrogate_loss(self.surrogate, decisions)
        else:
            loss, metrics = decoupled_loss(
                self.surrogate,
                decisions,
                _proximal_log_ratio(log_ratio.detach(), columns),
                level=level,
                max_weight=off_policy.max_weight,
                min_ratio=off_policy.min_ratio,
                max_ratio=off_policy.max_ratio,
            )
        metrics |= ratio_metrics(log_ratio.detach(), mask)
        if not self.train.has_clip(level):
            # The ratio is always 1: a clip fraction would be meaningless.
            del metrics["ratio/clip_fraction"]
        return loss, metrics

    @torch.no_grad()
    def proximal_logprobs(self, forward: Forward, columns: Columns) -> Tensor | None:
        # Without importance weights the clip acts around the behavior policy.
        if self.train.importance_level == "none":
            return None
        return self.rescore(forward, columns.record, columns.loss_mask.shape[1]).logprobs


def _of_all_terms(found: Sequence[Metrics]) -> Metrics:
    """Return the metrics of summed losses: the sum of the losses, the mean over the terms of everything else."""
    metrics = {name: torch.stack([each[name] for each in found]).mean(0) for name in found[0]}
    return metrics | {"loss/policy": torch.stack([each["loss/policy"] for each in found]).sum(0)}


def _proximal_log_ratio(log_ratio: Tensor, columns: Columns) -> Tensor:
    """Return proximal over behavior; in a step of one update the proximal policy is the current one."""
    if columns.proximal_logprobs is None:
        return log_ratio
    assert columns.behavior_logprobs is not None
    return plain_log_ratio(columns.proximal_logprobs, columns.behavior_logprobs)


def _divergence(
    scores: Scores, ref: Scores, mask: Tensor, num_decisions: int, estimator: str
) -> tuple[Tensor, Metrics]:
    """Compute the KL to the reference: exact for SDE steps, an estimate for tokens."""
    if scores.means is None or ref.means is None or scores.stds is None:
        return kl_loss(scores.logprobs, ref.logprobs, mask, num_decisions, estimator)
    return mean_kl_loss(scores.means, ref.means, scores.stds, mask, num_decisions)


def _plain(scores: Scores, columns: Columns) -> tuple[Tensor, Tensor]:
    assert columns.behavior_logprobs is not None
    return plain_log_ratio(scores.logprobs, columns.behavior_logprobs), columns.advantages


def _guard(scores: Scores, columns: Columns) -> tuple[Tensor, Tensor]:
    """Return GRPO-Guard's log-ratio, and advantages divided by each step's length (https://arxiv.org/abs/2510.22319)."""
    assert isinstance(columns.record, FlowRecord) and columns.record.means is not None
    assert scores.means is not None and scores.stds is not None and scores.gaps is not None
    assert columns.behavior_logprobs is not None
    behavior_means = columns.record.means.flatten(1, 2).flatten(2)
    ratio = guarded_log_ratio(scores.logprobs, columns.behavior_logprobs, scores.means, behavior_means, scores.stds)
    return ratio, columns.advantages / scores.gaps


RATIOS: dict[str, Callable[[Scores, Columns], tuple[Tensor, Tensor]]] = {"plain": _plain, "guard": _guard}
"""train.grpo.ratio -> function that returns the log-ratio [B, T] and the advantages [B, T] for the loss."""


SURROGATES: dict[str, Callable[[GrpoConfig], Surrogate]] = {
    "clip": lambda grpo: Clipped(grpo.clip_low, grpo.clip_high, grpo.dual_clip),
    "gspo": lambda grpo: SequenceClipped(grpo.gspo_clip_low, grpo.gspo_clip_high),
    "cispo": lambda grpo: CappedWeight(grpo.cispo_clip_high),
}
"""train.grpo.loss -> function that makes the surrogate."""


class DiffusionNFT:
    """DiffusionNFT (https://arxiv.org/abs/2509.16117): no SDE, no stored log-probabilities.

    The objective adds noise to clean clips at the sampler's levels. It trains the policy towards the prediction of good
    clips and away from the prediction of bad clips. The samplers hold a moving average of the policy. The implicit
    policies are built around the newest average, also for stale groups.

    Args:
        policy: the module that trains, a `FlowWorldModel`.
        levels: [K], levels of the sampler's steps, all above 0.
        train: beta, levels a frame, decay, bound of the advantages and penalty.
        reference: the forward pass of the frozen reference; None when `kl_coefficient` is 0.
    """

    def __init__(self, policy: nn.Module, levels: Tensor, train: TrainConfig, reference: Forward | None = None) -> None:
        self.policy, self.levels, self.train, self.reference = policy, levels, train, reference
        # Any: a policy of the flow family has it.
        self.span: Any = policy.span
        self.sampling_policy = copy.deepcopy(policy).requires_grad_(False).eval()

    @classmethod
    def from_parts(cls, parts: ObjectiveParts) -> DiffusionNFT:
        flow = parts.config.flow
        # Any: a policy of the flow family has this method.
        policy: Any = parts.policy
        return cls(policy, policy.sampling_levels(flow.num_steps, flow.shift)[:-1], parts.config.train, parts.reference)

    def loss(self, forward: Forward, columns: Columns, num_decisions: int) -> tuple[Tensor, Metrics]:
        record = columns.record
        assert isinstance(record, FlowRecord)
        clean = record.latents[:, :, -1:]  # [B, F, 1, D, h, w]
        levels, noise = self._draw(columns.seeds, clean)  # [B, F, S], [B, F, S, D, h, w]
        noisy = interpolate(clean, noise, levels)

        def velocities_under(policy: Forward) -> Tensor:
            return stream_velocities(policy, record, noisy, levels, self.span).flatten(3)  # [B, F, S, N]

        velocities = velocities_under(forward)
        with torch.no_grad():
            old = velocities_under(self.sampling_policy)
        mask, most = columns.loss_mask, self.train.max_advantage  # [B, F]
        good = optimality(columns.advantages, most)[..., None].expand_as(levels)
        errors = nft_errors(
            velocities, old, noisy.flatten(3), levels, clean.expand_as(noisy).flatten(3), good, self.train.nft.beta
        )  # [B, F, S]
        loss = most * _masked_mean(errors, mask, num_decisions)
        drift = (velocities.detach() - old).square().mean(-1)
        metrics = {
            "loss/policy": loss.detach() * num_decisions,
            "decisions": mask.sum().float(),
            "nft/drift": _masked_mean(drift, mask, num_decisions) * num_decisions,
        }
        if self.reference is None:
            return loss, metrics
        with torch.no_grad():
            ref = velocities_under(self.reference)
        penalty = _masked_mean((velocities - ref).square().mean(-1), mask, num_decisions)
        return loss + self.train.kl_coefficient * penalty, metrics | {"loss/kl": penalty.detach() * num_decisions}

    def _draw(self, seeds: list[int], clean: Tensor) -> tuple[Tensor, Tensor]:
        """Draw levels and noise of each trajectory's frames from the trajectory's seed."""
        return draw_pairs(seeds, clean, self.levels, self.train.nft.num_levels)

    def end_step(self, step: int, gathered: Gathered) -> None:
        """Move the sampling policy towards the policy, faster in early steps (the authors' first schedule)."""
        decay = min(0.001 * step, self.train.nft.max_decay)
        with gathered():
            move_towards(self.sampling_policy, self.policy, 1 - decay)

    def state(self) -> Weights:
        return weights_of(self.sampling_policy)

    def load_state(self, state: State) -> None:
        load_weights(self.sampling_policy, state)


@torch.no_grad()
def move_towards(follower: nn.Module, policy: nn.Module, share: float) -> None:
    """Move a copy of the policy towards its trained parameters, which must be whole.

    Args:
        follower: a module of the policy's class.
        policy: the module that trains.
        share: share of the policy in the moved copy, in [0, 1].
    """
    for old, new in zip(follower.parameters(), policy.parameters(), strict=True):
        if new.requires_grad:
            old.lerp_(new.to(old.dtype), share)


def _masked_mean(values: Tensor, mask: Tensor, num_decisions: int) -> Tensor:
    """Average [B, F, S] over levels, sum over the frames in `mask` [B, F], and divide by the global count."""
    return torch.where(mask, values.mean(-1), 0.0).sum() / num_decisions
