"""GameWorldScore's keyboard and mouse figures, against the published evaluator's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlir_ray.evaluation.gameworldscore import directions, game_world_score
from rlir_ray.evaluation.mineworld import actions_clip
from rlir_ray.spaces.vpt import actions_from_buttons, pressed_and_turned

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "gameworldscore.json").read_text())
TASK_NAMES = {"back_forward": "back/forward", "left_right": "left/right", "attack": "attack", "jump": "jump"}


def _sides(clip: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    num_frames, first = GOLDEN["n_frames"], GOLDEN["first_line"]
    lines = clip["commanded"][first : first + num_frames]
    # The evaluator reads no drop.
    pressed, camera = pressed_and_turned(lines)
    commanded = actions_clip(actions_from_buttons(pressed, camera), pressed=pressed, whole_degrees=True)
    return {**clip["predicted"], "drop": [0] * num_frames}, commanded


def test_each_clip_and_all_together_have_the_published_figures() -> None:
    sides = [_sides(clip) for clip in GOLDEN["clips"]]
    for (read, commanded), clip in zip(sides, GOLDEN["clips"], strict=True):
        found = game_world_score([read], [commanded])
        assert found["keyboard"] == pytest.approx(clip["keyboard_precision"], abs=1e-12)
        assert found["mouse"] == pytest.approx(clip["mouse_precision"], abs=1e-12)
        for name, accuracy in clip["task_accuracy"].items():
            assert found["per_task"][TASK_NAMES[name]] == pytest.approx(accuracy, abs=1e-12)
    found, pooled = game_world_score(*map(list, zip(*sides, strict=True))), GOLDEN["pooled"]
    assert found["keyboard"] == pytest.approx(pooled["keyboard_precision"], abs=1e-12)
    assert found["mouse"] == pytest.approx(pooled["mouse_precision"], abs=1e-12)
    for name, figures in pooled["tasks"].items():
        assert found["per_task"][TASK_NAMES[name]] == pytest.approx(figures["precision_micro"], abs=1e-12)


def test_directions_are_the_published_ones() -> None:
    *camera, codes = zip(*GOLDEN["direction_examples_pitch_yaw_code"], strict=True)
    assert directions(np.stack(camera, -1)).tolist() == list(codes)
