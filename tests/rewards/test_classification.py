from __future__ import annotations

import numpy as np
import pytest

from rlir_ray.rewards.classification import (
    accuracy,
    balanced_accuracy,
    class_f1,
    confusion,
    known_mean,
    macro_f1,
    occurs,
)

# commanded 0 0 0 1 1, recovered 0 0 1 1 0: class 0 has 2 hits, 1 miss, 1 false alarm; class 1 has 1 hit, 1 and 1.
COMMANDED = [0, 0, 0, 1, 1]
RECOVERED = [0, 0, 1, 1, 0]


def test_rows_are_commanded_and_columns_recovered() -> None:
    assert confusion(RECOVERED, COMMANDED, 3).tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_macro_f1_is_the_mean_over_classes_that_were_commanded() -> None:
    # F1: 2*2/(2*2+1+1) = 2/3 and 2*1/(2*1+1+1) = 1/2; class 2 is never commanded and does not count.
    matrix = confusion(RECOVERED, COMMANDED, 3)
    assert np.isnan(class_f1(matrix)[2])
    assert macro_f1(matrix) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert accuracy(matrix) == pytest.approx(3 / 5)
    # 2 of 3 and 1 of 2.
    assert balanced_accuracy(matrix) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_a_class_recovered_but_never_commanded_counts_as_a_miss_only() -> None:
    # Class 0: 1 hit, 1 miss: 2/3; class 2 was never commanded and has no F1 of its own.
    assert macro_f1(confusion([0, 2], [0, 0], 3)) == pytest.approx(2 / 3)


def test_many_confusions_are_scored_at_once() -> None:
    several = np.stack([confusion(RECOVERED, COMMANDED, 3), confusion([0, 2], [0, 0], 3)])
    assert macro_f1(several) == pytest.approx([(2 / 3 + 1 / 2) / 2, 2 / 3])


def test_a_class_that_was_never_commanded_is_no_class_of_the_mean() -> None:
    # Class 0: 3 hits, 1 miss into class 2: 2*3 / (4 + 3) = 6/7; class 1: 1 hit of 1; class 2 was never commanded.
    assert macro_f1(np.array([[3, 0, 1], [0, 1, 0], [0, 0, 0]])) == pytest.approx((6 / 7 + 1) / 2)


def test_confusions_of_parts_add_up() -> None:
    whole = confusion(RECOVERED, COMMANDED, 2)
    parts = confusion(RECOVERED[:2], COMMANDED[:2], 2) + confusion(RECOVERED[2:], COMMANDED[2:], 2)
    assert (whole == parts).all()


def test_no_frames_give_nan() -> None:
    empty = confusion([], [], 2)
    assert np.isnan(macro_f1(empty)) and np.isnan(accuracy(empty))


@pytest.mark.parametrize(("recovered", "commanded"), [([0, 1], [0]), ([2], [0]), ([0], [-1])])
def test_bad_classes_are_refused(recovered: list[int], commanded: list[int]) -> None:
    with pytest.raises(ValueError, match="must"):
        confusion(recovered, commanded, 2)


def test_macro_f1_weighs_classes_alike() -> None:
    # Class 0: 2*3/(4+3) = 6/7; class 1: 2*0/(0+1) = 0.
    assert macro_f1(confusion([0, 0, 0, 0], [0, 0, 0, 1], 2)) == pytest.approx(3 / 7)


def test_a_group_occurs_where_anything_but_its_null_class_was_commanded() -> None:
    # Read as class 1 but never commanded so: false alarms make no group occur.
    still, moving = confusion([0, 1], [0, 0], 2), confusion([0, 0], [0, 1], 2)
    assert occurs(np.stack([still, moving, confusion([], [], 2)]), 0).tolist() == [False, True, False]
    assert occurs(confusion([5], [5], 11), 0) and not occurs(confusion([5], [5], 11), 5)


def test_a_field_without_a_null_class_occurs_where_two_classes_were_commanded() -> None:
    assert occurs(confusion([0, 0], [1, 0], 2), None) and not occurs(confusion([0, 1], [1, 1], 2), None)


def test_a_mean_leaves_out_figures_of_nothing() -> None:
    means = known_mean([[0.2, np.nan, 0.4], [np.nan] * 3])
    assert means[0] == pytest.approx(0.3) and np.isnan(means[1])
