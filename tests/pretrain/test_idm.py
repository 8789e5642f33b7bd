from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlir_ray.data.recordings import Recording, write_recording
from rlir_ray.idm.base import load_inverse_dynamics
from rlir_ray.pretrain.command import main
from rlir_ray.pretrain.idm import build_model, train_inverse_dynamics
from rlir_ray.pretrain.idm_scores import (
    class_weights,
    compare,
    cut_clips,
    evaluate_inverse_dynamics,
    held_out_scores,
    inverse_dynamics_loss,
)
from rlir_ray.pretrain.settings import InverseDynamicsTraining
from rlir_ray.pretrain.training_warnings import idm_warning
from rlir_ray.spaces.actions import Actions
from tests.fakes import events_of
from tests.pretrain.interruption import interrupted_after_state

SETTINGS = InverseDynamicsTraining(
    architecture="correlation", groups=("yaw",), minutes=0, num_steps=20, clips_per_step=4, window_frames=(4,), seed=3
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
    return Recording(name=name, frames=frames, events=events_of(actions), actions=actions)


def recordings(count: int, seed: int) -> list[Recording]:
    return [panning_recording(f"r{index}", seed + index) for index in range(count)]


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


def test_a_trained_judge_reads_the_panning_world(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = InverseDynamicsTraining(
        architecture="correlation",
        groups=("yaw",),
        minutes=0,
        num_steps=200,
        clips_per_step=12,
        window_frames=(6,),
        learning_rate=2e-3,
        augmentation=0.3,
    )
    held_out = recordings(6, seed=100)
    figures = train_inverse_dynamics(recordings(24, seed=0), held_out, tmp_path, settings)
    assert figures["shifts"]["+0"]["mean"]["accuracy"] > 0.9
    assert figures["shifts"]["+0"]["mean"]["accuracy"] > figures["shifts"]["-1"]["mean"]["accuracy"] + 0.3
    assert figures["gate"]["exact"] > figures["gate"]["wrong_action"] + 0.3
    assert "warning" not in caplog.text
    assert {"config.json", "model.safetensors", "training.json"} <= {file.name for file in tmp_path.iterdir()}


@pytest.mark.parametrize("architecture", ["correlation", "vpt"])  # the latter has empty weights
def test_an_interrupted_training_ends_with_the_same_weights(architecture: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, architecture=architecture, hidden_size=32, num_steps=6)
    train, held_out = recordings(3, seed=0), recordings(2, seed=50)
    train_inverse_dynamics(train, held_out, tmp_path / "whole", settings)
    often = replace(settings, checkpoint_every_s=0.0)
    with interrupted_after_state(3):
        train_inverse_dynamics(train, held_out, tmp_path / "parts", often)
    train_inverse_dynamics(train, held_out, tmp_path / "parts", often)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_a_state_and_a_training_of_other_settings_are_refused(tmp_path: Path) -> None:
    settings = replace(SETTINGS, num_steps=1)
    train_inverse_dynamics(recordings(1, 0), recordings(1, 9), tmp_path, settings)
    with pytest.raises(ValueError, match="was trained with another seed; repeat them"):
        train_inverse_dynamics(recordings(1, 0), recordings(1, 9), tmp_path, replace(settings, seed=4))
    (tmp_path / "training.json").unlink()
    with pytest.raises(ValueError, match="must keep its settings, got another seed; repeat them"):
        train_inverse_dynamics(recordings(1, 0), recordings(1, 9), tmp_path, replace(settings, seed=4))


def test_a_finished_training_is_left_as_it_is_and_goes_on_with_more_minutes(tmp_path: Path) -> None:
    settings = replace(SETTINGS, num_steps=0, minutes=0.001)
    figures = train_inverse_dynamics(recordings(1, 0), recordings(1, 9), tmp_path, settings)
    report = (tmp_path / "training.json").read_text()
    assert train_inverse_dynamics(recordings(1, 0), recordings(1, 9), tmp_path, settings) == figures
    assert (tmp_path / "training.json").read_text() == report
    train_inverse_dynamics(recordings(1, 0), recordings(1, 9), tmp_path, replace(settings, minutes=0.01))
    longer = json.loads((tmp_path / "training.json").read_text())
    first = json.loads(report)["steps"]
    assert longer["steps"] > first
    assert [path.name for path in tmp_path.glob("state*")] == [f"state-{longer['steps']:08d}"]


def test_clips_through_a_tokenizer_are_scored_apart() -> None:
    model = build_model("vpt", 16, 16, seed=0)
    frames, actions = cut_clips(recordings(2, 0), 9, 8)
    assert frames.shape == (8, 9, 16, 16, 3) and {len(clip) for clip in actions} == {9}
    assert set(evaluate_inverse_dynamics(model, frames, actions, ("yaw",))) == {"-1", "+0", "+1"}
    figures = held_out_scores(model, recordings(2, 0), ("yaw",), reconstruct=lambda frames: 255 - frames)
    assert figures["reconstructed"]["mean"] != figures["shifts"]["+0"]["mean"]


def test_a_model_that_reads_nothing_ends_its_training_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Two groups of three never occur: each would lift the macro-F1 by a third.
    settings = replace(SETTINGS, groups=("jump", "drop", "yaw"))
    figures = train_inverse_dynamics(recordings(3, 0), recordings(2, 50), tmp_path, settings)
    assert figures["shifts"]["+0"]["jump"] == {"accuracy": None, "macro_f1": None}
    assert figures["shifts"]["+0"]["mean"]["macro_f1"] == figures["shifts"]["+0"]["yaw"]["macro_f1"] < 0.5
    json.loads((tmp_path / "training.json").read_text(), parse_constant=pytest.fail)
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert (
        line.startswith("warning: the model recovers no actions: held-out clips score macro-F1 0.") and "\n" not in line
    )
    # Called again, it is finished, and as blind as before.
    caplog.clear()
    train_inverse_dynamics(recordings(3, 0), recordings(2, 50), tmp_path, settings)
    assert line in caplog.messages


def test_a_judge_is_warned_of_by_what_it_reads() -> None:
    assert idm_warning({"exact": 0.45, "static": 0.3}, ("yaw",)) == ""
    assert "recovers no actions" in idm_warning({"exact": 0.39, "static": 0.3}, ("yaw",))
    assert "none of the groups drop,jump occurs" in idm_warning({"exact": None, "static": None}, ("drop", "jump"))


def test_the_command_takes_groups_sizes_and_a_checkpoint_to_start_from(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("validation", 50)):
        for one in recordings(2, seed):
            write_recording(tmp_path / "data" / split / one.name, one.frames, one.events)
    short = ["--data", str(tmp_path / "data"), "--num-steps", "1", "--clips-per-step", "2", "--device", "cpu"]
    sizes = ["--architecture", "correlation", "--hidden-size", "32", "--num-layers", "1", "--convolution-width", "2"]
    main("idm", [*short, *sizes, "--out", str(tmp_path / "first"), "--groups", "yaw,left_right"])
    first = json.loads((tmp_path / "first" / "training.json").read_text())
    assert set(first["held_out"]["shifts"]["+0"]) == {"yaw", "left_right", "mean"}
    config = load_inverse_dynamics(tmp_path / "first").config
    assert (config["hidden"], config["num_temporal_blocks"], config["channels"]) == (32, 1, 128)
    # A checkpoint's architecture and sizes hold, and a learning rate of 0 leaves its weights.
    start = ["--init", str(tmp_path / "first"), "--groups", "yaw", "--learning-rate", "0"]
    main("idm", [*short, *start, "--out", str(tmp_path / "second")])
    one, other = (load_inverse_dynamics(tmp_path / name).state_dict() for name in ("first", "second"))
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], msg=name)


def test_sizes_of_the_vpt_form_are_those_asked_for() -> None:
    model = build_model("vpt", 16, 16, seed=0, hidden_size=32, num_layers=1, num_heads=2, convolution_width=2)
    net = model.config["net"]
    assert (net["hidsize"], net["n_recurrence_layers"], net["attention_heads"]) == (32, 1, 2)
    assert (net["impala_width"], net["img_shape"]) == (2, [16, 16, 32])
    with pytest.raises(ValueError, match="hidsize must be a multiple"):
        build_model("vpt", 16, 16, seed=0, hidden_size=33)


def test_groups_and_checkpoints_that_do_not_exist_are_refused_in_one_line(tmp_path: Path) -> None:
    for groups, got in ((("yaw", "jmup"), "jmup"), ((), "none")):
        with pytest.raises(ValueError, match=f"--groups must be of forward_back, .* got {got}; name"):
            InverseDynamicsTraining(groups=groups)
    with pytest.raises(ValueError, match="--init must be the folder of an inverse dynamics model, got"):
        train_inverse_dynamics(recordings(1, 0), recordings(1, 9), tmp_path, replace(SETTINGS, init="nowhere"))
