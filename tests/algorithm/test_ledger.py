from __future__ import annotations

import pytest

from rlir_ray.algorithm.ledger import Failures, Ledger


def filled() -> Ledger:
    ledger = Ledger()
    for group_id in range(5):
        assert ledger.next_group_id == group_id
        ledger.admit(group_id, f"prompt-{group_id % 3}")
    ledger.finish(0, "trained")
    ledger.finish(1, "stale")
    ledger.finish(2, "no_signal")
    ledger.finish(3, "failed", "rollout actor 0 died")
    return ledger


def test_every_group_is_counted_in_exactly_one_state() -> None:
    assert filled().counts() == {"in_flight": 1, "trained": 1, "stale": 1, "no_signal": 1, "failed": 1}


def test_a_group_ends_once() -> None:
    ledger = filled()
    with pytest.raises(ValueError, match="ends once"):
        ledger.finish(0, "stale")
    with pytest.raises(ValueError, match="admitted once"):
        ledger.admit(0, "prompt-0")
    with pytest.raises(ValueError, match="admit it first"):
        ledger.finish(9, "trained")
    with pytest.raises(ValueError, match="must be one of"):
        ledger.finish(4, "lost")


def test_a_failure_has_its_cause() -> None:
    with pytest.raises(ValueError, match="cause"):
        filled().finish(4, "failed")


def test_check_refuses_groups_in_flight() -> None:
    ledger = filled()
    with pytest.raises(ValueError, match="1 in flight, first 4"):
        ledger.check()
    assert ledger.fail_in_flight("stopped by the user") == [4]
    ledger.check()
    assert ledger[4].cause == "stopped by the user"


def test_the_ledger_survives_a_checkpoint() -> None:
    ledger = filled()
    read = Ledger.from_json(ledger.to_json())
    assert read.to_json() == ledger.to_json()
    assert read.in_flight == [4] and read.next_group_id == 5
    with pytest.raises(ValueError, match="a ledger must be"):
        Ledger.from_json("{}")


def test_more_failures_than_the_fraction_of_a_hundred_end_the_run():
    failures = Failures(0.02)
    for _ in range(2):
        failures.add("a replica died")
        failures.add()
    with pytest.raises(RuntimeError, match=r"^3 of the last 5 groups failed, .* no clip; fix that, or raise"):
        failures.add("no clip")
    # Old ones are forgotten: two in any hundred are borne for ever.
    lasting = Failures(0.02)
    for number in range(500):
        lasting.add("now and then" if number % 50 == 0 else "")
