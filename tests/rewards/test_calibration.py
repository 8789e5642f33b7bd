from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rlir_ray.rewards.calibration import check_alignment, check_gate, gate
from rlir_ray.spaces.actions import Actions

GROUP_NAMES = ("forward_back", "jump")
NUM_CLIPS, NUM_FRAMES = 40, 9


class StripeReader:
    """A world in which each action moves a stripe by a step of its own, and a judge that reads the steps."""

    def logits(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        position = frames[..., 0, :, 0].float().argmax(-1)  # [B, F]
        step = torch.zeros_like(position)
        step[:, 1:] = (position[:, 1:] - position[:, :-1]) % frames.shape[3]
        buttons = torch.zeros(*position.shape, 20, 2)
        buttons[..., 1] = -20
        for column, held in ((2, step % 3 == 1), (1, step % 3 == 2), (3, step >= 3)):
            buttons[..., column, 1] = torch.where(held, 20.0, -20.0)
        return {"buttons": buttons, "camera": torch.zeros(*position.shape, 2, 11)}


def _clips(seed: int = 0) -> tuple[npt.NDArray[np.uint8], list[Actions]]:
    rng = np.random.default_rng(seed)
    frames = np.zeros((NUM_CLIPS, NUM_FRAMES, 4, 32, 3), np.uint8)
    actions = []
    for clip in range(NUM_CLIPS):
        moves, jumps = rng.integers(0, 3, NUM_FRAMES - 1), rng.integers(0, 2, NUM_FRAMES - 1)
        positions = np.cumsum([rng.integers(0, 32), *(moves + 3 * jumps)]) % 32
        frames[clip, np.arange(NUM_FRAMES), :, positions] = 255
        buttons = np.zeros((NUM_FRAMES - 1, 23), np.bool_)
        buttons[:, 2], buttons[:, 1], buttons[:, 3] = moves == 1, moves == 2, jumps == 1
        actions.append(Actions(buttons, np.zeros((NUM_FRAMES - 1, 2), np.float32)))
    return frames, actions


def test_actions_that_lead_into_their_frame_pass() -> None:
    alignment = check_alignment(StripeReader(), *_clips(), GROUP_NAMES)
    assert alignment.best_shift == 0
    assert alignment.macro_f1[0] == 1
    assert max(alignment.macro_f1[-1], alignment.macro_f1[1]) < 0.7


@pytest.mark.parametrize("shift", [-1, 1])
def test_actions_one_frame_off_are_refused_and_the_shift_is_named(shift: int) -> None:
    frames, actions = _clips()
    moved = [Actions(np.roll(clip.buttons, shift, axis=0), clip.camera) for clip in actions]
    # The action of frame k stands at frame k + shift.
    way_out = rf"set data.action_shift=\{shift:+d} "
    with pytest.raises(ValueError, match=rf"at shift \{shift:+d}, .*; {way_out}"):
        check_alignment(StripeReader(), frames, moved, GROUP_NAMES)


def test_a_model_that_reads_nothing_is_named_rather_than_the_recordings() -> None:
    class Blind(StripeReader):
        def logits(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
            generator = torch.Generator().manual_seed(3)
            found = super().logits(frames)
            return {head: torch.rand(values.shape, generator=generator) for head, values in found.items()}

    frames, actions = _clips()
    try:
        check_alignment(Blind(), frames, actions, GROUP_NAMES)
    except ValueError as error:
        assert "too near to tell; give an inverse dynamics model that reads this world" in str(error)


def test_a_reading_judge_passes_the_gate() -> None:
    scores = gate(StripeReader(), *_clips(), GROUP_NAMES)
    assert list(scores) == ["exact", "static", "blurred", "shuffled", "reversed", "wrong_action"]
    assert scores["exact"] == 1
    # Nothing moves: only the "none" classes are read.
    assert scores["static"] < 0.5
    check_gate(scores, "models.judge_idm")


def test_a_judge_that_ignores_the_frames_fails_the_gate() -> None:
    class Blind:
        def logits(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
            shape = frames.shape[:2]
            return {"buttons": torch.zeros(*shape, 20, 2), "camera": torch.zeros(*shape, 2, 11)}

    scores = gate(Blind(), *_clips(), GROUP_NAMES)
    with pytest.raises(ValueError, match=r"judge_idm must read real clips better.*static"):
        check_gate(scores, "models.judge_idm")


def test_blurred_keeps_shape_and_mean() -> None:
    from rlir_ray.rewards.calibration import box_blur

    frames = np.full((1, 2, 6, 8, 3), 77, np.uint8)
    np.testing.assert_array_equal(box_blur(frames, 5), frames)


def test_groups_that_never_occur_lift_no_score() -> None:
    # Static clips: only "none" is read. Groups of which nothing is commanded would add 1.0 each.
    few, many = (gate(StripeReader(), *_clips(), groups) for groups in (GROUP_NAMES, (*GROUP_NAMES, "drop", "hotbar")))
    assert many == few
    narrow = check_alignment(StripeReader(), *_clips(), GROUP_NAMES)
    assert check_alignment(StripeReader(), *_clips(), (*GROUP_NAMES, "drop", "hotbar")) == narrow


def test_clips_in_which_nothing_occurs_are_no_test_of_a_judge() -> None:
    frames, actions = _clips()
    with pytest.raises(ValueError, match="must use an action group, got none of drop,inventory; give"):
        check_alignment(StripeReader(), frames, actions, ("drop", "inventory"))
    scores = gate(StripeReader(), frames, actions, ("drop", "inventory"))
    with pytest.raises(ValueError, match="must be tried on clips in which an action group of the world occurs"):
        check_gate(scores, "models.judge_idm")
