"""The true shift between actions and frames, of a little world in which it is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlir_ray.data.alignment import check_alignment, measure_alignment
from rlir_ray.data.vpt.pairs import write_recording
from rlir_ray.pretrain.command import main
from rlir_ray.spaces.fields import Axis, Choice, Uniform
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.spaces.vpt import BUTTON_INDEX, BUTTONS, actions_from_buttons, actions_from_events, events_from_actions


def moving_square(num_frames: int = 900, seed: int = 0) -> tuple[np.ndarray, Actions]:
    """A square goes left, right or rests; action k leads into frame k. Actions last for one to four frames."""
    random = np.random.default_rng(seed)
    moves = np.repeat(random.integers(-1, 2, num_frames), random.integers(1, 5, num_frames))[:num_frames]
    places = (8 + 2 * np.cumsum(moves)) % 24
    frames = np.full((num_frames, 16, 32, 3), 40, np.uint8)
    for frame, place in zip(frames, places, strict=True):
        frame[6:10, place : place + 6] = 220
    buttons = np.zeros((num_frames, len(BUTTONS)), np.bool_)
    buttons[:, BUTTON_INDEX["left"]], buttons[:, BUTTON_INDEX["right"]] = moves < 0, moves > 0
    return frames, actions_from_buttons(buttons, np.zeros((num_frames, 2), np.float32))


def shifted(recording: tuple[np.ndarray, Actions], shift: int) -> tuple[np.ndarray, Actions]:
    """Event k + shift leads into frame k; -1 is the order of a Gymnasium loop."""
    frames, actions = recording
    return frames, Actions(actions.space, np.roll(actions.values, shift, 0))


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_the_probe_finds_the_shift_of_the_events(shift: int) -> None:
    found = measure_alignment([shifted(moving_square(seed=seed), shift) for seed in (0, 1)], max_steps=250, seconds=60)
    assert found is not None and found.best_shift == shift and found.is_shifted == (shift != 0)
    assert found.scores[shift] > 0.8


def test_data_in_the_order_of_a_gymnasium_loop_ends_with_the_shift_and_the_way_out() -> None:
    recordings = [shifted(moving_square(), -1)]
    with pytest.raises(ValueError, match=r"must lead INTO frame k, .* event k-1 .*; set data.action_shift=-1") as error:
        check_alignment(recordings, "mine", way_out="data.action_shift={shift}", seconds=60, max_steps=250)
    assert "\n" not in str(error.value)
    assert check_alignment([moving_square()], "mine", seconds=60, max_steps=250) is not None


def test_actions_that_frames_do_not_show_are_no_shift() -> None:
    frames, _ = moving_square(seed=2)
    found = measure_alignment([(frames, moving_square(seed=3)[1])], max_steps=150, seconds=60)
    assert found is not None and not found.is_shifted


@pytest.mark.slow
def test_training_a_judge_on_the_order_of_a_gymnasium_loop_is_refused_before_it_begins(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        frames, actions = shifted(moving_square(), -1)
        write_recording(tmp_path / split / "a", frames, events_from_actions(actions))
    command = ["--data", str(tmp_path), "--out", str(tmp_path / "idm"), "--groups", "left_right", "--num-steps", "1"]
    with pytest.raises(ValueError, match=r"event k-1 .*; set --action-shift=-1, or --no-probe"):
        main("idm", command)
    assert not (tmp_path / "idm").exists()


def test_few_frames_and_still_players_tell_nothing() -> None:
    frames, actions = moving_square(100)
    assert measure_alignment([(frames, actions)]) is None
    frames, _ = moving_square()
    assert measure_alignment([(frames, actions_from_events([{}] * len(frames)))]) is None


# Names that a module of torch may not have; 41 bins, of which most are rare.
SLIDE = ActionSpace(
    (
        Choice(name="observation/flash", classes=("off", "on")),
        Axis(name="action.slide", low=-5, high=5, quantizer=Uniform(num_bins=41)),
    )
)


def sliding_square(num_frames: int = 900, seed: int = 0) -> tuple[np.ndarray, Actions]:
    """A square slides by a number of pixels; the number is another one in each frame."""
    random = np.random.default_rng(seed)
    slides = random.normal(0, 1.5, num_frames).clip(-5, 5)
    places = np.round(8 + np.cumsum(slides)).astype(int) % 24
    frames = np.full((num_frames, 16, 32, 3), 40, np.uint8)
    for frame, place in zip(frames, places, strict=True):
        frame[6:10, place : place + 6] = 220
    values = np.stack([np.zeros(num_frames), slides], 1).astype(np.float32)
    return frames, Actions(SLIDE, values)


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_the_probe_finds_the_shift_of_numbers(shift: int) -> None:
    recordings = [shifted(sliding_square(seed=seed), shift) for seed in (0, 1)]
    found = measure_alignment(recordings, max_steps=250, seconds=60)
    assert found is not None and found.best_shift == shift and found.is_shifted == (shift != 0)


def test_recordings_of_several_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match="each recording must have the action space of the first recording, got other"):
        measure_alignment([sliding_square(), moving_square()])
