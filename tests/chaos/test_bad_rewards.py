"""R7 and R8: groups without usable rewards, or whose scoring never ends, fail with their causes."""

import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from benchmarks.stages import SleepReward
from tests.chaos.test_run import ledger_of, make_pipeline, run
from tests.in_process import PER_STEP, run_in_process, stage_config

NUM_STEPS = 4


class BadReward(SleepReward):
    """Random rewards; `spoils` change those of some groups.

    Args:
        spoils: group id -> what becomes of the group's scores.
    """

    def __init__(self, spoils) -> None:
        super().__init__(seconds=0.005)
        self.spoils = spoils

    def score(self, videos):
        scores = super().score(videos)
        for index, video in enumerate(videos):
            if video.group_id in self.spoils:
                scores[index : index + 1] = self.spoils[video.group_id](scores[index])
        return scores


def with_rewards(change):
    """A score whose frame rewards are changed."""
    return lambda score: [replace(score, frame_rewards=change(score.frame_rewards))]


def one_is(value):
    return with_rewards(lambda rewards: np.where(np.indices(rewards.shape).sum(0) == 0, value, rewards))


def hang(score):
    time.sleep(3600)


BAD = {
    1: (one_is(np.nan), "rewards must be finite numbers, got NaN or infinity; check the reward"),
    2: (one_is(-np.inf), "rewards must be finite numbers, got NaN or infinity; check the reward"),
    5: (with_rewards(lambda rewards: rewards[:, :0]), "rewards must be finite numbers, got none"),
    6: (with_rewards(lambda rewards: rewards[:0]), "rewards must be finite numbers, got none"),
    9: (lambda score: [], "a reward must score every video, got 0 scores of 1 videos"),
    10: (lambda score: [None], "a reward must give RewardScores for every video, got NoneType"),
    13: (with_rewards(lambda rewards: rewards[:, :-1]), "frame rewards of group 13 must be (8, 8)"),
}
"""Group id -> how its scores are corrupted, and its cause of failure."""


def check_only_bad_groups_failed(ledger, causes):
    ledger.check()
    states = {group_id: ledger[group_id].state for group_id in range(ledger.next_group_id)}
    # Other groups take their places.
    assert states == dict.fromkeys(range(NUM_STEPS * PER_STEP + len(causes)), "trained") | dict.fromkeys(
        causes, "failed"
    )
    for group_id, cause in causes.items():
        assert cause in ledger[group_id].cause and "\n" not in ledger[group_id].cause


@pytest.mark.timeout(120)
def test_groups_without_usable_rewards_fail_with_their_causes_and_are_replaced(ray_cluster, tmp_path):
    spoils = {group_id: spoil for group_id, (spoil, _) in BAD.items()}
    config = stage_config(tmp_path, f"train.num_steps={NUM_STEPS}", "train.max_failed_fraction=0.9")
    state = run_in_process(config, tmp_path, partial(BadReward, spoils))
    assert state.step == NUM_STEPS
    check_only_bad_groups_failed(state.ledger, {group_id: cause for group_id, (_, cause) in BAD.items()})


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_group_whose_scoring_always_hangs_fails_with_its_cause_and_the_run_finishes(ray_cluster, tmp_path):
    pipeline = make_pipeline(
        tmp_path,
        f"train.num_steps={NUM_STEPS}",
        "reward.num_replicas=2",
        "reward.timeout_s=2",
        make_reward=partial(BadReward, {5: hang}),
    )
    result = run(pipeline)
    assert result.num_steps == NUM_STEPS
    cause = "reward replicas in a row died over this group, or took more than reward.timeout_s=2"
    check_only_bad_groups_failed(ledger_of(result), {5: cause})
