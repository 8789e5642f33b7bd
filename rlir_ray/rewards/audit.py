"""The `audit` command: check inverse dynamics models on held-out recordings before a run trusts them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rlir_ray.config import DataConfig, WorldConfig
from rlir_ray.data.recorded_clips import round_robin_clips
from rlir_ray.data.recordings import open_recordings, split_paths
from rlir_ray.idm.base import load_inverse_dynamics
from rlir_ray.rewards.calibration import check_alignment, check_gate, gate


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """Options of the command."""

    idms: tuple[str, ...]
    """Folders of the models."""
    data: str
    """Recordings, or a folder with train/ and validation/, of which validation/ is read."""
    groups: tuple[str, ...] = ()
    """Fields to compare; empty: all fields of the recordings' action space."""
    num_clips: int = 256
    num_frames: int = 9
    """Frames of a clip, the first one included, into which no compared action leads."""
    reading: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True, kw_only=True)
class AuditRow:
    """What one model reads in real clips."""

    idm: str
    shifts: dict[int, float]
    """Shift -> score of the recorded actions moved by it."""
    kinds: dict[str, float]
    """Kind of clip (`calibration.gate`) -> score."""
    fault: str = ""
    """Why a reward or a judge must not use the model; empty: it may."""

    def lines(self) -> list[str]:
        shifts = ", ".join(f"{score:.3f} at {shift:+d}" for shift, score in self.shifts.items() if shift)
        kinds = ", ".join(
            f"{kind.replace('_', ' ')} {score:.3f}" for kind, score in self.kinds.items() if kind != "exact"
        )
        found = [f"  real clips {self.kinds['exact']:.3f}", f"  spoilt clips: {kinds}"] if self.kinds else []
        found += [f"  actions moved by a frame: {shifts}"] if shifts else []
        return [self.idm, *found, f"  {'FAIL  ' + self.fault if self.fault else 'ok'}"]


def audit(request: AuditRequest) -> list[AuditRow]:
    """Check each model: the actions fit their own frames, and spoilt clips score lower than real ones.

    Scores are those of `rewards.field_scores`: macro-F1, or R² of a graded axis.

    Raises:
        ValueError: the recordings hold no clip, or a model cannot be opened or reads another action space.
    """
    folder = Path(request.data)
    path = split_paths(folder)["validation"] if (folder / "validation").is_dir() else request.data
    source = open_recordings(path, request.reading.camera)
    names = request.groups or source.space.names
    source.space.columns(names)
    first = source.recording(source.names[0], request.reading.action_shift).read(0, 1)
    world = WorldConfig(
        height=first.shape[1], width=first.shape[2], num_context=1, num_frames=request.num_frames - 1, groups=names
    )
    clips = list(round_robin_clips(source, request.num_clips, world, request.reading))
    if not clips:
        raise ValueError(
            f"an audit needs recordings of {request.num_frames} frames, got none in {path}; lower --num-frames or "
            "record longer episodes"
        )
    frames, actions = np.stack([clip.frames for clip in clips]), [clip.actions for clip in clips]
    rows = []
    for folder_name in request.idms:
        idm = load_inverse_dynamics(folder_name)
        row = AuditRow(idm=folder_name, shifts={}, kinds={})
        try:
            row = dataclasses.replace(row, kinds=gate(idm, frames, actions, names))
            row = dataclasses.replace(row, shifts=check_alignment(idm, frames, actions, names, path).macro_f1)
            check_gate(row.kinds, folder_name)
        except ValueError as error:
            row = dataclasses.replace(row, fault=str(error))
        rows.append(row)
    return rows


def audit_lines(rows: Sequence[AuditRow]) -> list[str]:
    """Format the rows for a terminal."""
    return [line for row in rows for line in row.lines()]
