"""The payload checks its shapes and knows its size."""

import dataclasses

import numpy as np
import pytest

from rlir_ray.actions import Actions
from rlir_ray.trajectory import EncodedVideo, Prompt, TrajectoryGroup


def _group(**changes):
    columns = {
        "prompt_id": "p", "group_id": 0, "seed": 1, "policy_version": 0, "tokens": np.zeros((2, 9), np.int32),
        "behavior_logprobs": np.zeros((2, 4), np.float32), "loss_mask": np.ones((2, 4), bool),
    }  # fmt: skip
    return TrajectoryGroup(**(columns | changes))


def test_group_counts_decisions_and_bytes():
    group = _group(loss_mask=np.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool))
    assert group.group_size == 2
    assert group.num_decisions == 6
    assert group.nbytes == 2 * 9 * 4 + 2 * 4 * 4 + 2 * 4


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": np.zeros(9, np.int32)},
        {"loss_mask": np.ones((2, 3), bool)},
        {"tokens": np.zeros((3, 9), np.int32)},
    ],
)
def test_group_of_mixed_shapes_is_refused(changes):
    with pytest.raises(ValueError, match="got"):
        _group(**changes)


def test_replaced_group_shares_its_arrays():
    group = _group()
    assert dataclasses.replace(group, policy_version=3).tokens is group.tokens


def test_prompt_needs_a_frame_to_generate():
    context = np.zeros((2, 4), np.uint16)
    assert Prompt(prompt_id="p", context=context, actions=Actions.from_events([{}] * 4)).num_frames == 3
    with pytest.raises(ValueError, match="at least one frame"):
        Prompt(prompt_id="p", context=context, actions=Actions.from_events([{}]))


def test_video_has_one_action_less_than_frames():
    video = {"group_id": 0, "tokens": np.zeros((2, 5, 4), np.uint16), "num_context": 1}
    assert EncodedVideo(**video, actions=Actions.from_events([{}] * 4)).num_frames == 4
    with pytest.raises(ValueError, match="n - 1 actions"):
        EncodedVideo(**video, actions=Actions.from_events([{}] * 5))
