"""The `audit` command: check inverse dynamics models on held-out recordings before a run trusts them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rlir_ray.config import DataConfig, WorldConfig
from rlir_ray.data.recorded_clips import round_robin_clips
from rlir_ray.data.recordings import open_recordings, split_paths
from rlir_ray.idm.base import load_inverse_dynamics
from rlir_ray.rewards.calibration import Audit, audit_model


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
    size: tuple[int, int] | None = None
    """Height and width to which frames are resized; None: those of the recordings."""
    reading: DataConfig = field(default_factory=DataConfig)


def audit(request: AuditRequest) -> dict[str, Audit]:
    """Check each model: the actions fit their own frames, and spoilt clips score lower than real ones.

    Scores are those of `rewards.field_scores`: macro-F1, or R² of a graded axis.

    Returns:
        Folder of a model -> its audit.

    Raises:
        ValueError: the recordings hold no clip, or a model cannot be opened or reads another action space.
    """
    models = {folder: load_inverse_dynamics(folder) for folder in request.idms}
    has_splits = (Path(request.data) / "validation").is_dir()
    path = split_paths(request.data)["validation"] if has_splits else request.data
    source = open_recordings(path, request.reading.camera)
    names = request.groups or source.space.names
    source.space.columns(names)
    first = source.recording(source.names[0], request.reading.action_shift).read(0, 1)
    height, width = request.size or first.shape[1:3]
    world = WorldConfig(height=height, width=width, num_context=1, num_frames=request.num_frames - 1, groups=names)
    clips = list(round_robin_clips(source, request.num_clips, world, request.reading))
    if not clips:
        raise ValueError(
            f"an audit needs recordings of {request.num_frames} frames, got none in {path}; lower --num-frames or "
            "record longer episodes"
        )
    real = {path: (np.stack([clip.frames for clip in clips]), [clip.actions for clip in clips])}
    return {folder: audit_model(model, folder, real, names) for folder, model in models.items()}


def audit_lines(audits: Mapping[str, Audit]) -> list[str]:
    """Format the audits for a terminal."""
    return [line for name, each in audits.items() for line in _lines(name, each)]


def _lines(name: str, found: Audit) -> list[str]:
    shifts = ", ".join(f"{score:.3f} at {shift:+d}" for shift, score in found.shifts.items() if shift)
    spoilt = ", ".join(
        f"{kind.replace('_', ' ')} {score:.3f}" for kind, score in found.kinds.items() if kind != "exact"
    )
    lines = [name, f"  real clips {found.kinds['exact']:.3f}", f"  spoilt clips: {spoilt}"]
    lines += [f"  actions moved by a frame: {shifts}"] if shifts else []
    return [*lines, f"  {'FAIL  ' + found.fault if found.fault else 'ok'}"]
