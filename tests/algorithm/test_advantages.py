from __future__ import annotations

import numpy as np
import pytest

from rlir_ray.algorithm.advantages import (
    GroupAdvantages,
    advantages_from_rewards,
    group_advantages,
    has_signal,
    over_batch_std,
    returns,
    step_advantages,
)


def test_clip_credit_gives_every_frame_the_mean() -> None:
    credited = returns(np.array([[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]]), "clip", 0.3)
    np.testing.assert_allclose(credited, [[0.5, 0.5, 0.5], [0, 0, 0]])


def test_frame_credit_is_the_discounted_reward_to_go() -> None:
    # frame 2: 4; frame 1: 2 + 4/2 = 4; frame 0: 1 + 4/2 = 3
    np.testing.assert_allclose(returns(np.array([[1.0, 2.0, 4.0]]), "frame", 0.5), [[3, 4, 4]])
    np.testing.assert_allclose(returns(np.array([[1.0, 2.0, 4.0]]), "frame", 0.0), [[1, 2, 4]])
    np.testing.assert_allclose(returns(np.array([[1.0, 2.0, 4.0]]), "frame", 1.0), [[7, 6, 4]])


def test_lookback_adds_the_rewards_of_earlier_frames_by_their_distance() -> None:
    rewards = np.array([[1.0, 2.0, 4.0]])
    # Rewards to go 3, 4, 4; frame 1 also earns 1/2; frame 2 also earns 2/2, and with two frames 1/4 as well.
    np.testing.assert_allclose(returns(rewards, "frame", 0.5, 1), [[3, 4.5, 5]])
    np.testing.assert_allclose(returns(rewards, "frame", 0.5, 2), [[3, 4.5, 5.25]])
    # Each frame earns all rewards: the sum of the clip, which is F times credit by clip.
    np.testing.assert_allclose(returns(rewards, "frame", 1.0, 7), 3 * returns(rewards, "clip", 1.0))


def test_lookback_credits_a_frame_that_makes_the_frame_before_it_readable() -> None:
    # Frame 1 of the second clip makes frame 0 readable.
    rewards = np.array([[0.0, 0.0], [1.0, 0.0]])
    settings = {"credit": "frame", "discount": 1, "kind": "dr_grpo", "min_reward_std": 1e-6}
    np.testing.assert_allclose(advantages_from_rewards(rewards, **settings), [[-0.5, 0], [0.5, 0]])
    np.testing.assert_allclose(advantages_from_rewards(rewards, **settings, lookback=1), [[-0.5, -0.5], [0.5, 0.5]])


def test_grpo_advantages_of_a_clip_are_its_z_score() -> None:
    # clip means 1, 2, 3: mean 2, population standard deviation sqrt(2/3)
    advantages = group_advantages(np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]), "grpo")
    np.testing.assert_allclose(advantages, [[-1.2247449] * 2, [0, 0], [1.2247449] * 2], rtol=1e-6)


def test_dr_grpo_subtracts_the_mean_only() -> None:
    np.testing.assert_allclose(group_advantages(np.array([[1.0, 0.0], [3.0, 4.0]]), "dr_grpo"), [[-1, -2], [1, 2]])


def test_frame_advantages_share_one_standard_deviation() -> None:
    # deviations: frame 0 ±1, frame 1 ±0.1; pooled std sqrt((1 + 0.01) / 2) = 0.71063
    advantages = group_advantages(np.array([[0.0, 0.0], [2.0, 0.2]]), "grpo")
    np.testing.assert_allclose(advantages, [[-1.40720, -0.140720], [1.40720, 0.140720]], rtol=1e-5)


def test_a_group_with_equal_rewards_has_no_signal() -> None:
    equal = np.tile(np.array([[0.2, 0.9]]), (4, 1))
    assert not has_signal(equal, 1e-6)
    assert advantages_from_rewards(equal, credit="frame", discount=1, kind="grpo", min_reward_std=1e-6) is None
    assert not group_advantages(equal, "grpo").any()


def test_clips_with_equal_means_have_signal_only_for_frame_credit() -> None:
    rewards = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert advantages_from_rewards(rewards, credit="clip", discount=1, kind="grpo", min_reward_std=1e-6) is None
    advantages = advantages_from_rewards(rewards, credit="frame", discount=0, kind="grpo", min_reward_std=1e-6)
    np.testing.assert_allclose(advantages, [[1, -1], [-1, 1]])


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"reward\.credit"):
        returns(np.zeros((2, 2)), "token", 1)
    with pytest.raises(ValueError, match=r"train\.advantage"):
        group_advantages(np.zeros((2, 2)), "ppo")
    with pytest.raises(ValueError, match=r"\[G, F\]"):
        returns(np.zeros(2), "clip", 1)


def test_batch_deviation_weighs_groups_that_agree_less():
    # Centred returns: +-1 and +-3 on one frame; together the mean square is (1 + 1 + 9 + 9) / 4 = 5.
    groups = [
        group_advantages(np.array([[1.0], [3.0]]), "batch_std"),
        group_advantages(np.array([[2.0], [8.0]]), "batch_std"),
    ]
    found = step_advantages(groups, kind="batch_std")
    np.testing.assert_allclose(found[0].values, [[-1 / 5**0.5], [1 / 5**0.5]], rtol=1e-6)
    np.testing.assert_allclose(found[1].values, [[-3 / 5**0.5], [3 / 5**0.5]], rtol=1e-6)
    assert over_batch_std([np.zeros((2, 1), np.float32)])[0].tolist() == [[0], [0]]


def test_clamp_and_selection_of_the_best_and_the_worst():
    group = np.array([[0.5, 0.1], [-2.0, -9.0], [0.2, 0.2], [7.0, 1.0], [-0.3, 0.1]], np.float32)
    (found,) = step_advantages([group], kind="grpo", max_advantage=5.0, num_best=1, num_worst=1)
    # Means after the clamp: .3, -3.5, .2, 3, -.1.
    assert found.rows.tolist() == [1, 3]
    np.testing.assert_allclose(found.values, [[-2, -5], [5, 1]])
    (both,) = step_advantages([group], kind="grpo", num_best=2, num_worst=2)
    assert both.rows.tolist() == [0, 1, 3, 4]
    (best,) = step_advantages([group], kind="grpo", num_best=1)
    assert best.rows.tolist() == [3] and best.values.tolist() == [[7, 1]]
    (whole,) = step_advantages([group], kind="grpo")
    assert whole.rows.tolist() == [0, 1, 2, 3, 4] and whole.values is group


def test_advantages_without_rows_or_with_others_are_refused():
    with pytest.raises(ValueError, match=r"\[rows, F\]"):
        GroupAdvantages(np.zeros((2, 3), np.float32), np.array([0]))
    with pytest.raises(ValueError, match=r"\[rows, F\]"):
        GroupAdvantages(np.zeros((0, 3), np.float32), np.zeros(0, np.int64))
