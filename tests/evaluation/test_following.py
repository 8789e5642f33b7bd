from __future__ import annotations

import json

import numpy as np
import pytest

from rlir_ray.evaluation.following import Following
from rlir_ray.evaluation.results import Change, following_changes
from rlir_ray.rewards.classification import macro_f1

GROUPS = ("forward_back", "jump")


def random_following(seed: int, wrong: float, num_prompts: int = 60) -> Following:
    """Commands are the same for every seed; a share `wrong` of the readings is drawn anew."""
    orders, random = np.random.default_rng(1000), np.random.default_rng(seed)
    shape = (num_prompts, 8)
    commanded = np.stack([orders.integers(0, 3, shape), orders.integers(0, 2, shape)], -1)
    drawn = np.stack([random.integers(0, 3, shape), random.integers(0, 2, shape)], -1)
    recovered = np.where(random.random(drawn.shape) < wrong, drawn, commanded)
    return Following(groups=GROUPS, commanded=commanded, recovered=recovered)


def test_accuracy_is_the_share_of_frames_and_groups_that_agree() -> None:
    # Two prompts of two frames: the first agrees in 3 of 4 places, the second in 4 of 4.
    commanded = np.array([[[1, 0], [0, 1]], [[2, 0], [1, 1]]])
    recovered = np.array([[[1, 0], [2, 1]], [[2, 0], [1, 1]]])
    following = Following(groups=GROUPS, commanded=commanded, recovered=recovered)
    assert following.prompt_accuracy.tolist() == [0.75, 1.0]
    assert following.accuracy == 0.875
    # Standard deviation of (0.75, 1) with ddof 1 is 0.1768, over the square root of 2.
    assert following.accuracy_se == pytest.approx(0.125)
    # forward_back: classes 0 (F1 0), 1 (F1 1), 2 (one hit, one false alarm: 2/3); jump is perfect.
    assert following.macro_f1 == pytest.approx(((0 + 1 + 2 / 3) / 3 + 1) / 2)
    assert following.per_group["jump"] == {"accuracy": 1.0, "macro_f1": 1.0}


def test_macro_f1_of_one_confusion_is_the_metric_where_all_classes_are_commanded() -> None:
    following = random_following(0, 0.5)
    for index, (name, counts) in enumerate(following.confusions.items()):
        pooled = counts.sum(0)
        assert following.per_group[name]["macro_f1"] == pytest.approx(macro_f1(pooled))
        assert np.trace(pooled) == (following.commanded == following.recovered)[..., index].sum()


def test_the_bootstrap_error_has_the_size_of_the_spread_over_prompt_sets() -> None:
    sets = [random_following(seed, 0.5) for seed in range(40)]
    spread = np.std([following.macro_f1 for following in sets], ddof=1)
    error = np.mean([following.macro_f1_se for following in sets])
    assert 0.7 < error / spread < 1.4


def test_a_pair_of_equal_evaluations_differs_by_nothing() -> None:
    following = random_following(3, 0.4)
    changes = following_changes(following, following)
    assert changes == {figure: Change(mean=0, se=0) for figure in ("accuracy", "macro_f1")}


def test_pairing_removes_what_prompts_share() -> None:
    # Every second prompt is hard: nothing is recovered of it. In each prompt the first loses one frame's jump besides.
    commanded = np.zeros((60, 8, 2), np.int64)
    commanded[::2, :, 1] = 1
    after = commanded.copy()
    after[::2] = 1 - after[::2]
    before = after.copy()
    before[:, 0, 1] = 1 - commanded[:, 0, 1]
    pair = [Following(groups=GROUPS, commanded=commanded, recovered=part) for part in (before, after)]
    accuracy = following_changes(*pair)["accuracy"]
    # Hard prompts had no frame to lose: 1 of 8 jumps in half of the prompts; forward_back is never commanded.
    assert accuracy.mean == pytest.approx(1 / 16)
    assert accuracy.se < 0.2 * pair[0].accuracy_se


def test_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        following_changes(random_following(0, 0.1), random_following(0, 0.1, num_prompts=59))


def test_json_round_trip_keeps_every_figure() -> None:
    following = random_following(1, 0.3)
    again = Following.from_json(following.to_json())
    assert again.to_json() == following.to_json()


def test_a_group_that_never_occurs_lifts_no_mean() -> None:
    # forward_back is never commanded and never read; of jump's four places two are right.
    commanded = np.array([[[0, 1], [0, 0]], [[0, 1], [0, 0]]])
    recovered = np.array([[[0, 0], [0, 0]], [[0, 0], [0, 0]]])
    following = Following(groups=GROUPS, commanded=commanded, recovered=recovered)
    # Jump: released 2 hits of 4 readings and 2 commands, F1 4/6; pressed 0.
    assert following.macro_f1 == pytest.approx((2 / 3 + 0) / 2)
    assert following.accuracy == 0.5
    content = json.loads(json.dumps(following.to_json(), allow_nan=False))
    assert content["per_group"]["forward_back"] == {"accuracy": None, "macro_f1": None}
    # One resample in two hundred may have no jump at all; what is left has an error.
    assert 0 <= following.macro_f1_se < 0.5


def test_commands_of_which_nothing_occurs_have_no_figures() -> None:
    still = np.zeros((3, 2, 2), np.int64)
    following = Following(groups=GROUPS, commanded=still, recovered=still)
    content = json.loads(json.dumps(following.to_json(), allow_nan=False))
    assert {content[name] for name in ("accuracy", "accuracy_se", "macro_f1", "macro_f1_se")} == {None}
    assert np.isnan(following_changes(following, following)["macro_f1"].mean)
