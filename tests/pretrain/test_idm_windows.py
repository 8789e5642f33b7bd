from __future__ import annotations

import numpy as np
import pytest
import torch

from rlir_ray.data.recordings import Recording
from rlir_ray.idm.heads import FieldHeads
from rlir_ray.idm.vpt_heads import VptHeads
from rlir_ray.pretrain.idm_windows import LabelledFrames, augment, draw_windows, label_frames, mirror
from rlir_ray.spaces.fields import Axis, Choice, Uniform
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.spaces.vpt import (
    BUTTON_INDEX,
    VPT_CAMERA,
    actions_from_buttons,
    actions_from_events,
    buttons_of,
    events_from_actions,
)

HEADS = VptHeads(1, 1.0)


def grey_frames() -> LabelledFrames:
    frames = np.full((20, 4, 4, 3), 50, np.uint8)
    labels = HEADS.labels(actions_from_events([{}] * 20))
    return LabelledFrames(frames, labels, labels, np.array([0, 20]))


def test_windows_stay_within_one_recording_and_keep_their_labels() -> None:
    # Every frame of recording r has the value 10 r + 5 and jump pressed where r is 1.
    data = []
    for index in range(3):
        buttons = np.zeros((6, 23), np.bool_)
        buttons[:, BUTTON_INDEX["jump"]] = index == 1
        actions = actions_from_buttons(buttons, np.zeros((6, 2), np.float32))
        frames = np.full((6, 4, 4, 3), 10 * index + 5, np.uint8)
        data.append(Recording(name=str(index), frames=frames, events=events_from_actions(actions), actions=actions))
    frames, labels = draw_windows(label_frames(data, HEADS), np.random.default_rng(0), 64, 5)
    buttons, camera = labels["buttons"], labels["camera"]
    values = frames.flatten(1)
    assert (values == values[:, :1]).all() and set(values[:, 0].tolist()) == {5, 15, 25}
    assert ((buttons[..., BUTTON_INDEX["jump"]] == 1).all(1) == (values[:, 0] == 15)).all()
    assert (camera == VPT_CAMERA.null_class).all()


def left_turn(num_frames: int) -> Actions:
    """Left held, yaw and pitch in bin 8."""
    buttons = np.zeros((num_frames, 23), np.bool_)
    buttons[:, BUTTON_INDEX["left"]] = True
    return actions_from_buttons(buttons, np.full((num_frames, 2), VPT_CAMERA.centres(8), np.float32))


def test_mirrored_clips_turn_the_other_way() -> None:
    actions = left_turn(3)
    turned = HEADS.labels(mirror(actions))
    buttons, camera = HEADS.labels(actions).values()
    assert turned["buttons"][:, BUTTON_INDEX["right"]].all() and not turned["buttons"][:, BUTTON_INDEX["left"]].any()
    assert turned["camera"].tolist() == [[8, 2]] * 3
    assert buttons_of(actions.classes)[:, BUTTON_INDEX["left"]].all() and camera.tolist() == [[8, 8]] * 3
    assert buttons[:, BUTTON_INDEX["left"]].all()


def test_half_of_the_windows_are_mirrored_with_their_labels() -> None:
    frames = np.zeros((9, 4, 4, 3), np.uint8)
    frames[:, :, :2] = 200  # bright on the left
    recording = Recording(name="r", frames=frames, events=[], actions=left_turn(9))
    pictures, labels = draw_windows(label_frames([recording], HEADS), np.random.default_rng(0), 32, 4)
    is_mirrored = pictures[:, 0, 0, 0, 0] == 0
    assert 8 < int(is_mirrored.sum()) < 24
    assert (labels["camera"][..., 1] == torch.where(is_mirrored, 2, 8)[:, None]).all()
    assert (labels["buttons"][..., BUTTON_INDEX["right"]] == is_mirrored[:, None]).all()


def test_no_window_is_mirrored_where_a_mirrored_picture_shows_unknown_actions() -> None:
    space = ActionSpace((Choice(name="fire", classes=("no", "yes")),))
    frames = np.zeros((9, 4, 4, 3), np.uint8)
    frames[:, :, :2] = 200
    recording = Recording(name="r", frames=frames, events=[], actions=space.nothing(9))
    data = label_frames([recording], FieldHeads(space, 1, 1.0))
    pictures, labels = draw_windows(data, np.random.default_rng(0), 32, 4)
    assert data.mirrored is None and (pictures[:, 0, 0, 0, 0] == 200).all() and labels["fire"].shape == (32, 4, 1)


def test_mirrored_numbers_take_the_opposite_bin_within_their_range() -> None:
    axis = Axis(name="steer", low=-1, high=1, quantizer=Uniform(num_bins=9), direction="right")
    turned = mirror(Actions(ActionSpace((axis,)), np.array([[-1], [0.3], [1]], np.float32)))
    np.testing.assert_allclose(turned.values[:, 0], [8 / 9, -2 / 9, -8 / 9], rtol=1e-6)


def test_windows_are_resized_to_the_model() -> None:
    frames, _ = draw_windows(grey_frames(), np.random.default_rng(0), 2, 5, size=(8, 12), augmentation=1.0)
    assert frames.shape == (2, 5, 8, 12, 3)


def test_augmentation_is_seeded_and_off_at_strength_zero() -> None:
    frames = torch.full((2, 3, 16, 16, 3), 100, dtype=torch.uint8)
    draws = [augment(frames, torch.Generator().manual_seed(seed), 1.0) for seed in (1, 1, 2)]
    assert draws[0].shape == frames.shape and draws[0].dtype == torch.uint8
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert augment(frames, torch.Generator(), 0.0) is frames


def test_a_share_of_the_windows_is_read_through_the_tokenizer() -> None:
    frames, _ = draw_windows(
        grey_frames(), np.random.default_rng(0), 8, 5, reconstructed_share=0.25, reconstruct=lambda frames: frames + 1
    )
    assert frames.flatten(1)[:, 0].tolist() == [51, 51, 50, 50, 50, 50, 50, 50]


def test_windows_longer_than_the_recordings_are_refused() -> None:
    with pytest.raises(ValueError, match="a recording must hold 21 frames, the longest has 20"):
        draw_windows(grey_frames(), np.random.default_rng(0), 1, 21)
