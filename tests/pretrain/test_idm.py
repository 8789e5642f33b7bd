from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlir_ray.data.recordings import Recording
from rlir_ray.data.vpt.pairs import write_recording
from rlir_ray.idm.base import load_inverse_dynamics
from rlir_ray.idm.model import NetworkSizes
from rlir_ray.pretrain.command import main
from rlir_ray.pretrain.idm import train_inverse_dynamics
from rlir_ray.pretrain.idm_model import build_model
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
from rlir_ray.rewards.field_scores import FieldValues
from rlir_ray.spaces.fields import Axis, Choice, Uniform
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE, actions_from_buttons, events_from_actions
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
    actions = actions_from_buttons(np.zeros((num_frames, 23), np.bool_), camera)
    return Recording(name=name, frames=frames, events=events_from_actions(actions), actions=actions)


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
    labels = {name: torch.zeros(table.shape[:-1], dtype=torch.int64) for name, table in logits.items()}
    weights = {"buttons": torch.ones(20, 2), "camera": torch.ones(2, 11)}
    assert inverse_dynamics_loss(logits, labels, weights) == inverse_dynamics_loss(wrong_first, labels, weights)


def test_shifts_compare_the_frames_they_name() -> None:
    commanded = np.array([[[0], [1], [0], [1], [1], [0]]])
    late, early = (np.roll(commanded, shift, axis=1) for shift in (1, -1))  # late: one frame after the action
    late, early, commanded = (FieldValues(table, table.astype(np.float32)) for table in (late, early, commanded))
    jump = VPT_SPACE.select(["jump"])
    assert compare(late, commanded, jump, shift=-1)["mean"] == {"accuracy": 1.0, "macro_f1": 1.0}
    assert compare(late, commanded, jump)["mean"]["accuracy"] < 1
    assert compare(early, commanded, jump, shift=1)["mean"]["accuracy"] == 1.0


def test_an_axis_has_its_error_in_its_unit_and_its_explained_variance() -> None:
    axis = Axis(name="speed", low=-1, high=1, unit="m/s", quantizer=Uniform(num_bins=4))
    commanded = np.array([[[0], [-0.75], [-0.25], [0.25], [0.75]]], np.float32)
    read = commanded + np.float32(0.25)
    pair = (FieldValues(axis.bins(each), each) for each in (read, commanded))
    row = compare(*pair, (axis,))["speed"]
    # Each is a bin too high but for the last, which has no bin above; variance 5/16, squared error 1/16.
    assert (row["mae"], row["r2"], row["within"], row["accuracy"]) == (0.25, 0.8, 1.0, 0.25)


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
    model = build_model("vpt", VPT_SPACE, 16, 16, seed=0)
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
    assert "held-out clips score R² 0.05, " in idm_warning({"exact": 0.05, "static": 0.0}, ("steer",), "R²")
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
    sizes = NetworkSizes(hidden_size=32, num_layers=1, num_heads=2, convolution_width=2)
    model = build_model("vpt", VPT_SPACE, 16, 16, seed=0, sizes=sizes)
    net = model.config["net"]
    assert (net["hidsize"], net["n_recurrence_layers"], net["attention_heads"]) == (32, 1, 2)
    assert (net["impala_width"], net["img_shape"]) == (2, [16, 16, 32])
    with pytest.raises(ValueError, match="hidsize must be a multiple"):
        build_model("vpt", VPT_SPACE, 16, 16, seed=0, sizes=NetworkSizes(hidden_size=33))


def test_groups_and_checkpoints_that_do_not_exist_are_refused_in_one_line(tmp_path: Path) -> None:
    for groups, got in ((("yaw", "jmup"), "jmup"), (("swapHands",), "swapHands")):  # the latter has no head
        with pytest.raises(ValueError, match=f"--groups must be of forward_back, .*, yaw, got {got}; name"):
            train_inverse_dynamics(recordings(1, 0), recordings(1, 9), tmp_path, replace(SETTINGS, groups=groups))
    with pytest.raises(ValueError, match="--init must be the folder of an inverse dynamics model, got"):
        train_inverse_dynamics(recordings(1, 0), recordings(1, 9), tmp_path, replace(SETTINGS, init="nowhere"))


# ---------------------------------------------------------------------------------------------------------------------
# Another action space

DRIVE = ActionSpace(
    (
        Choice(name="cmd/lift", classes=("down", "stay", "up"), null_class=1),
        Axis(name="steer", low=-1, high=1, unit="cells", quantizer=Uniform(num_bins=9), direction="right"),
    )
)


def sliding_recording(seed: int, num_frames: int = 40) -> Recording:
    """Squares of 4 pixels that move a square up or down as the choice says, up to two sideways as the axis says."""
    rng = np.random.default_rng(seed)
    lifts, steers = rng.integers(0, 3, num_frames), rng.uniform(-1, 1, num_frames)
    rows, columns = -4 * np.cumsum(lifts - 1), 4 * np.cumsum(np.round(2 * steers).astype(int))
    squares = rng.integers(0, 256, (4, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    frames = np.stack([np.roll(squares, place, axis=(0, 1)) for place in zip(rows, columns, strict=True)])
    actions = Actions(DRIVE, np.stack([lifts, steers], 1).astype(np.float32))
    return Recording(name=f"r{seed}", frames=frames, events=[], actions=actions)


def slides(count: int, seed: int) -> list[Recording]:
    return [sliding_recording(seed + index) for index in range(count)]


def test_a_model_of_another_space_learns_to_read_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = InverseDynamicsTraining(
        architecture="correlation",
        minutes=0,
        num_steps=160,
        clips_per_step=12,
        window_frames=(6,),
        hidden_size=128,
        learning_rate=2e-3,
        augmentation=0.0,
    )
    figures = train_inverse_dynamics(slides(24, seed=0), slides(6, seed=100), tmp_path, settings)
    row = figures["shifts"]["+0"]
    assert set(row) == {"cmd/lift", "steer", "mean"} and set(row["mean"]) == {"accuracy", "macro_f1", "r2"}
    assert row["cmd/lift"]["macro_f1"] > 0.9
    assert row["steer"]["r2"] > 0.7 and row["steer"]["mae"] < 0.25 and row["steer"]["within"] > 0.8
    # A static clip shows that nothing moves: of the choice one class of three has an F1, of .5; R² of the axis is 0.
    assert figures["gate"]["static"] < 0.1 < 0.8 < figures["gate"]["exact"]
    assert "warning" not in caplog.text
    opened = load_inverse_dynamics(tmp_path)
    assert opened.space == DRIVE
    assert held_out_scores(opened, slides(6, seed=100), DRIVE.names) == figures


def sparse_recording(seed: int, num_frames: int = 40) -> Recording:
    """A dark disc of a few pixels on white, which the action moves by a fraction of its size."""
    rng = np.random.default_rng(seed)
    moves = rng.uniform(-2, 2, num_frames).astype(np.float32)
    rows, columns = np.mgrid[:32, :32]
    frames = np.full((num_frames, 32, 32, 3), 255, np.uint8)
    place = 16.0
    for frame in range(num_frames):
        if not 6 < place + moves[frame] < 26:
            moves[frame] = -moves[frame]
        place += moves[frame]
        distance = np.hypot(rows - 16, columns - place)
        frames[frame] = (255 * np.clip(distance - 2.5, 0, 1))[..., None]
    return Recording(name=f"s{seed}", frames=frames, actions=Actions(SPARSE, moves[:, None]))


SPARSE = ActionSpace((Axis(name="dx", low=-2, high=2, quantizer=Uniform(num_bins=9), direction="right"),))


@pytest.mark.parametrize("architecture", ["keypoints", "difference"])
def test_small_things_on_a_plain_ground_are_read(architecture: str, tmp_path: Path) -> None:
    settings = InverseDynamicsTraining(
        architecture=architecture,
        minutes=0,
        num_steps=150,
        clips_per_step=24,
        window_frames=(6,),
        hidden_size=64,
        num_layers=1,
        learning_rate=3e-3,
        augmentation=0.0,
    )
    train, held_out = ([sparse_recording(seed) for seed in seeds] for seeds in (range(24), range(100, 106)))
    figures = train_inverse_dynamics(train, held_out, tmp_path, settings)
    assert figures["gate"]["exact"] > 0.7 and figures["gate"]["static"] < 0.1


def test_models_and_recordings_of_several_spaces_are_refused(tmp_path: Path) -> None:
    settings = replace(SETTINGS, groups=(), num_steps=1)
    with pytest.raises(ValueError, match="recording r0 must have the action space of recording r0, got other fields"):
        train_inverse_dynamics(slides(1, 0), recordings(1, 9), tmp_path / "mixed", settings)
    train_inverse_dynamics(slides(1, 0), slides(1, 9), tmp_path / "slide", settings)
    with pytest.raises(ValueError, match=r"the recordings must have the action space of the model in .*slide, got"):
        start = replace(settings, init=str(tmp_path / "slide"))
        train_inverse_dynamics(recordings(1, 0), recordings(1, 9), tmp_path / "other", start)


def test_architectures_are_plug_ins() -> None:
    with pytest.raises(
        ValueError,
        match=r"architecture must be one of vpt, correlation, keypoints, difference, or package\.module:Name",
    ):
        InverseDynamicsTraining(architecture="vptt")
    named = InverseDynamicsTraining(architecture="rlir_ray.idm.correlation_idm:CorrelationInverseDynamics")
    assert build_model(named.architecture, DRIVE, 32, 32, seed=0).space == DRIVE
    with pytest.raises(ValueError, match="--architecture must name a class that this command can train, got tests"):
        build_model("tests.pretrain.test_idm:OwnReader", DRIVE, 32, 32, seed=0)


class OwnReader:
    """A member of the axis `idms` that another program trains."""

    read = logits = from_pretrained = None
