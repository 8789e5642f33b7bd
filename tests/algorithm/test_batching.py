from __future__ import annotations

import pytest

from rlir_ray.algorithm.batching import MicroBatch, Row, micro_batches, minibatch_sizes, split_groups


def test_minibatches_hold_all_groups_and_differ_by_one_at_most() -> None:
    assert minibatch_sizes(8, 1) == [8]
    assert minibatch_sizes(8, 3) == [3, 3, 2]
    assert minibatch_sizes(3, 3) == [1, 1, 1]


def test_every_group_goes_to_exactly_one_rank() -> None:
    sizes = [5, 1, 1, 1, 9, 2, 2]
    shares = split_groups(sizes, 3)
    assert sorted(place for share in shares for place in share) == list(range(7))
    assert all(shares)


def test_groups_go_to_the_rank_with_the_least_to_do() -> None:
    # after 5 | 1: the next three (1 each) go to rank 1 (2, 3, 4), then 1 more (5), a tie which the fewer groups win
    assert split_groups([5, 1, 1, 1, 1, 1], 2) == [[0], [1, 2, 3, 4, 5]]
    assert split_groups([1, 1, 1, 1], 2) == [[0, 2], [1, 3]]


def test_a_rank_without_groups_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.prompts_per_step=4"):
        split_groups([1, 1, 1], 4)


@pytest.mark.parametrize("budget", [1, 10, 35, 1000])
def test_micro_batches_hold_every_trajectory_once_within_the_budget(budget: int) -> None:
    shapes = [(3, 10, 20), (4, 10, 20), (2, 5, 12)]
    batches = micro_batches(shapes, budget)
    rows = [row for batch in batches for row in batch.rows]
    assert rows == [Row(group, row) for group, (size, _, _) in enumerate(shapes) for row in range(size)]
    for batch in batches:
        decisions = [shapes[row.group][1] for row in batch.rows]
        assert len(set(decisions)) == 1  # only trajectories of one shape are stacked
        assert sum(decisions) <= budget or len(batch.rows) == 1


def test_shorter_ranks_are_padded_with_empty_micro_batches() -> None:
    batches = micro_batches([(2, 10, 20)], 10, num_batches=4)
    assert [batch.is_empty for batch in batches] == [False, False, True, True]
    assert batches[2] == MicroBatch((Row(0, 0),), is_empty=True)


@pytest.mark.parametrize("budget", [1, 10, 35, 1000])
def test_rows_that_are_compared_share_a_micro_batch_whatever_the_budget(budget: int) -> None:
    batches = micro_batches([(2, 10, 20), (4, 10, 20)], budget, num_batches=5, rows_together=2)
    assert len(batches) == 5 and batches[-1] == MicroBatch((Row(0, 0), Row(0, 1)), is_empty=True)
    rows = [row for batch in batches if not batch.is_empty for row in batch.rows]
    assert rows == [Row(group, row) for group, size in ((0, 2), (1, 4)) for row in range(size)]
    for batch in batches:
        assert len(batch.rows) % 2 == 0 and (10 * len(batch.rows) <= budget or len(batch.rows) == 2)
