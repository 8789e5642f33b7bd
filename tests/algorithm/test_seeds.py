from __future__ import annotations

import pytest

from rlir_ray.algorithm.seeds import group_seed, prompt_index


def test_group_seeds_differ_between_groups_and_runs() -> None:
    seeds = {group_seed(run, group) for run in range(4) for group in range(100)}
    assert len(seeds) == 400
    assert group_seed(3, 7) == group_seed(3, 7)


def test_an_epoch_uses_every_prompt_once_and_the_next_one_in_another_order() -> None:
    first = [prompt_index(0, group, 20) for group in range(20)]
    second = [prompt_index(0, group, 20) for group in range(20, 40)]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != [prompt_index(1, group, 20) for group in range(20)]


def test_no_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one prompt"):
        prompt_index(0, 0, 0)
