from __future__ import annotations

import numpy as np
import pytest

from rlir_ray.rewards.regression import mean_absolute_error, r2, share_within


def test_r2_is_the_share_of_the_variance_that_is_explained() -> None:
    # Commands 0, 2, 4: mean 2, sum of squares around it 8. Errors 1, 0, -1: 1 - 2/8.
    assert r2([1, 2, 3], [0, 2, 4]) == pytest.approx(0.75)
    assert r2([2, 2, 2], [0, 2, 4]) == 0 and r2([4, 2, 0], [0, 2, 4]) < 0


def test_constant_commands_and_no_frames_have_no_r2() -> None:
    assert np.isnan(r2([1, 1], [1, 1])) and np.isnan(r2([], []))


def test_errors_are_in_the_unit_of_the_numbers() -> None:
    assert mean_absolute_error([1, -2], [2, 2]) == 2.5
    assert share_within([1, -2], [2, 2], 1) == 0.5
    assert np.isnan(mean_absolute_error([], [])) and np.isnan(share_within([], [], 1))


def test_numbers_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="must be of one length, got 2 and 1"):
        r2([1, 2], [1])
