"""R7 and R8 in whole runs: one group whose rewards are none, or whose scoring never ends, fails with its cause."""

import time
from functools import partial

import numpy as np
import pytest

from benchmarks.stages import SleepReward
from rlir_ray.trajectory import RewardScores
from tests.chaos.test_run import PER_STEP, ledger_of, make_pipeline, run

BAD_GROUP, NUM_STEPS = 5, 4


class BadReward(SleepReward):
    """Random rewards; what `spoil` makes of those of one group."""

    def __init__(self, spoil) -> None:
        super().__init__(seconds=0.005)
        self.spoil = spoil

    def score(self, videos):
        scores = super().score(videos)
        for index, video in enumerate(videos):
            if video.group_id == BAD_GROUP:
                scores[index : index + 1] = self.spoil(scores[index].frame_rewards)
        return scores


def scored(frame_rewards):
    return [RewardScores(group_id=BAD_GROUP, frame_rewards=frame_rewards)]


def one_is(value, rewards):
    rewards = rewards.copy()
    rewards[1, 2] = value
    return scored(rewards)


def without_frames(rewards):
    return scored(rewards[:, :0])


def without_clips(rewards):
    return scored(rewards[:0])


def fewer_frames(rewards):
    return scored(rewards[:, :-1])


def no_score(rewards):
    return []


def none_in_its_place(rewards):
    return [None]


def hang(rewards):
    time.sleep(3600)


def check_only_the_bad_group_failed(result, cause):
    ledger = ledger_of(result)
    ledger.check()
    states = {group_id: ledger[group_id].state for group_id in range(ledger.next_group_id)}
    # Another one took its place.
    assert states == dict.fromkeys(range(NUM_STEPS * PER_STEP + 1), "trained") | {BAD_GROUP: "failed"}
    assert result.num_steps == NUM_STEPS and result.groups["trained"] == NUM_STEPS * PER_STEP
    assert cause in ledger[BAD_GROUP].cause and "\n" not in ledger[BAD_GROUP].cause


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (partial(one_is, np.nan), "rewards must be finite numbers, got NaN or infinity"),
        (partial(one_is, -np.inf), "rewards must be finite numbers, got NaN or infinity"),
        (without_frames, "rewards must be finite numbers, got none"),
        (without_clips, "rewards must be finite numbers, got none"),
        (no_score, "a reward must score every video, got 0 scores of 1 videos"),
        (none_in_its_place, "a reward must give RewardScores for every video, got NoneType"),
        (fewer_frames, "frame rewards of group 5 must be (8, 8)"),
    ],
    ids=["NaN", "infinite", "no frames", "no clips", "no score", "None", "fewer frames"],
)
def test_a_group_without_usable_rewards_fails_with_its_cause_and_is_replaced(ray_cluster, tmp_path, spoil, cause):
    pipeline = make_pipeline(tmp_path, f"train.num_steps={NUM_STEPS}", make_reward=partial(BadReward, spoil))
    check_only_the_bad_group_failed(run(pipeline), cause)


@pytest.mark.timeout(200)
def test_a_group_whose_scoring_always_hangs_fails_with_its_cause_and_the_run_finishes(ray_cluster, tmp_path):
    pipeline = make_pipeline(
        tmp_path, f"train.num_steps={NUM_STEPS}", "reward.num_replicas=2", "reward.timeout_s=2",
        make_reward=partial(BadReward, hang),
    )  # fmt: skip
    check_only_the_bad_group_failed(run(pipeline), "or took more than reward.timeout_s=2")
