"""The oracle: reads walks, jumps and turns from exact displacement, and cannot read what is not there."""

from __future__ import annotations

import numpy as np
import pytest

from rlir_ray.pretrain.doom_oracle import displacement_features, oracle_macro_f1


def walk(rng: np.random.Generator, num_frames: int = 120, step: float = 30.0) -> list[dict]:
    """Events of a player without momentum: `step` map units a walked frame."""
    x, y, z, yaw, events = 0.0, 0.0, 0.0, 0.0, []
    for _ in range(num_frames):
        move, jump, turn = int(rng.integers(-1, 2)), bool(rng.random() < 0.3), int(rng.choice([-39, 0, 39]))
        yaw = (yaw + turn * 0.15) % 360
        x += move * step * np.cos(-np.radians(yaw))
        y += move * step * np.sin(-np.radians(yaw))
        keys = {1: ["key.keyboard.w"], -1: ["key.keyboard.s"], 0: []}[move] + ["key.keyboard.space"] * jump
        events.append(
            {
                "mouse": {"dx": turn, "dy": 0},
                "keyboard": {"keys": keys},
                "xpos": x,
                "ypos": y,
                "zpos": z + 30 * jump,
                "yaw": yaw,
            }
        )
    return events


def test_features_are_in_the_players_frame() -> None:
    # Facing south (yaw 90 clockwise from east), one frame 20 units south and 10 up while turning 5 to the right.
    events = [
        {"xpos": 0.0, "ypos": 0.0, "zpos": 0.0, "yaw": 85.0},
        {"xpos": 0.0, "ypos": -20.0, "zpos": 10.0, "yaw": 90.0},
    ]
    features = displacement_features(events, neighbors=1)
    assert features.shape == (2, 12)
    np.testing.assert_allclose(features[1, 4:8], [1, 0, 0.5, 1], atol=1e-6)
    np.testing.assert_allclose(features[0, 8:], features[1, 4:8])
    np.testing.assert_allclose(features[1, 8:], 0)


def test_a_turn_across_north_is_small() -> None:
    events = [{"xpos": 0.0, "ypos": 0.0, "zpos": 0.0, "yaw": yaw} for yaw in (358.0, 3.0)]
    assert displacement_features(events, neighbors=0)[1, 3] == pytest.approx(1)


def test_the_oracle_reads_motion_and_no_more() -> None:
    rng = np.random.default_rng(0)
    scores = oracle_macro_f1([walk(rng) for _ in range(8)], [walk(rng) for _ in range(3)], num_steps=150)
    assert min(scores.values()) > 0.97
    hidden = oracle_macro_f1(
        [walk(rng, step=0.0) for _ in range(8)], [walk(rng, step=0.0) for _ in range(3)], num_steps=150
    )
    assert hidden["forward_back"] < 0.5 < 0.97 < hidden["yaw"]
