from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.idm_throughput import straight_loop
from rlir_ray.idm.base import (
    FrameReader,
    axis_values,
    load_inverse_dynamics,
    one_hot_classes,
    resize_frames,
    stack_classes,
)
from rlir_ray.idm.correlation_idm import (
    CorrelationInverseDynamics,
    correlation_config,
    correlation_volume,
    displacement_index,
)
from rlir_ray.idm.difference_idm import DifferenceInverseDynamics
from rlir_ray.idm.keypoint_idm import KeypointInverseDynamics
from rlir_ray.idm.model import MAX_PIXELS, InverseDynamicsModel, NetworkSizes, working_size
from rlir_ray.idm.vpt import VptInverseDynamics
from rlir_ray.idm.vpt_config import VPT_CONFIG, small_vpt_config
from rlir_ray.spaces.fields import Axis, Choice, Uniform
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE

GOLDEN = Path(__file__).parent.parent / "golden"


def random_clips(num_clips: int, num_frames: int, height: int = 48, width: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num_clips, num_frames, height, width, 3), dtype=torch.uint8, generator=generator)


def golden_model() -> tuple[VptInverseDynamics, dict[str, Tensor]]:
    model = VptInverseDynamics(json.loads((GOLDEN / "vpt_idm_small.config.json").read_text()))
    model.load_state_dict(load_file(GOLDEN / "vpt_idm_small.weights.safetensors"))
    return model.eval(), load_file(GOLDEN / "vpt_idm_small.io.safetensors")


def test_published_weights_give_the_published_logits() -> None:
    model, golden = golden_model()
    with torch.inference_mode():
        logits = model.logits(golden["img"])
    for head in ("buttons", "camera"):
        assert (logits[head] - golden[f"logits.{head}"]).abs().max() < 1e-4
        assert (logits[head].argmax(-1) == golden[f"action.{head}"]).all()


def test_published_size_has_482_million_parameters() -> None:
    with torch.device("meta"):
        model = VptInverseDynamics(VPT_CONFIG)
    assert sum(parameter.numel() for parameter in model.parameters()) == 482_330_046


def test_bound_on_frames_does_not_change_the_logits() -> None:
    model, golden = golden_model()
    with torch.inference_mode():
        whole, parts = model.logits(golden["img"]), model.logits(golden["img"], max_frames=1)
    assert torch.allclose(whole["camera"], parts["camera"], atol=1e-4)


@pytest.mark.parametrize(
    "model",
    [
        VptInverseDynamics(small_vpt_config()),
        CorrelationInverseDynamics(correlation_config()),
        KeypointInverseDynamics.small(VPT_SPACE, 48, 64),
        DifferenceInverseDynamics.small(VPT_SPACE, 48, 64),
    ],
    ids=["vpt", "correlation", "keypoints", "difference"],
)
def test_saved_models_load_as_what_they_were(model: InverseDynamicsModel, tmp_path: Path) -> None:
    clips = random_clips(2, 9)
    model.save_pretrained(tmp_path)
    loaded = load_inverse_dynamics(tmp_path)
    assert type(loaded) is type(model)
    with torch.inference_mode():
        expected, logits = model.logits(clips, max_frames=1), loaded.logits(clips)
    assert logits["buttons"].shape == (2, 9, 20, 2) and logits["camera"].shape == (2, 9, 2, 11)
    assert torch.allclose(expected["buttons"], logits["buttons"], atol=1e-4)
    assert torch.allclose(expected["camera"], logits["camera"], atol=1e-4)


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architecture": "oracle"}')
    with pytest.raises(
        ValueError,
        match=r"architecture must be one of vpt, correlation, keypoints, difference, or package\.module:Name",
    ):
        load_inverse_dynamics(tmp_path)


def test_folders_of_other_things_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got .*none \(no such folder\); check the path"):
        load_inverse_dynamics(tmp_path / "none")
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "hidden_size": 8}')
    with pytest.raises(
        ValueError, match=r"must name its architecture, got none in .*; give the folder of `pretrain idm`"
    ):
        load_inverse_dynamics(tmp_path)


def test_configs_of_other_networks_are_refused() -> None:
    net = small_vpt_config()["net"]
    for change in ({"recurrence_type": "lstm"}, {"attention_memory_size": 32}, {"img_shape": [48, 64, 8]}):
        with pytest.raises(ValueError, match="must"):
            VptInverseDynamics({"net": {**net, **change}, "pi_head": {"temperature": 1.0}})


def test_frames_of_the_right_size_are_left_alone_and_floats_refused() -> None:
    clips = random_clips(1, 2)
    assert resize_frames(clips, 48, 64) is clips
    assert resize_frames(clips, 24, 32).shape == (1, 2, 24, 32, 3)
    with pytest.raises(ValueError, match="uint8"):
        resize_frames(clips.float(), 48, 64)
    with pytest.raises(ValueError, match=r"not empty, got torch.uint8 \(0, 2, 48, 64, 3\)"):
        resize_frames(clips[:0], 48, 64)


def test_correlation_peaks_at_the_displacement() -> None:
    size, index = displacement_index(4, 6, 1, 2)
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(4, 6, 32, generator=generator)
    current = before.roll((1, -2), (0, 1))  # content moved one down and two left: it comes from (-1, +2)
    volume = correlation_volume(current.reshape(1, 24, 32), before.reshape(1, 24, 32), index)
    assert size == (4, 6) and volume.shape == (1, 24, 15)
    inner = volume.reshape(4, 6, 3, 5)[1:, :4]
    assert (inner.flatten(2).argmax(-1) == 0 * 5 + 4).all()
    assert volume.reshape(4, 6, 3, 5)[0, 0, 0].abs().max() == 0  # above the picture


def test_judge_compares_a_frame_with_its_neighbour_only() -> None:
    model = CorrelationInverseDynamics(correlation_config())
    clips = random_clips(1, 12)
    changed = clips.clone()
    changed[:, 0] = 255 - changed[:, 0]
    with torch.inference_mode():
        before = model.embed_frames(clips)
        after = model.embed_frames(changed)
    assert torch.equal(before[:, 2:], after[:, 2:]) and not torch.equal(before[:, 1], after[:, 1])


SETTINGS: dict[str, dict[str, Any]] = {
    "published form": {},
    "other sizes": {"hidsize": 48, "attention_heads": 3, "n_recurrence_layers": 3, "img_shape": [24, 40, 8]},
    "other widths": {"impala_chans": [4, 6], "impala_width": 2, "pointwise_ratio": 2},
    "other windows": {"timesteps": 32, "attention_memory_size": 32, "pointwise_use_activation": True},
    "other convolution": {"conv3d_params": {"inchan": 3, "outchan": 8, "kernel_size": [3, 3, 5], "padding": [1, 1, 2]}},
    "no convolution": {"conv3d_params": None, "img_shape": [32, 32, 3]},
}


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_any_setting_equals_the_published_pass_clip_by_clip(changes: dict[str, Any]) -> None:
    config = json.loads((GOLDEN / "vpt_idm_small.config.json").read_text())
    config["net"] |= changes
    torch.manual_seed(0)
    model = VptInverseDynamics(config).eval()
    clips = random_clips(3, 7, *config["net"]["img_shape"][:2])
    with torch.inference_mode():
        expected = straight_loop(model, clips)
        # 4 frames at once: a clip in two parts; 14: two clips in one.
        for max_frames in (None, 4, 14):
            logits = model.logits(clips, max_frames)
            for head in ("buttons", "camera"):
                torch.testing.assert_close(logits[head], expected[head], atol=1e-4, rtol=0)


def test_the_settings_that_the_published_file_leaves_out_are_the_published_codes() -> None:
    config = json.loads((GOLDEN / "vpt_idm_small.config.json").read_text())
    short = {"net": dict(VPT_CONFIG["net"]), "pi_head": config["pi_head"]}
    del short["net"]["impala_chans"], short["net"]["pointwise_ratio"]
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in VptInverseDynamics(short).parameters()) == 482_330_046


DRIVE = ActionSpace(
    (
        Choice(name="cmd/lift", classes=("down", "stay", "up"), null_class=1),
        Axis(name="steer.x", low=-1, high=3, unit="m", quantizer=Uniform(num_bins=4)),
    )
)
ARCHITECTURES = pytest.mark.parametrize("kind", [VptInverseDynamics, CorrelationInverseDynamics], ids=["vpt", "corr"])


@ARCHITECTURES
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (360, 640), (30, 50)])
def test_small_models_read_frames_of_any_size(kind: type[InverseDynamicsModel], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = kind.small(DRIVE, *size, NetworkSizes(hidden_size=32, num_layers=1)).eval()
    assert model.size[0] * model.size[1] <= MAX_PIXELS
    for height, width in {size, (32, 32)}:
        reading = model.read(random_clips(2, 3, height, width), DRIVE.names)
        assert stack_classes(reading, DRIVE.names).shape == (2, 3, 2)
        for field in DRIVE.fields:
            table = reading.probabilities[field.name]
            assert table.shape == (2, 3, field.num_classes) and not table.requires_grad
            torch.testing.assert_close(table.sum(-1), torch.ones(2, 3))
            assert torch.equal(table.argmax(-1), reading.classes[field.name])


@pytest.mark.parametrize(
    "kind",
    [VptInverseDynamics, CorrelationInverseDynamics, KeypointInverseDynamics, DifferenceInverseDynamics],
    ids=["vpt", "correlation", "keypoints", "difference"],
)
def test_every_architecture_gives_the_features_that_its_heads_read(kind: type[InverseDynamicsModel]) -> None:
    torch.manual_seed(0)
    model = kind.small(DRIVE, 32, 32, NetworkSizes(hidden_size=32, num_layers=1)).eval()
    clips = random_clips(2, 5, 48, 40)
    with torch.inference_mode():
        features = model.frame_features(clips)
        for name, found in model.logits(clips).items():
            torch.testing.assert_close(model.pi_head(features)[name], found)
        # The clips pass through the convolutions one by one.
        torch.testing.assert_close(model.frame_features(clips, max_frames=5), features, atol=1e-5, rtol=0)
    assert isinstance(model, FrameReader) and features.shape == (2, 5, 32)
    assert float(features.std(1).mean()) > 1e-3 and float(features.std(2).mean()) > 1e-3


def test_small_models_keep_the_shape_of_large_frames() -> None:
    assert working_size(48, 64) == (48, 64) and working_size(50, 66, 4) == (48, 64)
    assert working_size(360, 640, 4) == (96, 168)  # 16384 / 230400 of the pixels: a factor of .267
    assert working_size(2, 2, 4) == (4, 4)


@ARCHITECTURES
def test_models_of_another_space_are_saved_with_it(kind: type[InverseDynamicsModel], tmp_path: Path) -> None:
    model = kind.small(DRIVE, 32, 32, NetworkSizes(hidden_size=32, num_layers=1)).eval()
    model.save_pretrained(tmp_path)
    loaded, clips = load_inverse_dynamics(tmp_path), random_clips(1, 4, 32, 32)
    assert type(loaded) is kind and loaded.space == DRIVE
    expected = model.read(clips, ["steer.x"]).probabilities["steer.x"]
    torch.testing.assert_close(loaded.read(clips, ["steer.x"]).probabilities["steer.x"], expected)
    with pytest.raises(ValueError, match=r"must be of the action space, got yaw; name some of cmd/lift, steer\.x"):
        loaded.read(clips, ["yaw"])


@ARCHITECTURES
def test_models_of_vpts_space_name_no_space_in_their_config(kind: type[InverseDynamicsModel]) -> None:
    model = kind.small(VPT_SPACE, 32, 32)
    assert "action_space" not in model.config and model.space == VPT_SPACE
    assert {name for name in model.state_dict() if name.startswith("pi_head")} == {
        f"pi_head.{head}.linear_layer.{part}" for head in ("buttons", "camera") for part in ("weight", "bias")
    }


def test_the_number_of_an_axis_is_the_mean_of_its_bins() -> None:
    # Bins of 1 m with centres -.5, .5, 1.5 and 2.5.
    values = axis_values(torch.tensor([[0.5, 0, 0, 0.5], [0, 1, 0, 0]]), DRIVE.axes[0])
    assert values.tolist() == [1.0, 0.5]


def test_classes_are_encoded_by_field() -> None:
    tables = one_hot_classes(torch.tensor([[2, 0]]), DRIVE.fields)
    assert tables["cmd/lift"].tolist() == [[0, 0, 1]] and tables["steer.x"].tolist() == [[1, 0, 0, 0]]
