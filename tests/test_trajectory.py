"""The payload checks its shapes and knows its size."""

import dataclasses
import json

import numpy as np
import pytest

from rlir_ray.spaces.vpt import VPT_SPACE
from rlir_ray.trajectory import (
    EncodedVideo,
    FlowRecord,
    Prompt,
    RewardScores,
    TokenRecord,
    TrajectoryGroup,
    check_scores,
    stored_codes,
)
from tests.own_rewards import small_video


def _group(**changes):
    columns = {
        "prompt_id": "p",
        "group_id": 0,
        "seed": 1,
        "policy_version": 0,
        "record": TokenRecord(np.zeros((2, 9), np.int32)),
        "behavior_logprobs": np.zeros((2, 4), np.float32),
        "loss_mask": np.ones((2, 4), bool),
    }
    return TrajectoryGroup(**(columns | changes))


def test_group_counts_decisions_and_bytes():
    group = _group(loss_mask=np.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool))
    assert group.group_size == 2
    assert group.num_decisions == 6
    assert group.nbytes == 2 * 9 * 4 + 2 * 4 * 4 + 2 * 4


@pytest.mark.parametrize(
    "changes",
    [
        {"record": TokenRecord(np.zeros((9,), np.int32))},
        {"loss_mask": np.ones((2, 3), bool)},
        {"record": TokenRecord(np.zeros((3, 9), np.int32))},
    ],
)
def test_group_of_mixed_shapes_is_refused(changes):
    with pytest.raises(ValueError, match="got"):
        _group(**changes)


def test_recorded_frames_follow_the_context():
    actions = VPT_SPACE.nothing(4)
    prompt = Prompt(
        prompt_id="p", context=np.zeros((2, 6), np.uint16), actions=actions, recorded=np.ones((3, 6), np.uint16)
    )
    np.testing.assert_array_equal(prompt.recorded_clip[:, 0], [0, 0, 1, 1, 1])
    assert prompt.nbytes - dataclasses.replace(prompt, recorded=None).nbytes == 3 * 6 * 2
    with pytest.raises(ValueError, match=r"a recorded future must be \(3, 6\), got \(4, 6\)"):
        dataclasses.replace(prompt, recorded=np.ones((4, 6), np.uint16))


def test_replaced_group_shares_its_arrays():
    group = _group()
    assert dataclasses.replace(group, policy_version=3).record.tokens is group.record.tokens


def test_prompt_needs_a_frame_to_generate():
    context = np.zeros((2, 4), np.uint16)
    assert Prompt(prompt_id="p", context=context, actions=VPT_SPACE.nothing(4)).num_frames == 3
    with pytest.raises(ValueError, match="at least one frame"):
        Prompt(prompt_id="p", context=context, actions=VPT_SPACE.nothing(1))


def test_video_has_one_action_less_than_frames():
    video = {"group_id": 0, "codes": np.zeros((2, 5, 4), np.uint16), "num_context": 1}
    assert EncodedVideo(**video, actions=VPT_SPACE.nothing(4)).num_frames == 4
    with pytest.raises(ValueError, match="n - 1 actions"):
        EncodedVideo(**video, actions=VPT_SPACE.nothing(5))


def test_flow_group_counts_bytes_and_refuses_columns_of_another_size():
    record = FlowRecord(
        latents=np.zeros((2, 3, 3, 4, 2, 2), np.float32),
        levels=np.zeros((2, 3, 3), np.float32),
        history=np.zeros((2, 3, 4, 2, 2), np.float32),
        history_levels=np.zeros((2, 3), np.float32),
        actions=np.zeros((2, 4, 9), np.uint8),
    )
    columns = {"behavior_logprobs": np.zeros((2, 6), np.float32), "loss_mask": np.ones((2, 6), bool)}
    group = _group(record=record, **columns)
    assert group.num_decisions == 12
    assert group.nbytes == 4 * 2 * (9 * 16 + 9 + 3 * 16 + 3) + 2 * 36 + 5 * 12
    with pytest.raises(ValueError, match="same G"):
        _group(record=dataclasses.replace(record, history=record.history[:1]), **columns)
    # DiffusionNFT: nothing but the clean frames, a decision a frame.
    clean = dataclasses.replace(record, latents=record.latents[:, :, :1], levels=record.levels[:, :, :1])
    assert _group(record=clean, behavior_logprobs=None, loss_mask=np.ones((2, 3), bool)).num_decisions == 6


@pytest.mark.parametrize("rewards", [[[np.nan]], [[np.inf]], np.zeros((0, 3))])
def test_rewards_that_are_no_numbers_are_a_failure(rewards):
    scores = RewardScores(group_id=1, frame_rewards=np.array(rewards, np.float32))
    assert scores.failure.startswith("rewards must be finite numbers, got")
    assert not RewardScores(group_id=1, frame_rewards=np.zeros((2, 3), np.float32)).failure


def test_scores_survive_json_and_those_without_null_classes_are_read():
    scores = RewardScores(
        group_id=1,
        frame_rewards=np.array([[0.5, 1]], np.float32),
        rules={"groups": 0.75},
        confusion={"gear": np.eye(3, dtype=np.int64), "side": np.eye(2, dtype=np.int64)},
        null_classes={"gear": 1, "side": None},
        axis_errors={"steer": 0.125},
    )
    content = json.loads(json.dumps(scores.to_json()))
    again = RewardScores.from_json(content)
    assert again.null_classes == scores.null_classes and again.rules == scores.rules
    assert again.axis_errors == scores.axis_errors
    assert again.confusion["gear"].tolist() == scores.confusion["gear"].tolist()
    del content["null_classes"]
    assert RewardScores.from_json(content).null_classes == {}


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "a reward must score every video, got 0 scores of 1 videos"),
        ([np.zeros((2, 3))], "a reward must give RewardScores for every video, got ndarray"),
        ([RewardScores(group_id=8, frame_rewards=np.ones((2, 3)))], "in the order of the videos, got 8 for 7"),
        ([RewardScores(group_id=7, frame_rewards=np.ones((2, 1)))], r"group 7 must be \(2, 3\), got \(2, 1\)"),
        ([RewardScores(group_id=7, frame_rewards=np.ones((1, 3)))], r"group 7 must be \(2, 3\), got \(1, 3\)"),
    ],
)
def test_a_reward_scores_every_clip_and_frame_of_every_video(scores, message):
    with pytest.raises(ValueError, match=message):
        check_scores(scores, [small_video(7)])


def test_a_group_that_could_not_be_scored_needs_no_frames():
    check_scores(
        [RewardScores.failed(7, "dark"), RewardScores(group_id=8, frame_rewards=np.ones((2, 3)))],
        [small_video(7), small_video(8)],
    )


@pytest.mark.parametrize(("largest", "dtype"), [(65_535, np.uint16), (65_536, np.uint32), (4_294_967_295, np.uint32)])
def test_tokens_are_stored_in_a_type_that_holds_the_largest(largest: int, dtype: type) -> None:
    tokens = np.array([[0, largest]])
    stored = stored_codes(tokens)
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored, tokens)


@pytest.mark.parametrize("token", [-1, 4_294_967_296])
def test_tokens_that_no_type_holds_are_refused(token: int) -> None:
    with pytest.raises(ValueError, match=str(token)):
        stored_codes(np.array([5, token]))


def test_latents_beyond_float16_keep_their_values() -> None:
    assert stored_codes(np.array([1.0, 65_504.0], np.float32)).dtype == np.float16
    np.testing.assert_array_equal(stored_codes(np.array([1.0, 7e4], np.float32)), np.array([1, 7e4], np.float32))
    # What is not finite already is not widened for.
    assert stored_codes(np.array([np.nan, np.inf], np.float32)).dtype == np.float16
