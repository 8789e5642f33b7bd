from __future__ import annotations

import numpy as np
import pytest
import torch

from rlir_ray.data.recordings import Recording
from rlir_ray.pretrain.idm_windows import LabelledFrames, augment, draw_windows, label_frames, mirror
from rlir_ray.spaces.actions import BUTTON_INDEX, VPT_CAMERA, Actions
from tests.fakes import events_of


def grey_frames() -> LabelledFrames:
    shape = (20, 4, 4, 3)
    zeros = np.zeros((20, 20), np.int64)
    return LabelledFrames(np.full(shape, 50, np.uint8), zeros, np.full((20, 2), 5), np.array([0, 20]))


def test_windows_stay_within_one_recording_and_keep_their_labels() -> None:
    # Every frame of recording r has the value 10 r + 5 and jump pressed where r is 1.
    data = []
    for index in range(3):
        buttons = np.zeros((6, 23), np.bool_)
        buttons[:, BUTTON_INDEX["jump"]] = index == 1
        actions = Actions(buttons, np.zeros((6, 2), np.float32))
        frames = np.full((6, 4, 4, 3), 10 * index + 5, np.uint8)
        data.append(Recording(name=str(index), frames=frames, events=events_of(actions), actions=actions))
    frames, buttons, camera = draw_windows(label_frames(data), np.random.default_rng(0), 64, 5)
    values = frames.flatten(1)
    assert (values == values[:, :1]).all() and set(values[:, 0].tolist()) == {5, 15, 25}
    assert ((buttons[..., BUTTON_INDEX["jump"]] == 1).all(1) == (values[:, 0] == 15)).all()
    assert (camera == VPT_CAMERA.null_bin).all()


def test_mirrored_clips_turn_the_other_way() -> None:
    buttons, camera = np.zeros((2, 3, 20), np.int64), np.full((2, 3, 2), 8)
    buttons[:, :, BUTTON_INDEX["left"]] = 1
    turned, turned_camera = mirror(buttons, camera, np.array([True, False]))
    assert turned[0, :, BUTTON_INDEX["right"]].all() and not turned[0, :, BUTTON_INDEX["left"]].any()
    assert turned_camera[0].tolist() == [[8, 2]] * 3
    assert (turned[1] == buttons[1]).all() and (turned_camera[1] == camera[1]).all()


def test_augmentation_is_seeded_and_off_at_strength_zero() -> None:
    frames = torch.full((2, 3, 16, 16, 3), 100, dtype=torch.uint8)
    draws = [augment(frames, torch.Generator().manual_seed(seed), 1.0) for seed in (1, 1, 2)]
    assert draws[0].shape == frames.shape and draws[0].dtype == torch.uint8
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert augment(frames, torch.Generator(), 0.0) is frames


def test_a_share_of_the_windows_is_read_through_the_tokenizer() -> None:
    frames, _, _ = draw_windows(
        grey_frames(), np.random.default_rng(0), 8, 5, reconstructed_share=0.25, reconstruct=lambda frames: frames + 1
    )
    assert frames.flatten(1)[:, 0].tolist() == [51, 51, 50, 50, 50, 50, 50, 50]


def test_windows_longer_than_the_recordings_are_refused() -> None:
    with pytest.raises(ValueError, match="a recording must hold 21 frames, the longest has 20"):
        draw_windows(grey_frames(), np.random.default_rng(0), 1, 21)
