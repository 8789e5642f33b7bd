"""The audit of inverse dynamics models on recordings of any format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rlir_ray.cli.commands import main
from rlir_ray.data.lerobot.writer import LerobotWriter
from rlir_ray.idm.keypoint_idm import KeypointInverseDynamics
from rlir_ray.rewards import idm_audit as audits
from rlir_ray.rewards.idm_audit import AuditRequest, audit, audit_lines
from rlir_ray.spaces.fields import Axis, Uniform
from rlir_ray.spaces.space import Actions, ActionSpace

SPACE = ActionSpace((Axis(name="dx", low=-3, high=3, unit="pixels", quantizer=Uniform(num_bins=7)),))
SIZE, LENGTH = 32, 20


def record(folder: Path, num_episodes: int = 12) -> Path:
    """A bright square on black, which an action moves by whole pixels."""
    rng = np.random.default_rng(0)
    with LerobotWriter(folder, SPACE, fps=10, height=SIZE, width=SIZE) as writer:
        for _ in range(num_episodes):
            moves = rng.integers(-3, 4, LENGTH).astype(np.float32)
            moves[0] = 0
            places = 12 + np.cumsum(moves)
            frames = np.zeros((LENGTH, SIZE, SIZE, 3), np.uint8)
            for frame, place in zip(frames, places, strict=True):
                frame[12:18, (int(place) + np.arange(6)) % SIZE] = 255
            writer.write(frames, Actions(SPACE, moves[:, None]))
    return folder


class Mover:
    """Reads the move of the bright columns; `is_blind` reads nothing."""

    space = SPACE
    is_blind = False

    def read(self, frames: torch.Tensor, names: tuple[str, ...]):  # type: ignore[no-untyped-def]
        from rlir_ray.idm.base import Reading

        columns = torch.arange(SIZE).float() * 2 * np.pi / SIZE
        weights = (frames[..., 15, :, 0] > 100).float()
        angle = torch.atan2(weights @ columns.sin(), weights @ columns.cos())
        moves = torch.diff(angle, dim=1, prepend=angle[:, :1])
        pixels = torch.atan2(moves.sin(), moves.cos()) * SIZE / (2 * np.pi)
        bins = (pixels + 3).round().clamp(0, 6).long() * (0 if self.is_blind else 1)
        table = torch.nn.functional.one_hot(bins, 7).float()
        return Reading({"dx": table}, {"dx": bins})


def test_a_model_that_reads_motion_passes_and_a_blind_one_fails_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path / "data")
    blind = Mover()
    blind.is_blind = True
    monkeypatch.setattr(audits, "load_inverse_dynamics", lambda path: {"good": Mover(), "blind": blind}[path])
    found = audit(AuditRequest(idms=("good", "blind"), data=str(tmp_path / "data"), num_clips=24))
    good, bad = found["good"], found["blind"]
    assert not good.fault and good.kinds["exact"] > 0.95 and good.kinds["static"] < 0.1
    assert max(good.shifts, key=lambda shift: good.shifts[shift]) == 0
    assert "got R² 0.00, and no more a frame earlier or later; train the inverse dynamics model longer" in bad.fault
    assert "\n" not in bad.fault
    lines = audit_lines(found)
    assert lines[0] == "good" and any("FAIL" in line for line in lines)


def test_the_command_fails_for_an_untrained_model_and_names_a_missing_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path / "data", num_episodes=4)
    KeypointInverseDynamics.small(SPACE, SIZE, SIZE).save_pretrained(tmp_path / "idm")
    with pytest.raises(SystemExit) as end:
        main(["audit", "--data", str(tmp_path / "data"), "--idm", str(tmp_path / "idm"), "--num-clips", "6"])
    assert end.value.code == 1 and "FAIL" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["audit", "--data", str(tmp_path / "data"), "--idm", str(tmp_path / "none")])
    assert end.value.code == 2 and "none" in capsys.readouterr().err


def test_frames_are_resized_as_for_the_training_of_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path / "data", num_episodes=2)
    seen: list[torch.Size] = []

    class Watcher(Mover):
        def read(self, frames: torch.Tensor, names: tuple[str, ...]):  # type: ignore[no-untyped-def]
            seen.append(frames.shape)
            return super().read(torch.zeros(*frames.shape[:2], SIZE, SIZE, 3), names)

    monkeypatch.setattr(audits, "load_inverse_dynamics", lambda path: Watcher())
    for size, expected in ((None, (SIZE, SIZE)), ((24, 40), (24, 40))):
        seen.clear()
        audit(AuditRequest(idms=("any",), data=str(tmp_path / "data"), num_clips=2, size=size))
        assert seen and all(shape[2:4] == expected for shape in seen)


def test_recordings_without_a_clip_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audits, "load_inverse_dynamics", lambda path: Mover())
    record(tmp_path / "data", num_episodes=2)
    with pytest.raises(ValueError, match="lower --num-frames"):
        audit(AuditRequest(idms=("any",), data=str(tmp_path / "data"), num_frames=LENGTH + 1))
    with pytest.raises(ValueError, match="must be of the action space, got dz"):
        audit(AuditRequest(idms=("any",), data=str(tmp_path / "data"), groups=("dz",)))
