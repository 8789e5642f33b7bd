"""MineWorld's evaluation, against the published evaluator's numbers and by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlir_ray.evaluation import action_following
from rlir_ray.evaluation.mineworld import (
    actions_clip,
    classes_clips,
    following_in_use,
    logits_clips,
)
from rlir_ray.evaluation.policy_row import PolicyRow
from rlir_ray.spaces.vpt import BUTTON_INDEX, BUTTONS, VPT_CAMERA, actions_from_events

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "action_following_metric.json").read_text())
PREDICTED, RECORDED = ([video[side] for video in GOLDEN["videos"]] for side in ("predicted", "recorded"))


def row_lines(following: dict[str, Any] | None, in_use: dict[str, Any] | None = None, **figures: Any) -> list[str]:
    return PolicyRow(
        num_clips=1, following=following, following_in_use=in_use, **{"fps": 1, "psnr": 20, "ssim": 1, **figures}
    ).lines()


def make_clip(num_frames: int, **columns: Any) -> dict[str, Any]:
    """A clip with nothing pressed but `columns`."""
    still = {name: [0] * num_frames for name in BUTTONS}
    return {**still, "camera": [[0.0, 0.0]] * num_frames, **columns}


def test_every_figure_equals_the_published_evaluators() -> None:
    found = action_following(PREDICTED, RECORDED)
    assert list(found) == ["per_task", "mean"]
    assert list(found["per_task"]) == list(GOLDEN["per_task"])
    for task, expected in GOLDEN["per_task"].items():
        assert found["per_task"][task] == pytest.approx(expected, abs=1e-12, rel=0)
    assert found["mean"] == pytest.approx(GOLDEN["mean"], abs=1e-12, rel=0)


def test_arrays_and_booleans_count_as_lists_do() -> None:
    def as_arrays(clip: dict[str, Any]) -> dict[str, Any]:
        return {name: np.array(values, float if name == "camera" else bool) for name, values in clip.items()}

    expected = action_following(PREDICTED, RECORDED)
    assert action_following([as_arrays(clip) for clip in PREDICTED], RECORDED) == expected
    json.dumps(expected)


def test_a_three_way_task_by_hand() -> None:
    # Recorded classes 1 1 2 0 (back, back, forward, none), read 1 2 2 1.
    recorded = make_clip(4, back=[1, 1, 0, 0], forward=[0, 0, 1, 0])
    predicted = make_clip(4, back=[1, 0, 0, 1], forward=[0, 1, 1, 0])
    scores = action_following([predicted], [recorded])["per_task"]["back/forward"]
    # Hits: none 0, back 1, forward 1. Read: 0, 2, 2 times. Recorded: 1, 2, 1 times.
    # Precision 0 (0/0), 1/2, 1/2; recall 0, 1/2, 1; F1 = 2 hits / (read + recorded) = 0, 2/4, 2/3.
    assert scores["precision_macro"] == pytest.approx((0 + 1 / 2 + 1 / 2) / 3)
    assert scores["recall_macro"] == pytest.approx((0 + 1 / 2 + 1) / 3)
    assert scores["f1_macro"] == pytest.approx((0 + 1 / 2 + 2 / 3) / 3)
    assert {scores[f"{figure}_micro"] for figure in ("precision", "recall", "f1")} == {2 / 4}


def test_classes_that_never_occur_do_not_count_but_those_only_read_do() -> None:
    recorded = make_clip(4)
    predicted = make_clip(4, jump=[0, 0, 0, 1], left=[0, 0, 0, 1])
    found = action_following([predicted], [recorded])["per_task"]
    # drop: "pressed" occurs nowhere, "released" is always right.
    assert found["drop"]["f1_macro"] == 1
    # jump: released has precision 3/3, recall 3/4, F1 6/7; pressed occurs as a false alarm only, all 0.
    assert found["jump"]["precision_macro"] == pytest.approx((1 + 0) / 2)
    assert found["jump"]["recall_macro"] == pytest.approx((3 / 4 + 0) / 2)
    assert found["jump"]["f1_macro"] == pytest.approx((6 / 7 + 0) / 2)
    # left/right: the same two classes of three; right occurs nowhere. class_num stays that of the task.
    assert found["left/right"] == {**found["jump"], "class_num": 3}


def test_both_buttons_of_a_pair_mean_none() -> None:
    found = action_following([make_clip(1, left=[1], right=[1])], [make_clip(1)])
    assert found["per_task"]["left/right"]["f1_macro"] == 1


def test_contradictions_between_tasks_are_taken_as_they_come() -> None:
    both = make_clip(2, jump=[1, 0], sneak=[1, 0])
    found = action_following([both], [make_clip(2, jump=[1, 0])])["per_task"]
    assert found["jump"]["f1_micro"] == 1
    assert found["sneak/sprint"]["f1_micro"] == 0.5


def test_camera_loss_counts_bins_of_both_axes_over_all_frames() -> None:
    # Bins: 0 degrees 5, 1 degree 6, -10 and -40 degrees 0. Clip 1: |6 - 5|, |5 - 5|; clip 2: |0 - 5|, |0 - 0|, 0, 0.
    predicted = [make_clip(1, camera=[[1.0, 0.0]]), make_clip(2, camera=[[-10.0, -40.0], [0.0, 0.0]])]
    recorded = [make_clip(1), make_clip(2, camera=[[0.0, -10.0], [0.2, -0.2]])]
    assert action_following(predicted, recorded)["mean"]["camera_loss"] == pytest.approx(6 / 6)


def test_means_are_over_the_seven_tasks() -> None:
    found = action_following([make_clip(2, drop=[1, 0])], [make_clip(2)])["mean"]
    # drop alone is wrong: accuracy 1/2; released has F1 2/3, pressed 0.
    assert found["f1_micro"] == pytest.approx((6 + 1 / 2) / 7)
    assert found["f1_macro"] == pytest.approx((6 + 1 / 3) / 7)


@pytest.mark.parametrize(
    ("predicted", "recorded", "message"),
    [
        ([make_clip(2)], [], "equally many clips, >= 1, got 1 and 0"),
        ([], [], "equally many clips, >= 1, got 0 and 0"),
        ([make_clip(2)], [make_clip(3)], "equally many frames, got 2 and 3 in clip 0"),
        ([make_clip(2, jump=[0])], [make_clip(2)], r"predicted\[0\] has jump \[1\] and 2 frames"),
        ([make_clip(2)], [make_clip(2, use=[0, 2])], r"must be 0 or 1, recorded\[0\] has use \[2\] with \[0, 2\]"),
        ([make_clip(2, camera=[0, 1])], [make_clip(2)], r"finite degrees \[F, 2\] with F >= 1, predicted\[0\]"),
        ([make_clip(1, camera=[[0, np.nan]])], [make_clip(1)], "finite degrees"),
        ([make_clip(0)], [make_clip(0)], "F >= 1"),
    ],
)
def test_clips_that_do_not_fit_are_refused_in_one_line(predicted: list, recorded: list, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        action_following(predicted, recorded)
    assert "\n" not in str(error.value)


def test_a_missing_button_is_named() -> None:
    clip = make_clip(2)
    del clip["drop"], clip["ESC"]  # ESC is not judged
    with pytest.raises(ValueError, match=r"recorded\[1\] lacks \['drop'\]"):
        action_following([make_clip(2)] * 2, [make_clip(2), clip])


# ---------------------------------------------------------------------------------------------------------------------
# Clips


def test_actions_become_a_clip_of_degrees() -> None:
    event = {"keyboard": {"keys": ["key.keyboard.w"]}, "mouse": {"dx": 20, "dy": -9, "buttons": [0]}}
    clip = actions_clip(actions_from_events([{}, event]))
    assert [name for name, values in clip.items() if name != "camera" and values.any()] == ["attack", "forward"]
    assert clip["forward"].tolist() == [0, 1]
    # 0.15 degrees a pixel: -9 pixels down are -1.35 of pitch, 20 to the right 3 of yaw.
    assert clip["camera"].tolist() == [[0, 0], [-1.35, 3.0]]
    assert action_following([clip], [clip])["mean"]["f1_macro"] == 1


def test_whole_degrees_are_those_of_mineworlds_recordings() -> None:
    cases = json.loads((Path(__file__).parents[1] / "golden" / "mineworld_actions.json").read_text())["cases"]
    clip = actions_clip(actions_from_events([case["event"] for case in cases]), whole_degrees=True)
    assert set(clip) == set(cases[0]["action"])
    # The evaluator reads no hotbar, and of several slots that are held the first one counts.
    slots = [name for name in BUTTONS if name.startswith("hotbar")]
    for case in cases:
        case["action"] |= dict.fromkeys([name for name in slots if case["action"][name]][1:], 0)
    for name, values in clip.items():
        np.testing.assert_array_equal(values, [case["action"][name] for case in cases])


def test_readings_of_the_heads_become_clips() -> None:
    buttons = np.zeros((2, 3, 20), np.int64)
    buttons[1, 2, [BUTTON_INDEX["forward"], BUTTON_INDEX["back"]]] = 1
    camera = np.full((2, 3, 2), VPT_CAMERA.null_class)
    camera[0, 1] = 0, 6
    first, second = classes_clips(buttons, camera)
    assert set(first) == {*BUTTONS, "camera"}
    assert first["camera"][1] == pytest.approx([-10, 0.615], abs=1e-3)
    assert second["forward"].tolist() == second["back"].tolist() == [0, 0, 1]
    assert not any(clip[name].any() for clip in (first, second) for name in ("swapHands", "pickItem", "ESC"))
    assert np.array_equal(VPT_CAMERA.bins(first["camera"]), camera[0])


def test_logits_are_read_at_each_heads_most_probable_value() -> None:
    random = torch.Generator().manual_seed(0)
    logits = {
        "buttons": torch.randn(2, 3, 20, 2, generator=random),
        "camera": torch.randn(2, 3, 2, 11, generator=random),
    }
    expected = classes_clips(logits["buttons"].argmax(-1).numpy(), logits["camera"].argmax(-1).numpy())
    np.testing.assert_equal(logits_clips(logits), expected)
    logits["camera"][0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        logits_clips(logits)


# ---------------------------------------------------------------------------------------------------------------------
# The table


def test_the_row_has_macro_means_and_says_what_is_missing() -> None:
    following = action_following(PREDICTED, RECORDED)
    header, row = row_lines(following, fps=5.914, psnr=15.133, ssim=0.38, lpips=0.4512)
    assert header.split() == ["FPS", "P", "R", "F1", "camera", "PSNR", "SSIM", "LPIPS", "FVD"]
    assert row.split(maxsplit=8) == [
        "5.91",
        "0.927",
        "0.910",
        "0.913",
        "0.606",
        "15.13",
        "0.380",
        "0.451",
        "no weights given",
    ]
    assert len(header) == len(row) and row.index("0.451") == header.index("LPIPS")
    _, row, whole, score = row_lines(
        following, fvd=246.04, fvd_whole=250.2, game_world_score={"keyboard": 0.7329, "mouse": 0.545}
    )
    assert row.endswith("no weights given  246.0") and whole.endswith("that of all frames is 250.2")
    assert score == "GameWorldScore's accuracies: keyboard 0.733, mouse 0.545"


def test_means_in_use_leave_out_tasks_and_camera_axes_that_never_occur() -> None:
    # Jump alone is commanded, and never read; yaw turns by one bin in half of the frames and is never read.
    recorded = make_clip(2, jump=[1, 0], camera=[[0.0, 1.0], [0.0, 0.0]])
    published, found = (evaluate([make_clip(2)], [recorded]) for evaluate in (action_following, following_in_use))
    # Released has F1 2/3, pressed 0; the six other tasks count 1 in MineWorld's mean.
    assert found["tasks"] == ["jump"]
    assert found["mean"]["f1_macro"] == pytest.approx(1 / 3)
    assert published["mean"]["f1_macro"] == pytest.approx((6 + 1 / 3) / 7)
    assert (found["mean"]["camera_loss"], published["mean"]["camera_loss"]) == (0.5, 0.25)
    named, header, row, _, last, *_ = row_lines(published, found)
    assert "tasks in use (jump)" in named and "MineWorld's published columns" in last
    assert (header.split(), row.split()) == (["P", "R", "F1", "camera"], ["0.250", "0.500", "0.333", "0.500"])


def test_recordings_of_which_nothing_occurs_have_dashes_and_nulls() -> None:
    found = following_in_use([make_clip(2, jump=[1, 0])], [make_clip(2)])
    assert found["tasks"] == [] and set(found["mean"].values()) == {None}
    assert row_lines(None, found)[2].split() == ["–"] * 4
    json.dumps(found, allow_nan=False)


def test_importing_the_evaluator_loads_no_heavy_library() -> None:
    code = (
        "import sys; from rlir_ray.evaluation import action_following; "
        "print([name for name in ('torch', 'ray', 'vllm', 'deepspeed', 'diffusers', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
