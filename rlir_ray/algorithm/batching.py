"""Who trains what: groups over ranks, and a rank's trajectories into micro-batches. Numbers only, no tensors.

A rank's micro-batches hold every trajectory once, no more than the decision budget at a time (one trajectory at least).
All ranks run the same number of them, since each one may be a collective call: the shorter ranks add empty ones.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One trajectory of a rank."""

    group: int
    """Place in the rank's list of groups."""
    trajectory: int
    """Place among the group's trajectories that train."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    rows: tuple[Row, ...]
    is_empty: bool = False
    """Padding: its rows are run for the sake of the other ranks and train nothing."""


def split_groups(sizes: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Places of the groups of each rank: every group once, each to the rank that has the least to do, in order.

    Args:
        sizes: decisions of each group, or anything else that measures its work.
        num_ranks: learner ranks.

    Raises:
        ValueError: a rank would have nothing to do.
    """
    if len(sizes) < num_ranks:
        raise ValueError(
            f"a step must have a group for each learner rank, got {len(sizes)} groups for {num_ranks} ranks; "
            f"set train.prompts_per_step={num_ranks} or more"
        )
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    # Groups first, decisions second: otherwise empty groups could leave a rank without any.
    loads = [(0, 0, rank) for rank in range(num_ranks)]
    for place, size in enumerate(sizes):
        load, count, rank = min(loads) if place >= num_ranks else loads[place]
        shares[rank].append(place)
        loads[rank] = (load + size, count + 1, rank)
    return shares


def micro_batches(
    shapes: Sequence[tuple[int, int, Hashable]], decision_budget: int, num_batches: int | None = None
) -> list[MicroBatch]:
    """Cuts a rank's trajectories into micro-batches, in order.

    Args:
        shapes: of each group of the rank the trajectories that train, the decisions of one, and its layout, whatever
            else must be equal where trajectories are stacked.
        decision_budget: decisions, masked ones included, that one forward and backward pass holds.
        num_batches: pad with empty ones up to this number, the largest over all ranks.
    """
    batches: list[MicroBatch] = []
    rows: list[Row] = []
    last_shape = None
    for group, (group_size, num_decisions, layout) in enumerate(shapes):
        for trajectory in range(group_size):
            is_full = (len(rows) + 1) * num_decisions > decision_budget
            if rows and (is_full or last_shape != (num_decisions, layout)):
                batches.append(MicroBatch(tuple(rows)))
                rows = []
            rows.append(Row(group, trajectory))
            last_shape = (num_decisions, layout)
    if rows:
        batches.append(MicroBatch(tuple(rows)))
    padding = MicroBatch((Row(0, 0),), is_empty=True)
    return batches + [padding] * ((num_batches or 0) - len(batches))
