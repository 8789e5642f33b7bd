"""Batching: split a step into minibatches, assign groups to ranks, and cut a rank's trajectories into micro-batches.

Numbers only, no tensors.

The micro-batches of a rank hold every trajectory once. Each holds at most the decision budget, but at least one
trajectory, or the neighbouring trajectories that an objective compares. All ranks run the same number of micro-batches,
because each one may contain a collective call: a rank with fewer adds empty micro-batches.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One trajectory of a rank."""

    group: int
    """Index in the rank's list of groups."""
    trajectory: int
    """Index among the group's trajectories that train."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The trajectories of one forward and backward pass."""

    rows: tuple[Row, ...]
    is_empty: bool = False
    """Whether the micro-batch is padding: the rank runs its rows to keep collective calls aligned, without training."""


def minibatch_sizes(num_groups: int, num_minibatches: int) -> list[int]:
    """Return the groups of each minibatch of a step; sizes differ by at most one.

    Minibatches hold the step's groups in order, so that any number of ranks makes the same updates.
    """
    size, rest = divmod(num_groups, num_minibatches)
    return [size + (number < rest) for number in range(num_minibatches)]


def split_groups(sizes: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Assign every group, in order, to the rank with the least work; return the indices of each rank's groups.

    Args:
        sizes: decisions of each group, or another measure of its work.
        num_ranks: learner ranks.

    Raises:
        ValueError: a rank would get no group.
    """
    if len(sizes) < num_ranks:
        raise ValueError(
            f"a step must have a group for each learner rank, got {len(sizes)} groups for {num_ranks} ranks; "
            f"set train.prompts_per_step={num_ranks} or more"
        )
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    # Each rank first gets one group, whatever its size: otherwise groups without decisions could leave a rank empty.
    loads = [(0, 0, rank) for rank in range(num_ranks)]
    for place, size in enumerate(sizes):
        load, count, rank = min(loads) if place >= num_ranks else loads[place]
        shares[rank].append(place)
        loads[rank] = (load + size, count + 1, rank)
    return shares


def micro_batches(
    shapes: Sequence[tuple[int, int, Hashable]],
    decision_budget: int,
    num_batches: int | None = None,
    rows_together: int = 1,
) -> list[MicroBatch]:
    """Cut a rank's trajectories into micro-batches, in order.

    Args:
        shapes: for each group of the rank: the number of trajectories that train, the decisions of one trajectory, and
            its layout. Only trajectories with equal layouts can be stacked.
        decision_budget: most decisions, masked ones included, of one forward and backward pass.
        num_batches: pad with empty micro-batches up to this number, the largest over all ranks; None: do not pad.
        rows_together: neighbouring trajectories of a group that one micro-batch must hold, whatever the budget; each
            group has a multiple of them.
    """
    batches: list[MicroBatch] = []
    rows: list[Row] = []
    last_shape = None
    for group, (group_size, num_decisions, layout) in enumerate(shapes):
        for first in range(0, group_size, rows_together):
            is_full = (len(rows) + rows_together) * num_decisions > decision_budget
            if rows and (is_full or last_shape != (num_decisions, layout)):
                batches.append(MicroBatch(tuple(rows)))
                rows = []
            rows += [Row(group, first + place) for place in range(rows_together)]
            last_shape = (num_decisions, layout)
    if rows:
        batches.append(MicroBatch(tuple(rows)))
    padding = MicroBatch(tuple(Row(0, place) for place in range(rows_together)), is_empty=True)
    return batches + [padding] * ((num_batches or 0) - len(batches))
