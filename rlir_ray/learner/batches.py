"""A rank's share of a step, and its columns on the learner's device.

Legend: B trajectories of a micro-batch, G of a group, T decisions, F generated frames, K terms of a reward.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.algorithm.batching import MicroBatch
from rlir_ray.algorithm.seeds import trajectory_seed
from rlir_ray.learner.engine import Engine
from rlir_ray.learner.objectives import Columns
from rlir_ray.trajectory import Record, TrajectoryGroup


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One rank's share of an update: of a step, or of one of its minibatches.

    Example: 2 ranks, 4 groups of 8 clips with 384 decisions each: every rank gets 2 groups, advantages ``2 x [8, 8]``,
    and ``num_decisions = 4 * 8 * 384 = 12288``.
    """

    groups: list[TrajectoryGroup]
    advantages: list[GroupAdvantages]
    """Advantages of each group; all T / F decisions of a frame share the frame's value."""
    num_decisions: int
    """Trained decisions of the whole update, over all ranks: the sum of `trained_decisions`."""

    def __post_init__(self) -> None:
        if not self.groups or len(self.groups) != len(self.advantages):
            raise ValueError(
                f"a rank needs groups and as many advantages, got {len(self.groups)} and {len(self.advantages)}; "
                "set train.prompts_per_step to learner.num_workers or more"
            )
        for group, advantages in zip(self.groups, self.advantages, strict=True):
            size, decisions = group.loss_mask.shape
            if advantages.rows.max() >= size or decisions % advantages.values.shape[1]:
                raise ValueError(
                    f"advantages must be of rows below G, with F dividing T, got rows up to {advantages.rows.max()} "
                    f"and F = {advantages.values.shape[1]} for {size}, {decisions}; give one advantage a frame"
                )


def trained_decisions(groups: Sequence[TrajectoryGroup], advantages: Sequence[GroupAdvantages]) -> int:
    """Count the decisions that train: the unmasked decisions of rows with advantages."""
    return sum(int(group.loss_mask[each.rows].sum()) for group, each in zip(groups, advantages, strict=True))


def trained_trajectories(groups: Sequence[TrajectoryGroup], advantages: Sequence[GroupAdvantages]) -> int:
    """Count the trajectories with decisions that train."""
    return sum(int(group.loss_mask[each.rows].any(1).sum()) for group, each in zip(groups, advantages, strict=True))


def step_batches(
    groups: Sequence[TrajectoryGroup], advantages: Sequence[GroupAdvantages], sizes: Sequence[int], engine: Engine
) -> list[StepBatch]:
    """Cut a rank's groups into its shares of a step's minibatches. Every rank calls: counts are summed over ranks.

    Args:
        groups: the rank's groups, in the order of the minibatches.
        advantages: of each group.
        sizes: groups of each minibatch on this rank.
        engine: the rank's engine.
    """
    shares = [slice(end - size, end) for size, end in zip(sizes, itertools.accumulate(sizes), strict=True)]
    own = [float(trained_decisions(groups[share], advantages[share])) for share in shares]
    counts = engine.reduce(torch.tensor(own, dtype=torch.float64).to(engine.device), maximum=False)
    return [
        StepBatch(list(groups[share]), list(advantages[share]), int(count))
        for share, count in zip(shares, counts, strict=True)
    ]


def stack(batch: StepBatch, micro: MicroBatch, step: int, device: torch.device, num_trajectories: int) -> Columns:
    """Stack the columns of a micro-batch, one row a trajectory; B rows.

    Args:
        batch: the rank's share.
        micro: the rows.
        step: number of the step, for the seeds.
        device: the learner's.
        num_trajectories: `trained_trajectories` of the whole step.
    """
    rows = [(batch.groups[row.group], batch.advantages[row.group], row.trajectory) for row in micro.rows]
    places = [int(advantages.rows[number]) for _, advantages, number in rows]
    groups = [group for group, _, _ in rows]

    def tensor(arrays: Sequence[npt.NDArray[np.generic]]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(device)

    def column(name: str) -> Tensor | None:
        whole = [getattr(group.record, name) for group in groups]
        return None if whole[0] is None else tensor([each[row] for each, row in zip(whole, places, strict=True)])

    kind, logprobs = type(groups[0].record), [group.behavior_logprobs for group in groups]
    masks = [group.loss_mask[row] & (not micro.is_empty) for group, row in zip(groups, places, strict=True)]
    has_logprobs = logprobs[0] is not None
    return Columns(
        record=kind(*(column(entry.name) for entry in dataclasses.fields(kind))),  # type: ignore[arg-type]  # of the same class
        behavior_logprobs=tensor([each[row] for each, row in zip(logprobs, places, strict=True)])  # type: ignore[index]  # none is None
        if has_logprobs
        else None,
        loss_mask=tensor(masks),
        advantages=tensor([_per_decision(each.values[number], group) for group, each, number in rows]),
        term_advantages=_term_advantages(rows, tensor),
        seeds=[trajectory_seed(group.seed, row, step) for group, row in zip(groups, places, strict=True)],
        num_trajectories=num_trajectories,
    )


def _term_advantages(
    rows: Sequence[tuple[TrajectoryGroup, GroupAdvantages, int]],
    tensor: Callable[[Sequence[npt.NDArray[np.generic]]], Tensor],
) -> Tensor | None:
    """Stack the advantages of each term, [K, B, T]; None: the groups have one loss."""
    if rows[0][1].terms is None:
        return None
    by_row = [[_per_decision(term[number], group) for term in each.terms] for group, each, number in rows]  # type: ignore[union-attr]  # none is None
    return tensor([np.stack(terms) for terms in by_row]).movedim(1, 0)


def layout(record: Record) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a trajectory's columns; only trajectories with equal shapes can be stacked."""
    columns = [getattr(record, entry.name) for entry in dataclasses.fields(record)]
    return tuple(column.shape[1:] for column in columns if column is not None)


def _per_decision(advantages: npt.NDArray[np.float32], group: TrajectoryGroup) -> npt.NDArray[np.float32]:
    """Repeat each frame's advantage for all its decisions, [F] to [T]."""
    return np.repeat(advantages, group.loss_mask.shape[1] // len(advantages)).astype(np.float32)
