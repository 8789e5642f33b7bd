"""Contract tests of objectives and of families of world models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.algorithm.batching import micro_batches
from rlir_ray.config import Config, TrainConfig
from rlir_ray.families import family_of, group_bytes, make_objective
from rlir_ray.learner.batches import StepBatch, layout, stack, trained_decisions, trained_trajectories
from rlir_ray.learner.objectives import Columns, Objective
from rlir_ray.testing.samples import LOGPROB_TOLERANCE, TOLERANCE, check, sample_policy, sample_prompts
from rlir_ray.trajectory import EncodedVideo, Prompt, TrajectoryGroup, encoded_clips


def check_objective(
    name: str,
    args: Mapping[str, object] | None = None,
    *,
    config: Config | None = None,
    policy: nn.Module | None = None,
    prompts: Sequence[Prompt] | None = None,
) -> None:
    """Check an objective: its loss is finite, has a gradient, adds up over micro-batches, and ignores masked decisions.

    Args:
        name: name of the objective, as for train.objective.
        args: arguments of the objective, as for train.objective_args.
        config: configuration of a run, whose objective is replaced; None: the defaults, for tokens.
        policy: a policy of the configured family; None: a small token policy.
        prompts: prompts of the configured family; None: random tokens.
    """
    config = config or Config(train=TrainConfig(group_size=2, max_advantage=5.0))
    config = replace(config, train=replace(config.train, objective=name, objective_args=dict(args or {})))
    policy = policy or sample_policy()
    objective = make_objective(config, policy)
    check(isinstance(objective.sampling_policy, nn.Module), "sampling_policy must be a module", objective)
    columns, parts, num_decisions = _columns(config, policy, prompts or sample_prompts())
    loss, metrics = objective.loss(policy, columns, num_decisions)
    check(loss.ndim == 0 and bool(loss.isfinite()), "the loss must be one finite number", loss)
    check(loss.requires_grad, "the loss must carry a gradient of the policy", "a loss without gradient")
    for key, value in metrics.items():
        check(isinstance(value, Tensor), f"the metric {key} must be a tensor", type(value).__name__)
        check(bool(value.isfinite().all()), f"the metric {key} must be finite", value)
    again = objective.loss(policy, columns, num_decisions)[0]
    _check_near(loss, again, "the loss of the same columns must be the same")
    summed = torch.stack([objective.loss(policy, part, num_decisions)[0] for part in parts]).sum()
    _check_near(loss, summed, "the loss must be the sum over micro-batches, divided by num_decisions")
    _check_mask(objective, policy, columns, num_decisions)
    objective.load_state({key: np.asarray(value) for key, value in objective.state().items()})


def _check_mask(objective: Objective, policy: nn.Module, columns: Columns, num_decisions: int) -> None:
    """Check that the advantages of masked decisions do not change the loss."""
    loss_mask = columns.loss_mask.clone()
    loss_mask[:, ::2] = False
    advantages = torch.where(loss_mask, columns.advantages, columns.advantages + 3)
    one, other = (
        objective.loss(policy, replace(columns, loss_mask=loss_mask, advantages=each), num_decisions)[0]
        for each in (columns.advantages, advantages)
    )
    _check_near(one, other, "decisions outside loss_mask must not count")


def _check_near(one: Tensor, other: Tensor, rule: str) -> None:
    gap = float((one - other).detach().abs())
    check(gap <= TOLERANCE * max(1.0, float(one.detach().abs())), rule, f"a difference of {gap:.3g}")


def _columns(config: Config, policy: nn.Module, prompts: Sequence[Prompt]) -> tuple[Columns, list[Columns], int]:
    """Return all groups in one micro-batch, each group in its own micro-batch, and the number of decisions."""
    groups = [group for group, _ in _sample(config, policy, prompts)]
    values = np.linspace(-1, 1, config.train.group_size, dtype=np.float32)[:, None].repeat(prompts[0].num_frames, 1)
    advantages = [GroupAdvantages.of_all(values) for _ in groups]
    batch = StepBatch(groups, advantages, trained_decisions(groups, advantages))

    def stacked(part: StepBatch) -> Columns:
        shapes = [(*group.loss_mask.shape, layout(group.record)) for group in part.groups]
        (micro,) = micro_batches(shapes, batch.num_decisions + 1)
        return stack(part, micro, 0, torch.device("cpu"), trained_trajectories(groups, advantages))

    alone = [StepBatch([group], [each], 0) for group, each in zip(groups, advantages, strict=True)]
    return stacked(batch), [stacked(part) for part in alone], batch.num_decisions


def _sample(config: Config, policy: nn.Module, prompts: Sequence[Prompt]) -> list[tuple[TrajectoryGroup, EncodedVideo]]:
    sampler = family_of(config).rollout_sampler(config, policy)
    numbers = range(len(prompts))
    return sampler.sample(prompts, numbers, [100 + number for number in numbers], config.train.group_size)


# ---------------------------------------------------------------------------------------------------------------------
# Families


def check_family(config: Config, prompts: Sequence[Prompt]) -> None:
    """Check a family of world models: its samples, their size, and a ratio of 1 at the first update.

    Args:
        config: configuration with the family, checkpoints of a small policy and codec, and their world;
            train.objective=grpo.
        prompts: at least two prompts of world.num_context and world.num_frames frames, encoded by the codec.
    """
    family, world = family_of(config), config.world
    frame_shape = family.check_world(config)
    policy = family.open_policy(Path(config.models.policy)).eval()
    drawn, again = (_sample(config, policy, prompts) for _ in range(2))
    for prompt, (group, video), (_, repeated) in zip(prompts, drawn, again, strict=True):
        shape = (config.train.group_size, world.num_context + world.num_frames, *frame_shape)
        check(video.codes.shape == shape, f"a video's codes must be {shape}", video.codes.shape)
        context = video.codes[:, : world.num_context]
        given = np.broadcast_to(prompt.context, context.shape)
        check(np.array_equal(context, given), "a video must start with the prompt's context", "other frames")
        check(np.array_equal(video.codes, repeated.codes), "the same seeds must give the same clips", "other clips")
        check(not group.not_finite(), "a group must be finite", group.not_finite())
        size = group.nbytes + video.codes.nbytes + (0 if video.keyframe is None else video.keyframe.nbytes)
        stated = group_bytes(config, frame_shape)
        check(size <= stated, f"the family's record must be at least what a group holds, {size} bytes", stated)
    _check_ratio(config, policy, [group for group, _ in drawn])
    codec = family.codec(config).from_pretrained(Path(config.models.tokenizer), height=world.height, width=world.width)
    frames = codec.decode_clips(encoded_clips([drawn[0][1]])[:1])
    wanted = (1, world.num_context + world.num_frames, world.height, world.width, 3)
    check(tuple(frames.shape) == wanted, f"the codec must decode a clip to {wanted}", tuple(frames.shape))
    check(frames.dtype == torch.uint8, "the codec must decode to uint8", frames.dtype)


@torch.no_grad()
def _check_ratio(config: Config, policy: nn.Module, groups: Sequence[TrajectoryGroup]) -> None:
    """Check that the sampler's log-probabilities equal those of the learner at the same weights."""
    rescore = family_of(config).rescorer(config, policy)
    for group in groups:
        check(group.behavior_logprobs is not None, "a rollout sampler must keep log-probabilities", None)
        advantages = [GroupAdvantages.of_all(np.ones((group.group_size, 1), np.float32))]
        (micro,) = micro_batches([(*group.loss_mask.shape, layout(group.record))], group.loss_mask.size)
        batch = StepBatch([group], advantages, group.num_decisions)
        columns = stack(batch, micro, 0, torch.device("cpu"), group.group_size)
        found = rescore(policy, columns.record, group.loss_mask.shape[1]).logprobs
        assert columns.behavior_logprobs is not None
        gap = float((found - columns.behavior_logprobs)[columns.loss_mask].abs().max())
        rule = "the ratio must be 1 at the first update: sampler and rescorer must give equal log-probabilities"
        check(gap <= LOGPROB_TOLERANCE, rule, f"a difference of {gap:.3g}")
