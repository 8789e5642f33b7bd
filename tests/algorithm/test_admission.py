from __future__ import annotations

import random

import pytest

from rlir_ray.algorithm.admission import Admission, is_stale


def test_a_group_older_than_max_staleness_is_stale() -> None:
    assert [is_stale(5, version, max_staleness=1) for version in (5, 4, 3)] == [False, False, True]
    assert is_stale(5, 4, max_staleness=0)


def test_slots_are_those_of_max_staleness_plus_one_steps() -> None:
    admission = Admission(max_staleness=1, prompts_per_step=3, budget_bytes=10)
    for group_id in range(6):
        assert admission.can_admit()
        admission.admit(group_id)
    assert not admission.can_admit()
    admission.release(2)
    assert admission.available() == 1


def test_bytes_in_flight_stay_under_the_budget() -> None:
    admission = Admission(max_staleness=3, prompts_per_step=2, budget_bytes=100)
    assert admission.available(nbytes_each=30) == 3
    for group_id in range(3):
        admission.admit(group_id, 30)
    assert not admission.can_admit(1, 30)
    admission.resize(0, 20)
    assert admission.bytes_in_flight == 80 and admission.available(10) == 2
    assert admission.peak_bytes == 90


def test_a_budget_below_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="object_store_budget_bytes=120"):
        Admission(max_staleness=0, prompts_per_step=4, budget_bytes=100).available(nbytes_each=30)


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_no_group_that_is_consumed_in_order_is_born_stale(max_staleness: int) -> None:
    # Groups are admitted as early as slots allow; one in four is dropped; a step takes the oldest ones and publishes.
    chance, admission = random.Random(0), Admission(max_staleness, 4, 1)
    next_id, waiting, lags = 0, [], []
    for version in range(50):
        while len(waiting) < 4 or admission.can_admit():
            admission.admit(next_id)
            if chance.random() < 0.25:
                admission.release(next_id)
            else:
                waiting.append((next_id, version))
            next_id += 1
        step, waiting = waiting[:4], waiting[4:]
        lags += [version - sampled for _, sampled in step]
        assert not any(is_stale(version, sampled, max_staleness) for _, sampled in step)
        for group_id, _ in step:
            admission.release(group_id)
    assert max(lags) == max_staleness
