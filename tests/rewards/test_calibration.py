from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rlir_ray.idm.base import Reading
from rlir_ray.idm.vpt_heads import read_heads
from rlir_ray.rewards.calibration import check_alignment, check_gate, gate
from rlir_ray.spaces.fields import Axis, Choice, Uniform
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE, actions_from_buttons

GROUP_NAMES = ("forward_back", "jump")
NUM_CLIPS, NUM_FRAMES = 40, 9


class StripeReader:
    """A world in which each action moves a stripe by a step of its own, and a judge that reads the steps."""

    space = VPT_SPACE

    def read(self, frames: torch.Tensor, names: Sequence[str]) -> Reading:
        return read_heads(self.logits(frames), names)

    def to(self, device: torch.device | str, /) -> Self:
        return self

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
        actions.append(actions_from_buttons(buttons, np.zeros((NUM_FRAMES - 1, 2), np.float32)))
    return frames, actions


def test_actions_that_lead_into_their_frame_pass() -> None:
    alignment = check_alignment(StripeReader(), *_clips(), GROUP_NAMES)
    assert alignment.best_shift == 0
    assert alignment.macro_f1[0] == 1
    assert max(alignment.macro_f1[-1], alignment.macro_f1[1]) < 0.7


@pytest.mark.parametrize("shift", [-1, 1])
def test_actions_one_frame_off_are_refused_and_the_shift_is_named(shift: int) -> None:
    frames, actions = _clips()
    moved = [Actions(clip.space, np.roll(clip.values, shift, axis=0)) for clip in actions]
    # The action of frame k stands at frame k + shift.
    way_out = rf"set data.action_shift=\{shift:+d} "
    with pytest.raises(ValueError, match=rf"at shift \{shift:+d}, .*; {way_out}"):
        check_alignment(StripeReader(), frames, moved, GROUP_NAMES)


def test_a_model_that_reads_nothing_is_named_rather_than_the_recordings() -> None:
    class Blind(StripeReader):
        def logits(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
            # With this seed another shift scores higher by chance.
            generator = torch.Generator().manual_seed(4)
            found = super().logits(frames)
            return {head: torch.rand(values.shape, generator=generator) for head, values in found.items()}

    frames, actions = _clips()
    with pytest.raises(ValueError, match="too near to tell; give an inverse dynamics model that reads this world"):
        check_alignment(Blind(), frames, actions, GROUP_NAMES)


def test_a_reading_judge_passes_the_gate() -> None:
    scores = gate(StripeReader(), *_clips(), GROUP_NAMES)
    assert list(scores) == ["exact", "static", "blurred", "shuffled", "reversed", "wrong_action"]
    assert scores["exact"] == 1
    # Nothing moves: only the "none" classes are read.
    assert scores["static"] < 0.5
    check_gate(scores, "models.judge_idm")


def test_a_judge_that_ignores_the_frames_fails_the_gate() -> None:
    class Blind(StripeReader):
        def logits(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
            shape = frames.shape[:2]
            return {"buttons": torch.zeros(*shape, 20, 2), "camera": torch.zeros(*shape, 2, 11)}

    scores = gate(Blind(), *_clips(), GROUP_NAMES)
    with pytest.raises(ValueError, match=r"judge_idm must read real clips better.*static"):
        check_gate(scores, "models.judge_idm")


def test_blurred_keeps_shape_and_mean() -> None:
    from rlir_ray.rewards.corruptions import box_blur

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


DRIVE = ActionSpace(
    (
        Choice(name="horn", classes=("off", "on")),
        Axis(name="speed", low=-1, high=1, unit="m/s", quantizer=Uniform(num_bins=9)),
    )
)


class DriveReader:
    """A world whose picture has the brightness of the speed, and a judge that reads the speed in it."""

    space = DRIVE

    def read(self, frames: torch.Tensor, names: Sequence[str]) -> Reading:
        bins = ((frames[..., 0, 0, 0].long() - 100) // 10).clamp(0, 8)
        # Frame 0 and frames like the frame before show no motion, which is the middle bin.
        before = torch.cat([frames[:, :1], frames[:, :-1]], 1)
        bins = torch.where((frames == before).flatten(2).all(-1), 4, bins)
        classes = {"speed": bins, "horn": torch.zeros_like(bins)}
        tables = {
            field.name: torch.nn.functional.one_hot(classes[field.name], field.num_classes).float()
            for field in self.space.select(names)
        }
        return Reading(tables, {name: classes[name] for name in names})

    def to(self, device: torch.device | str, /) -> Self:
        return self


def _drives() -> tuple[npt.NDArray[np.uint8], list[Actions]]:
    rng = np.random.default_rng(0)
    speeds = rng.uniform(-1, 1, (NUM_CLIPS, NUM_FRAMES - 1)).astype(np.float32)
    actions = [Actions(DRIVE, np.stack([np.zeros_like(clip), clip], 1)) for clip in speeds]
    bins = np.stack([clip.classes_of(["speed"])[:, 0] for clip in actions])
    pixels = np.concatenate([np.full((NUM_CLIPS, 1), 50), 100 + 10 * bins], 1).astype(np.uint8)
    # The second pixel tells neighbouring frames of one speed apart.
    frames = np.repeat(pixels[:, :, None, None, None], 2, 3).repeat(3, 4)
    frames[:, ::2, :, 1] += 1
    return frames, actions


def test_a_graded_axis_is_scored_by_the_variance_it_explains() -> None:
    alignment = check_alignment(DriveReader(), *_drives(), ("horn", "speed"))
    # 9 bins leave 1 / 81 of the variance of a uniform speed; the horn never sounds and does not count.
    assert alignment.best_shift == 0 and alignment.macro_f1[0] == pytest.approx(1 - 1 / 81, abs=0.005)
    assert alignment.macro_f1[-1] == alignment.macro_f1[1] == 0
    scores = gate(DriveReader(), *_drives(), DRIVE.names)
    assert scores["static"] < 0.05 and scores["wrong_action"] == 0
    check_gate(scores, "models.judge_idm")


def test_the_error_of_a_graded_axis_names_its_score() -> None:
    frames, actions = _drives()
    moved = [Actions(clip.space, np.roll(clip.values, 1, axis=0)) for clip in actions]
    with pytest.raises(ValueError, match=r"a frame late \(R² 0.99 at shift \+1, 0.00 in place\); set"):
        check_alignment(DriveReader(), frames, moved, ("speed",))


def test_a_judge_of_another_space_is_refused_field_by_field() -> None:
    frames, actions = _drives()
    for check in (check_alignment, gate):
        with pytest.raises(ValueError, match=r"the inverse dynamics model, got other fields \(field 0: forward_back"):
            check(StripeReader(), frames, actions, ("speed",))
        with pytest.raises(ValueError, match="a field must be of the action space, got jump; name some of horn, speed"):
            check(DriveReader(), frames, actions, ("jump",))
        with pytest.raises(ValueError, match=r"world\.groups must name a field .* got none; name some of horn, speed"):
            check(DriveReader(), frames, actions, ())
