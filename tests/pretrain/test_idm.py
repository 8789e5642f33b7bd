from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlir_ray.actions import INDEX, VPT_CAMERA, Actions
from rlir_ray.data.recordings import Recording
from rlir_ray.pretrain import idm
from rlir_ray.pretrain.idm import (
    InverseDynamicsTraining,
    augment,
    build_model,
    class_weights,
    compare,
    cut_clips,
    draw_windows,
    evaluate_inverse_dynamics,
    gate,
    inverse_dynamics_loss,
    label_frames,
    mirror,
    train_inverse_dynamics,
)

SETTINGS = InverseDynamicsTraining(
    architecture="correlation", groups=("yaw",), minutes=0, steps=20, clips_per_step=4, window_frames=(4,), seed=3
)


def panning_recording(name: str, seed: int, num_frames: int = 40) -> Recording:
    """A picture that moves 2 pixels left or right, or stays, as the mouse says. 16x16."""
    rng = np.random.default_rng(seed)
    turns = rng.integers(-1, 2, num_frames)
    turns[0] = 0
    texture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    frames = np.stack([np.roll(texture, -2 * shift, axis=1) for shift in np.cumsum(turns)])
    camera = np.stack([np.zeros(num_frames), 3.2 * turns], -1).astype(np.float32)
    actions = Actions(np.zeros((num_frames, 23), np.bool_), camera)
    return Recording(name=name, frames=frames, events=actions.to_events(), actions=actions)


def recordings(count: int, seed: int) -> list[Recording]:
    return [panning_recording(f"r{index}", seed + index) for index in range(count)]


def test_windows_stay_within_one_recording_and_keep_their_labels() -> None:
    # Every frame of recording r has the value 10 r + 5 and jump pressed where r is 1.
    data = []
    for index in range(3):
        buttons = np.zeros((6, 23), np.bool_)
        buttons[:, INDEX["jump"]] = index == 1
        actions = Actions(buttons, np.zeros((6, 2), np.float32))
        frames = np.full((6, 4, 4, 3), 10 * index + 5, np.uint8)
        data.append(Recording(name=str(index), frames=frames, events=actions.to_events(), actions=actions))
    settings = InverseDynamicsTraining(window_frames=(5,), clips_per_step=64, augmentation=0)
    frames, buttons, camera = draw_windows(label_frames(data), np.random.default_rng(0), settings)
    values = frames.flatten(1)
    assert (values == values[:, :1]).all() and set(values[:, 0].tolist()) == {5, 15, 25}
    assert ((buttons[..., INDEX["jump"]] == 1).all(1) == (values[:, 0] == 15)).all()
    assert (camera == VPT_CAMERA.null_bin).all()


def test_mirrored_clips_turn_the_other_way() -> None:
    buttons, camera = np.zeros((2, 3, 20), np.int64), np.full((2, 3, 2), 8)
    buttons[:, :, INDEX["left"]] = 1
    turned, turned_camera = mirror(buttons, camera, np.array([True, False]))
    assert turned[0, :, INDEX["right"]].all() and not turned[0, :, INDEX["left"]].any()
    assert turned_camera[0].tolist() == [[8, 2]] * 3
    assert (turned[1] == buttons[1]).all() and (turned_camera[1] == camera[1]).all()


def test_augmentation_is_seeded_and_off_at_strength_zero() -> None:
    frames = torch.full((2, 3, 16, 16, 3), 100, dtype=torch.uint8)
    draws = [augment(frames, torch.Generator().manual_seed(seed), 1.0) for seed in (1, 1, 2)]
    assert draws[0].shape == frames.shape and draws[0].dtype == torch.uint8
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert augment(frames, torch.Generator(), 0.0) is frames


def test_rare_classes_weigh_more() -> None:
    # 8 of 10 and 2 of 10: (1 / (2 * .8)) ** .5 = .7906, (1 / (2 * .2)) ** .5 = 1.5811; a class never seen weighs 1.
    labels = np.array([[0]] * 8 + [[1]] * 2)
    assert class_weights(labels, 3)[0].tolist() == pytest.approx([0.7906, 1.5811, 1.0], abs=1e-4)


def test_the_first_frame_of_a_window_is_not_scored() -> None:
    logits = {"buttons": torch.zeros(1, 3, 20, 2), "camera": torch.zeros(1, 3, 2, 11)}
    wrong_first = {name: table.clone() for name, table in logits.items()}
    wrong_first["buttons"][:, 0] = -100
    labels = torch.zeros(1, 3, 20, dtype=torch.int64), torch.zeros(1, 3, 2, dtype=torch.int64)
    weights = torch.ones(20, 2), torch.ones(2, 11)
    assert inverse_dynamics_loss(logits, *labels, *weights) == inverse_dynamics_loss(wrong_first, *labels, *weights)


def test_shifts_compare_the_frames_they_name() -> None:
    commanded = np.array([[[0], [1], [0], [1], [1], [0]]])
    late = np.roll(commanded, 1, axis=1)  # the judge reads each action one frame late
    assert compare(late, commanded, ["jump"], shift=-1)["mean"] == {"accuracy": 1.0, "macro_f1": 1.0}
    assert compare(late, commanded, ["jump"])["mean"]["accuracy"] < 1
    early = np.roll(commanded, -1, axis=1)
    assert compare(early, commanded, ["jump"], shift=1)["mean"]["accuracy"] == 1.0


def test_a_trained_judge_reads_the_panning_world(tmp_path: Path) -> None:
    settings = InverseDynamicsTraining(
        architecture="correlation", groups=("yaw",), minutes=0, steps=200, clips_per_step=12, window_frames=(6,),
        learning_rate=2e-3, augmentation=0.3,
    )  # fmt: skip
    held_out = recordings(6, seed=100)
    figures = train_inverse_dynamics(recordings(24, seed=0), held_out, tmp_path, settings)
    assert figures["shifts"]["+0"]["mean"]["accuracy"] > 0.9
    assert figures["shifts"]["+0"]["mean"]["accuracy"] > figures["shifts"]["-1"]["mean"]["accuracy"] + 0.3
    assert figures["gate"]["exact"]["accuracy"] > figures["gate"]["wrong_action"]["accuracy"] + 0.3
    assert {"config.json", "model.safetensors", "training.json"} <= {file.name for file in tmp_path.iterdir()}


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, held_out = recordings(3, seed=0), recordings(2, seed=50)
    train_inverse_dynamics(train, held_out, tmp_path / "whole", SETTINGS)
    steps = idm._steps

    def stopping_steps(*arguments: object) -> Iterator[float]:
        for index, loss in enumerate(steps(*arguments)):  # type: ignore[arg-type]
            yield loss
            if index == 0:  # after the checkpoint at step 10
                raise KeyboardInterrupt

    often = replace(SETTINGS, checkpoint_every_s=0.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(idm, "_steps", stopping_steps)
        train_inverse_dynamics(train, held_out, tmp_path / "parts", often)
    train_inverse_dynamics(train, held_out, tmp_path / "parts", often)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=1)
    train_inverse_dynamics(recordings(1, 0), recordings(1, 9), tmp_path, settings)
    with pytest.raises(ValueError, match="goes on with the settings it began with"):
        train_inverse_dynamics(recordings(1, 0), recordings(1, 9), tmp_path, replace(settings, seed=4))


def test_clips_through_a_tokenizer_are_scored_apart(tmp_path: Path) -> None:
    model = build_model("vpt", 16, 16, seed=0)
    frames, classes = cut_clips(recordings(2, 0), 9, 8, ("yaw",))
    assert frames.shape == (8, 9, 16, 16, 3) and classes.shape == (8, 9, 1)
    assert set(evaluate_inverse_dynamics(model, frames, classes, ("yaw",))) == {"-1", "+0", "+1"}
    assert set(gate(model, frames, classes, ("yaw",))) == {"exact", "static", "shuffled", "reversed", "wrong_action"}
    figures = idm.held_out_figures(model, recordings(2, 0), ("yaw",), reconstruct=lambda frames: 255 - frames)
    assert figures["reconstructed"]["mean"] != figures["shifts"]["+0"]["mean"]
