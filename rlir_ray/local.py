"""The whole algorithm in one process, without Ray: the reference that the driver matches at `max_staleness=0`.

Each step samples groups, scores them, turns rewards into advantages, updates the policy and loads the new weights into
the sampler.
Legend: G trajectories of a group, T decisions of a trajectory, F generated frames.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rlir_ray.algorithm.advantages import GroupAdvantages, advantages_from_rewards, returns, step_advantages
from rlir_ray.algorithm.batching import minibatch_sizes
from rlir_ray.algorithm.ledger import FAILED, NO_SIGNAL, TRAINED, Failures, Ledger, SkippedUpdates, skipped_cause
from rlir_ray.algorithm.seeds import group_seed, prompt_index
from rlir_ray.algorithm.terms import term_advantages, weighted_sum
from rlir_ray.learner.batches import step_batches
from rlir_ray.rewards.classification import accuracy, balanced_accuracy, macro_f1, occurs
from rlir_ray.samplers import LogprobDifference, difference_metrics
from rlir_ray.trajectory import Prompt, RewardScores, TrajectoryGroup

if TYPE_CHECKING:
    from rlir_ray.config import Config, RewardConfig
    from rlir_ray.learner.step import Learner
    from rlir_ray.rewards.base import Reward
    from rlir_ray.samplers import Sampler

StepCallback = Callable[[int, dict[str, float]], None]

# A step gives up after sampling this many times the groups that it needs: the policy or the reward gives no signal, and
# more groups would not change that.
MAX_REFILLS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredGroup:
    """A sampled group with its scores."""

    group: TrajectoryGroup
    scores: RewardScores
    advantages: npt.NDArray[np.float32] | None
    """From `group_signal`; None: the group failed or carries no signal."""
    difference: LogprobDifference | None
    """Difference of log-probabilities between sampler and model; None: the sampler does not compare them."""


def train_local(
    config: Config,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    reward: Reward,
    learner: Learner,
    callbacks: Sequence[StepCallback] = (),
    ledger: Ledger | None = None,
) -> list[dict[str, float]]:
    """Train for `train.num_steps` steps; stop earlier after the first step that ends beyond `train.max_minutes`.

    Args:
        config: the run's configuration: seed, prompts per step, group size, credit and advantage. The other arguments
            hold their own settings.
        prompts: the training prompts.
        sampler: the sampler, which holds the learner's weights as version 0.
        reward: the reward of encoded videos.
        learner: the learner, as the only rank.
        callbacks: called after each step with the step's number, from 1, and its metrics.
        ledger: records the groups of this run; None: a new ledger.

    Returns:
        The metrics of each step.

    Raises:
        ValueError: a step finds no group with signal.
        RuntimeError: too many of the last groups failed, too many updates in a row were skipped, or the sampler's
            log-probabilities differ too much from the learner's.
    """
    ledger = ledger if ledger is not None else Ledger()
    started, history = time.monotonic(), []
    failures = Failures(config.train.max_failed_fraction)
    skipped = SkippedUpdates(config.train.max_skipped_updates)
    for step in range(1, config.train.num_steps + 1):
        step_started = time.monotonic()
        seen = step_groups(config, prompts, sampler, reward, ledger, failures)
        ready = [scored for scored in seen if scored.advantages is not None]
        check_logprobs(config, [scored.difference for scored in ready])

        learn_started = time.monotonic()
        groups = [scored.group for scored in ready]  # behavior_logprobs and loss_mask [G, T]
        advantages = normalised_advantages(
            config, [one.advantages for one in ready if one.advantages is not None]
        )  # [rows, F]
        sizes = minibatch_sizes(len(groups), config.train.num_minibatches)
        metrics = learner.step(*step_batches(groups, advantages, sizes, learner.engine))
        sampler.load_weights(learner.weights(), version=step)
        for scored in ready:
            end = (FAILED, skipped_cause(learner.skipped)) if learner.skipped else (TRAINED,)
            ledger.finish(scored.group.group_id, *end)

        metrics |= reward_metrics([each.scores for each in seen if not each.scores.failure], config.reward)
        metrics |= {f"groups/{state}": float(count) for state, count in ledger.counts().items() if state != "in_flight"}
        metrics |= {"step": float(step), "policy_version": float(step), "staleness/mean": 0.0}
        metrics |= {"time/learn_s": time.monotonic() - learn_started, "time/step_s": time.monotonic() - step_started}
        metrics |= difference_metrics([scored.difference for scored in ready])
        history.append(metrics)
        for callback in callbacks:
            callback(step, metrics)
        skipped.add(step, learner.skipped)
        if 0 < config.train.max_minutes <= (time.monotonic() - started) / 60:
            break
    return history


def step_groups(
    config: Config, prompts: Sequence[Prompt], sampler: Sampler, reward: Reward, ledger: Ledger, failures: Failures
) -> list[ScoredGroup]:
    """Sample and score the groups of one step until enough groups carry signal.

    Each pass samples the groups that are still missing, at most `rollout.prompts_per_call` at a time.

    Returns:
        All groups in the order of their numbers, also groups that failed or carry no signal.
    """
    seen: list[ScoredGroup] = []
    while missing := config.train.prompts_per_step - sum(scored.advantages is not None for scored in seen):
        num_scored = sum(not scored.scores.failure for scored in seen)
        check_signal(config, num_seen=num_scored, num_missing=missing)
        first = ledger.next_group_id
        group_ids = range(first, first + min(missing, config.rollout.prompts_per_call))
        chosen = [prompts[prompt_index(config.seed, group_id, len(prompts))] for group_id in group_ids]
        seeds = [group_seed(config.seed, group_id) for group_id in group_ids]
        for group_id, prompt in zip(group_ids, chosen, strict=True):
            ledger.admit(group_id, prompt.prompt_id)
        drawn = sampler.sample(chosen, group_ids, seeds, config.train.group_size)
        scores = reward.score([video for _, video in drawn])
        for (group, _), group_scores in zip(drawn, scores, strict=True):
            advantages = None
            if cause := group.not_finite():
                group_scores = RewardScores.failed(group.group_id, cause)
            if group_scores.failure:
                ledger.finish(group.group_id, FAILED, group_scores.failure)
            elif (advantages := group_signal(config, group_scores)) is None:
                ledger.finish(group.group_id, NO_SIGNAL)
            scored = ScoredGroup(group=group, scores=group_scores, advantages=advantages, difference=sampler.difference)
            seen.append(scored)
        for scored in seen[-len(drawn) :]:
            failures.add(scored.scores.failure)
    return seen


def group_signal(config: Config, scores: RewardScores) -> npt.NDArray[np.float32] | None:
    """Compute the advantages of one group under the configured combination, credit and normalisation.

    Returns:
        [G, F]; with reward.combine=losses the advantages of each term, [K, G, F]; None: the group carries no signal.
    """
    reward, train = config.reward, config.train
    if reward.combine == "rewards":
        return advantages_from_rewards(
            scores.frame_rewards,
            credit=reward.credit,
            discount=reward.discount,
            lookback=reward.lookback,
            kind=train.advantage,
            min_reward_std=train.min_reward_std,
        )
    by_term = term_advantages(
        list(scores.terms.values()),
        reward.by_group,
        credit=reward.credit,
        discount=reward.discount,
        lookback=reward.lookback,
        min_reward_std=train.min_reward_std,
    )
    if by_term is None or reward.combine == "losses":
        return by_term
    return weighted_sum(by_term, reward.weights)


def normalised_advantages(config: Config, groups: Sequence[npt.NDArray[np.float32]]) -> list[GroupAdvantages]:
    """Normalise, clamp and select the advantages of a step's groups, from `group_signal`, as configured."""
    train, reward = config.train, config.reward
    num_best, num_worst = train.chosen_clips
    return step_advantages(
        groups,
        kind=train.advantage,
        max_advantage=train.max_advantage,
        num_best=num_best,
        num_worst=num_worst,
        term_weights=reward.weights if reward.combine == "losses" else (),
    )


def check_signal(config: Config, num_seen: int, num_missing: int) -> None:
    """Bound the search for groups with signal.

    Args:
        config: the run's configuration.
        num_seen: number of groups that were scored for the step, with and without signal.
        num_missing: number of groups with signal that the step still lacks; 0: the search is over.

    Raises:
        ValueError: a step has seen `MAX_REFILLS` times the groups that it needs, and still lacks groups.
    """
    if num_missing > 0 and num_seen >= MAX_REFILLS * config.train.prompts_per_step:
        raise ValueError(
            f"a step needs {config.train.prompts_per_step} groups whose rewards vary, got {num_seen} groups and still "
            f"lacks {num_missing}; raise rollout.temperature (flow policies: flow.noise_level) or train.group_size, or "
            "use reward.match=soft"
        )


def check_logprobs(config: Config, found: Sequence[LogprobDifference | None]) -> None:
    """Check that the rollout engine and the learner's model agree on the log-probabilities of a step's groups.

    Raises:
        RuntimeError: the mean difference is above the bound, so that ratios would be meaningless.
    """
    rollout, vllm, family = config.rollout, config.vllm, config.policy.family
    engine = rollout.engine if family == "autoregressive" else family
    bound, mean = rollout.max_logprob_difference, difference_metrics(found).get("logprob_difference/mean", 0.0)
    if not bound or mean <= bound:
        return
    if not math.isfinite(mean):
        remedy = "the policy's outputs are not finite: give another models.policy or lower train.learning_rate"
    elif engine == "vllm":
        exact = "" if vllm.dtype == "float32" else "vllm.dtype=float32 or "
        remedy = f"set {exact}rollout.engine=torch, or raise the bound"
    elif engine == "torch":
        remedy = "sampler and transformers compute this policy differently: set rollout.engine=vllm"
    else:
        remedy = "the sampler's cache and a full pass compute this policy differently: give another models.policy"
    raise RuntimeError(
        f"log-probabilities of the engine {engine} must be within rollout.max_logprob_difference={bound:g} of "
        f"the learner's model's in the mean, got {mean:.3g}; {remedy}"
    )


def reward_metrics(scores: Sequence[RewardScores], reward: RewardConfig) -> dict[str, float]:
    """Summarise the rewards of a step's groups, with and without signal.

    `reward/std` is the standard deviation between a group's clips, averaged over groups. `term/LABEL` and
    `term/LABEL_std` are the mean and this deviation of one term of the reward, without its weight. `credit/clip_std`
    and `credit/frame_std` are the deviations of the returns under each credit, whichever credit is configured.
    `rule/balanced` is the share of recovered commands, averaged over commanded classes and fields. `rule/balanced` and
    `follow/*` cover the fields that occur in the commands; if none occurs, these metrics are absent. Graded axes have
    `follow/axis_error` instead, the mean error as a share of their range.

    Args:
        scores: the scores of the groups.
        reward: the discount and the lookback of credit by frame.
    """
    clips = [group.frame_rewards.mean(axis=1) for group in scores]  # [G] each
    metrics = {
        "reward/mean": float(np.mean([clip.mean() for clip in clips])),
        "reward/std": float(np.mean([clip.std() for clip in clips])),
    }
    for label in scores[0].terms:
        clips = [group.terms[label].mean(axis=1) for group in scores]
        metrics[f"term/{label}"] = float(np.mean([clip.mean() for clip in clips]))
        metrics[f"term/{label}_std"] = float(np.mean([clip.std() for clip in clips]))
    for credit in ("clip", "frame"):
        compared = [
            returns(group.frame_rewards, credit, reward.discount, reward.lookback) for group in scores
        ]  # [G, F]
        metrics[f"credit/{credit}_std"] = float(np.mean([group.std(axis=0).mean() for group in compared]))
    for rule in sorted(scores[0].rules):
        metrics[f"rule/{rule}"] = float(np.mean([group.rules[rule] for group in scores]))
    names = sorted(scores[0].confusion)
    pooled = {name: np.sum([group.confusion[name] for group in scores], 0) for name in names}  # [C, C] each
    null = {name: null_class for group in scores for name, null_class in group.null_classes.items()}
    counts = [count for name, count in pooled.items() if occurs(count, null.get(name, 0))]
    if counts:
        metrics["follow/accuracy"] = float(np.mean([accuracy(count) for count in counts]))
        metrics["rule/balanced"] = float(np.mean([balanced_accuracy(count) for count in counts]))
        metrics["follow/macro_f1"] = float(np.mean([macro_f1(count) for count in counts]))
    if errors := [error for group in scores for error in group.axis_errors.values()]:
        metrics["follow/axis_error"] = float(np.mean(errors))
    return metrics
