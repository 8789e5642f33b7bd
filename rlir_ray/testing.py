"""Contract tests of plug-ins, which third parties can call in their own tests.

Each check raises an AssertionError that names the broken rule. The checks use small models and videos and take seconds
on a CPU. Legend: G trajectories, C context frames, F generated frames, K = C + F, N tokens a frame.
"""

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
from rlir_ray.data.clips import Clip, ClipRequest, PromptSplit
from rlir_ray.data.prompts import open_source
from rlir_ray.families import family_of, group_bytes, make_objective
from rlir_ray.idm.base import InverseDynamics
from rlir_ray.learner.objectives import Columns, Objective
from rlir_ray.learner.step import StepBatch, layout, stack, trained_decisions, trained_trajectories
from rlir_ray.models.autoregressive import WorldModel
from rlir_ray.rewards.base import Reward
from rlir_ray.spaces.fields import Axis
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE
from rlir_ray.trajectory import EncodedVideo, Prompt, RewardScores, TrajectoryGroup, check_scores, encoded_clips

NUM_CODES, TOKENS_PER_FRAME, NUM_FRAMES = 32, 12, 3
# Largest difference between rewards or losses that are computed together and apart, which only rounding may cause.
TOLERANCE = 1e-3
# Largest difference of log-probabilities at the same weights at which the ratio of the first update counts as 1.
LOGPROB_TOLERANCE = 1e-3


def check(holds: bool, rule: str, got: object) -> None:
    """Raise an AssertionError with the rule and the found value, unless the rule holds."""
    if not holds:
        raise AssertionError(f"{rule}, got {got}")


def sample_actions(num_actions: int, seed: int = 0, space: ActionSpace = VPT_SPACE) -> Actions:
    """Return random actions: of a choice any class in half of the frames, of an axis a normal number in its range."""
    random = np.random.default_rng(seed)
    values = space.nothing(num_actions).values
    for column, field in enumerate(space.fields):
        if isinstance(field, Axis):
            spread = (field.high - field.low) / 4
            values[:, column] = random.normal((field.high + field.low) / 2, spread, num_actions).clip(
                field.low, field.high
            )
        else:
            acts = random.random(num_actions) < 0.5
            values[acts, column] = random.integers(0, field.num_classes, num_actions)[acts]
    return Actions(space, values)


def sample_videos(num_groups: int = 2, group_size: int = 3, num_frames: int = NUM_FRAMES) -> list[EncodedVideo]:
    """Return groups of random tokens, [G, 1 + F, 12] each, with one context frame."""
    random = np.random.default_rng(0)
    return [
        EncodedVideo(
            group_id=10 + number,
            num_context=1,
            actions=sample_actions(num_frames, number),
            codes=random.integers(0, NUM_CODES, (group_size, 1 + num_frames, TOKENS_PER_FRAME)).astype(np.uint16),
        )
        for number in range(num_groups)
    ]


def sample_prompts(num_prompts: int = 2, num_frames: int = NUM_FRAMES) -> list[Prompt]:
    """Return prompts of one context frame with 12 random tokens."""
    random = np.random.default_rng(0)
    contexts = random.integers(0, NUM_CODES, (num_prompts, 1, TOKENS_PER_FRAME)).astype(np.uint16)
    return [
        Prompt(prompt_id=f"sample-{number}", context=context, actions=sample_actions(num_frames, number))
        for number, context in enumerate(contexts)
    ]


def sample_policy() -> WorldModel:
    """Return a token policy of about 0.1 M parameters with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return WorldModel.create(
            num_codes=NUM_CODES,
            tokens_per_frame=TOKENS_PER_FRAME,
            hidden_size=64,
            intermediate_size=96,
            num_layers=2,
            num_heads=4,
            num_key_value_heads=2,
            max_positions=512,
        ).eval()


# ---------------------------------------------------------------------------------------------------------------------
# Rewards


def check_reward(reward: Reward, videos: Sequence[EncodedVideo] | None = None) -> None:
    """Check a reward: finite rewards [G, F] for each video, equal at every call, alone and together with others.

    Args:
        reward: the reward.
        videos: at least two videos of one length that the reward can read; None: videos of random tokens.
    """
    videos = list(videos or sample_videos())
    first = _scores(reward, videos)
    for scores, video in zip(first, videos, strict=True):
        check(not scores.failure, f"score must give finite rewards for group {video.group_id}", scores.failure)
        dtype = scores.frame_rewards.dtype
        check(dtype == np.float32, "frame_rewards must be float32", dtype)
    _check_same(first, _scores(reward, videos), "score must give the same rewards at every call")
    alone = [_scores(reward, [video])[0] for video in videos]
    _check_same(first, alone, "score must give a group the same rewards alone and together with others")
    back = _scores(reward, videos[::-1])[::-1]
    _check_same(first, back, "score must give a group the same rewards in any order")


def _scores(reward: Reward, videos: Sequence[EncodedVideo]) -> list[RewardScores]:
    scores = reward.score(list(videos))
    try:
        check_scores(scores, videos)
    except ValueError as error:
        raise AssertionError(str(error)) from None
    return scores


def _check_same(one: Sequence[RewardScores], other: Sequence[RewardScores], rule: str) -> None:
    for each, again in zip(one, other, strict=True):
        gap = float(np.abs(each.frame_rewards - again.frame_rewards).max())
        check(gap <= TOLERANCE, rule, f"a difference of {gap:.3g} in group {each.group_id}")


# ---------------------------------------------------------------------------------------------------------------------
# Objectives


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
        columns = stack(
            StepBatch([group], advantages, group.num_decisions), micro, 0, torch.device("cpu"), group.group_size
        )
        found = rescore(policy, columns.record, group.loss_mask.shape[1]).logprobs
        assert columns.behavior_logprobs is not None
        gap = float((found - columns.behavior_logprobs)[columns.loss_mask].abs().max())
        rule = "the ratio must be 1 at the first update: sampler and rescorer must give equal log-probabilities"
        check(gap <= LOGPROB_TOLERANCE, rule, f"a difference of {gap:.3g}")


# ---------------------------------------------------------------------------------------------------------------------
# Sources


def check_source(
    name: str, folder: Path, args: Mapping[str, object] | None = None, config: Config | None = None
) -> None:
    """Check a source: the number and size of its clips, equal clips for equal seeds, and no clip in both splits.

    Args:
        name: name of the source, as for prompts.source.
        folder: folder for files that the source writes.
        args: arguments of the source, as for prompts.args.
        config: configuration of a run, whose source is replaced; None: the defaults.
    """
    config = config or Config()
    prompts = replace(config.prompts, source=name, args=dict(args or {}))
    config = replace(config, prompts=prompts)
    train, again, heldout = (_clips(config, split, folder) for split in ("train", "train", "heldout"))
    for one, other in zip(train, again, strict=True):
        same = one.address == other.address and np.array_equal(one.frames, other.frames)
        check(same, "the same seed must give the same clips", f"other clips at {one.address.prompt_id}")
    for split, clips in (("training", train), ("held-out", heldout)):
        addresses = [clip.address for clip in clips]
        check(len(set(addresses)) == len(addresses), f"each {split} clip must have its own address", addresses)
    shared = {clip.address for clip in train} & {clip.address for clip in heldout}
    check(not shared, "training and held-out clips must have no address in common", sorted(shared))
    if draw := getattr(open_source(config), "commands", None):
        drawn = draw(config.world.num_frames, np.random.default_rng(0))
        check(len(drawn) == config.world.num_frames, "commands must give num_frames actions", len(drawn))


def _clips(config: Config, split: PromptSplit, folder: Path) -> list[Clip]:
    world, num_whole = config.world, 2
    request = ClipRequest(
        split=split, num_clips=4, num_whole=num_whole, seed=3 if split == "train" else 4, folder=folder
    )
    clips = open_source(config).clips(request).clips
    check(len(clips) == request.num_clips, f"clips must give {request.num_clips} clips", len(clips))
    length = world.num_context + world.num_frames
    for number, clip in enumerate(clips):
        at_least = length if number < num_whole else world.num_context
        shape = clip.frames.shape
        size_fits = shape[1:] == (world.height, world.width, 3) and at_least <= shape[0] <= length
        wanted = (at_least, world.height, world.width, 3)
        check(size_fits, f"frames of clip {number} must be {wanted}", shape)
        check(clip.frames.dtype == np.uint8, "frames must be uint8", clip.frames.dtype)
        check(len(clip.actions) == length - 1, f"a clip must have {length - 1} actions", len(clip.actions))
    return clips


# ---------------------------------------------------------------------------------------------------------------------
# Inverse dynamics models


@torch.no_grad()
def check_idm(idm: InverseDynamics, height: int, width: int) -> None:
    """Check an inverse dynamics model: probabilities of all its fields, equal for a clip alone and among other clips.

    Args:
        idm: the model, in evaluation mode.
        height: height of its frames in pixels.
        width: width of its frames in pixels.
    """
    random = np.random.default_rng(0)
    frames = torch.from_numpy(random.integers(0, 256, (2, 5, height, width, 3), dtype=np.uint8))
    names = idm.space.names
    reading, again, alone = idm.read(frames, names), idm.read(frames, names), idm.read(frames[:1], names)
    for field in idm.space.fields:
        check(field.name in reading.probabilities, f"read must give {field.name}", sorted(reading.probabilities))
        table, classes = reading.probabilities[field.name], reading.classes[field.name]
        shape = (2, 5, field.num_classes)
        rule = f"probabilities of {field.name} must be {shape} for two clips of five frames"
        check(tuple(table.shape) == shape, rule, tuple(table.shape))
        check(bool(table.isfinite().all()), f"probabilities of {field.name} must be finite", "NaN or infinity")
        gap = float((table.sum(-1) - 1).abs().max())
        check(gap <= TOLERANCE, f"probabilities of {field.name} must sum to 1", f"a difference of {gap:.3g}")
        check(tuple(classes.shape) == shape[:2], f"classes of {field.name} must be {shape[:2]}", tuple(classes.shape))
        legal = bool(((classes >= 0) & (classes < field.num_classes)).all())
        check(legal, f"classes of {field.name} must be below {field.num_classes}", int(classes.max()))
        for rule, other in (
            ("must be the same at every call", again.probabilities[field.name][:1]),
            ("of a clip must be the same alone and among other clips", alone.probabilities[field.name]),
        ):
            gap = float((other - table[:1]).abs().max())
            check(gap <= TOLERANCE, f"probabilities of {field.name} {rule}", f"a difference of {gap:.3g}")
