from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from rlir_ray.evaluation.following import Following, resamples
from rlir_ray.evaluation.following_json import following_from_json, following_to_json
from rlir_ray.evaluation.results import Change, following_changes
from rlir_ray.rewards.classification import macro_f1
from rlir_ray.rewards.regression import r2
from rlir_ray.spaces.fields import Axis, MuLaw
from rlir_ray.spaces.vpt import VPT_SPACE
from tests.evaluation.followings import GEAR, GROUPS, LIFT, STEER, field_values, following, vpt_following


def random_following(seed: int, wrong: float, num_prompts: int = 60) -> Following:
    """Commands are the same for every seed; a share `wrong` of the readings is drawn anew."""
    orders, random = np.random.default_rng(1000), np.random.default_rng(seed)
    shape = (num_prompts, 8)
    commanded = np.stack([orders.integers(0, 3, shape), orders.integers(0, 2, shape)], -1)
    drawn = np.stack([random.integers(0, 3, shape), random.integers(0, 2, shape)], -1)
    recovered = np.where(random.random(drawn.shape) < wrong, drawn, commanded)
    return vpt_following(GROUPS, commanded, recovered)


def test_accuracy_is_the_share_of_frames_and_groups_that_agree() -> None:
    # Two prompts of two frames: the first agrees in 3 of 4 places, the second in 4 of 4.
    commanded = np.array([[[1, 0], [0, 1]], [[2, 0], [1, 1]]])
    recovered = np.array([[[1, 0], [2, 1]], [[2, 0], [1, 1]]])
    found = vpt_following(GROUPS, commanded, recovered)
    assert found.prompt_accuracy.tolist() == [0.75, 1.0]
    assert found.accuracy == 0.875
    # Standard deviation of (0.75, 1) with ddof 1 is 0.1768, over the square root of 2.
    assert found.accuracy_se == pytest.approx(0.125)
    # forward_back: classes 0 (F1 0), 1 (F1 1), 2 (one hit, one false alarm: 2/3); jump is perfect.
    assert found.macro_f1 == pytest.approx(((0 + 1 + 2 / 3) / 3 + 1) / 2)
    assert found.per_group["jump"] == {"accuracy": 1.0, "macro_f1": 1.0}


def test_macro_f1_of_one_confusion_is_the_metric_where_all_classes_are_commanded() -> None:
    found = random_following(0, 0.5)
    for index, (name, counts) in enumerate(found.confusions.items()):
        pooled = counts.sum(0)
        assert found.per_group[name]["macro_f1"] == pytest.approx(macro_f1(pooled))
        assert np.trace(pooled) == (found.commanded.classes == found.recovered.classes)[..., index].sum()


def test_the_bootstrap_error_has_the_size_of_the_spread_over_prompt_sets() -> None:
    sets = [random_following(seed, 0.5) for seed in range(40)]
    spread = np.std([found.macro_f1 for found in sets], ddof=1)
    error = np.mean([found.macro_f1_se for found in sets])
    assert 0.7 < error / spread < 1.4


def test_a_pair_of_equal_evaluations_differs_by_nothing() -> None:
    found = random_following(3, 0.4)
    changes = following_changes(found, found)
    assert changes == {figure: Change(mean=0, se=0) for figure in ("accuracy", "macro_f1")}


def test_pairing_removes_what_prompts_share() -> None:
    # Every second prompt is hard: nothing is recovered of it. In each prompt the first loses one frame's jump besides.
    commanded = np.zeros((60, 8, 2), np.int64)
    commanded[::2, :, 1] = 1
    after = commanded.copy()
    after[::2] = 1 - after[::2]
    before = after.copy()
    before[:, 0, 1] = 1 - commanded[:, 0, 1]
    pair = [vpt_following(GROUPS, commanded, part) for part in (before, after)]
    accuracy = following_changes(*pair)["accuracy"]
    # Hard prompts had no frame to lose: 1 of 8 jumps in half of the prompts; forward_back is never commanded.
    assert accuracy.mean == pytest.approx(1 / 16)
    assert accuracy.se < 0.2 * pair[0].accuracy_se


def test_other_prompts_or_commands_are_refused() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        following_changes(random_following(0, 0.1), random_following(0, 0.1, num_prompts=59))
    # In one bin, but other numbers; or the same classes of another field.
    for other in (
        following((STEER,), [[[-3]]], [[[1]]]),
        following((replace(STEER, name="turn"),), [[[-2.5]]], [[[1]]]),
    ):
        with pytest.raises(ValueError, match="same prompts"):
            following_changes(following((STEER,), [[[-2.5]]], [[[1]]]), other)


def test_json_round_trip_keeps_every_figure() -> None:
    found = random_following(1, 0.3)
    again = following_from_json(following_to_json(found))
    assert following_to_json(again) == following_to_json(found)


def test_a_group_that_never_occurs_lifts_no_mean() -> None:
    # forward_back is never commanded and never read; of jump's four places two are right.
    commanded = np.array([[[0, 1], [0, 0]], [[0, 1], [0, 0]]])
    recovered = np.array([[[0, 0], [0, 0]], [[0, 0], [0, 0]]])
    found = vpt_following(GROUPS, commanded, recovered)
    # Jump: released 2 hits of 4 readings and 2 commands, F1 4/6; pressed 0.
    assert found.macro_f1 == pytest.approx((2 / 3 + 0) / 2)
    assert found.accuracy == 0.5
    content = json.loads(json.dumps(following_to_json(found), allow_nan=False))
    assert content["per_group"]["forward_back"] == {"accuracy": None, "macro_f1": None}
    # One resample in two hundred may have no jump at all; what is left has an error.
    assert 0 <= found.macro_f1_se < 0.5


def test_commands_of_which_nothing_occurs_have_no_figures() -> None:
    still = np.zeros((3, 2, 2), np.int64)
    found = vpt_following(GROUPS, still, still)
    content = json.loads(json.dumps(following_to_json(found), allow_nan=False))
    assert {content[name] for name in ("accuracy", "accuracy_se", "macro_f1", "macro_f1_se")} == {None}
    assert np.isnan(following_changes(found, found)["macro_f1"].mean)


def test_an_evaluation_of_an_earlier_version_is_of_vpts_space() -> None:
    # As it was written before other spaces were known: no space, no values; yaw bins 9 and 5.
    content = {"groups": ["jump", "yaw"], "commanded": ["19 05"], "recovered": ["15 05"], "accuracy": 0.75}
    found = following_from_json(content)
    assert found.fields == VPT_SPACE.select(["jump", "yaw"]) and found.headline == ("accuracy", "macro_f1")
    assert found.commanded.classes.tolist() == [[[1, 9], [0, 5]]]
    assert found.commanded.values[0, :, 1].tolist() == pytest.approx([5.8088, 0], abs=1e-3)
    assert found.accuracy == 0.75
    assert following_to_json(following_from_json(following_to_json(found)))["commanded"] == ["19 05"]
    # A run that goes on with this version compares it with an evaluation that knows the commanded angles.
    values = np.array([[[1, 6.3], [0, 0.2]]])
    changes = following_changes(found, following(found.fields, values, values))
    assert changes["accuracy"].mean == 0.25


# ---------------------------------------------------------------------------------------------------------------------
# Graded axes

# Two prompts of two frames. Errors: 1, 0 and 2, 1; as shares of the range 8: a mean of 1/16 and 3/16.
COMMANDED = [[[-3], [1]], [[3], [-1]]]
RECOVERED = [[[-2], [1]], [[1], [0]]]


def test_figures_of_an_axis_by_hand() -> None:
    found = following((STEER,), COMMANDED, RECOVERED)
    assert found.headline == ("axis_error", "r2")
    assert found.prompt_axis_error.tolist() == [1 / 16, 3 / 16] and found.axis_error == 1 / 8
    # Standard deviation of (1/16, 3/16) with ddof 1 is 0.0884, over the square root of 2.
    assert found.axis_error_se == pytest.approx(1 / 16)
    # Squared errors 1, 0, 4, 1; the commands' mean is 0 and their squares are 9, 1, 9, 1.
    assert found.r2 == pytest.approx(1 - 6 / 20)
    # Bins 0, 2, 3, 1 commanded; -2 and 0 are the starts of bins 1 and 2, and 1 lies in bin 2: none is two bins off.
    assert found.per_group["steer"] == {
        "accuracy": pytest.approx(np.nan, nan_ok=True),
        "macro_f1": pytest.approx(np.nan, nan_ok=True),
        "mae": 1.0,
        "r2": pytest.approx(0.7),
        "within": 1.0,
    }
    assert following((STEER,), [[[-3], [1]]], [[[1], [1]]]).per_group["steer"]["within"] == 0.5
    assert np.isnan(found.accuracy) and np.isnan(found.macro_f1)


def test_r2_is_that_of_the_metric_and_a_constant_reader_has_none() -> None:
    random = np.random.default_rng(0)
    commanded = random.uniform(-4, 4, (30, 8, 1))
    read = commanded + random.normal(0, 1, commanded.shape)
    assert following((STEER,), commanded, read).r2 == pytest.approx(r2(np.float32(read), np.float32(commanded)))
    mean = following((STEER,), commanded, np.full(commanded.shape, commanded.mean()))
    assert mean.r2 == pytest.approx(0, abs=1e-6)
    assert following((STEER,), commanded, np.full(commanded.shape, 2.0)).r2 < -0.5


def test_errors_of_r2_come_from_resampled_prompts() -> None:
    random = np.random.default_rng(1)
    commanded = random.uniform(-4, 4, (12, 5, 1))
    found = following((STEER,), commanded, commanded + random.normal(0, 2, commanded.shape))
    drawn = np.repeat(np.arange(12), resamples(12)[7])
    again = r2(found.recovered.values[drawn], found.commanded.values[drawn])
    assert found.resampled_r2[7] == pytest.approx(again)
    assert found.r2_se == pytest.approx(np.std(found.resampled_r2, ddof=1)) and 0 < found.r2_se < 0.5


def test_an_axis_that_never_moves_lifts_no_mean() -> None:
    commanded = [[[-3, 0.5], [1, 0.5]], [[3, 0.5], [-1, 0.5]]]
    recovered = [[[-2, 0.5], [1, 0.5]], [[1, 0.5], [0, 0.5]]]
    one, both = following((STEER,), COMMANDED, RECOVERED), following((STEER, LIFT), commanded, recovered)
    assert (both.axis_error, both.r2, both.r2_se) == (one.axis_error, one.r2, one.r2_se)
    assert np.isnan(both.per_group["lift"]["r2"]) and both.per_group["lift"]["mae"] == 0
    still = following((LIFT,), [[[0.5]], [[0.5]]], [[[0.5]], [[0.5]]])
    content = json.loads(json.dumps(following_to_json(still), allow_nan=False))
    assert {content[name] for name in ("axis_error", "axis_error_se", "r2", "r2_se")} == {None}


def test_choices_and_axes_have_figures_of_their_own() -> None:
    mixed = following((GEAR, STEER), [[[2, -3], [1, 1]]], [[[2, -2], [0, 1]]])
    assert mixed.headline == ("accuracy", "macro_f1", "axis_error", "r2")
    assert (mixed.accuracy, mixed.axis_error) == (0.5, 1 / 16)
    # Gear on has F1 1, idle 0; back is never commanded.
    assert mixed.macro_f1 == 0.5
    assert set(mixed.per_group["gear"]) == {"accuracy", "macro_f1"}
    assert set(following_changes(mixed, mixed)) == set(mixed.headline)


def test_a_mu_law_axis_counts_classes_and_also_shows_its_error() -> None:
    yaw = Axis(name="yaw", low=-10, high=10, quantizer=MuLaw(num_bins=11, mu=10))
    found = following((yaw,), [[[0], [10]]], [[[0], [9]]])
    assert found.headline == ("accuracy", "macro_f1") and found.accuracy == 1
    assert found.per_group["yaw"]["mae"] == 0.5 and found.per_group["yaw"]["accuracy"] == 1


def test_json_keeps_axes_of_many_bins() -> None:
    random = np.random.default_rng(2)
    fields = (GEAR, STEER, LIFT)
    lift = np.linspace(0, 1, 20).reshape(5, 4)
    values = np.stack([random.integers(0, 3, (5, 4)), random.uniform(-4, 4, (5, 4)), lift], -1)
    found = following(fields, values, values[::-1])
    assert found.commanded.classes[..., 2].max() > 35
    content = json.loads(json.dumps(following_to_json(found), allow_nan=False))
    assert len(content["commanded"][0].split()[0]) == 6
    again = following_from_json(content)
    assert again.fields == fields
    for one, other in ((found.commanded, again.commanded), (found.recovered, again.recovered)):
        assert np.array_equal(one.classes, other.classes)
        assert np.array_equal(one.values, other.values) and other.values.dtype == np.float32
    assert following_to_json(again) == following_to_json(found)
    # A number of float32 is written with the digits that it needs.
    assert max(len(str(number)) for number in np.ravel(content["commanded_values"])) <= 14
    assert {change.mean for change in following_changes(found, again).values()} == {0}


def test_actions_that_do_not_fit_their_fields_are_refused() -> None:
    values = field_values((STEER,), [[[1], [2]]])
    with pytest.raises(ValueError, match=r"must both be \[P, F, 2\], got \(1, 2, 1\) and \(1, 2, 1\); cut both"):
        Following(fields=(STEER, LIFT), commanded=values, recovered=values)
    with pytest.raises(ValueError, match=r"must both be \[P, F, 1\], got \(1, 2, 1\) and \(1, 1, 1\); cut both"):
        Following(fields=(STEER,), commanded=values, recovered=values.frames(slice(1)))
