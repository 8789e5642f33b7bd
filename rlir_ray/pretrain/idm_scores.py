"""The loss and the held-out scores of inverse dynamics models.

Legend: B clips, F frames, N frames of all recordings, h heads of one kind, K classes of such a head.
Index 0 of a clip has no frame before it and is never scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.data.recordings import Recording
from rlir_ray.idm.base import InverseDynamics
from rlir_ray.idm.heads import Heads
from rlir_ray.pretrain.idm_windows import Frames, Labels, Reconstruct
from rlir_ray.rewards.calibration import gate
from rlir_ray.rewards.classification import accuracy, class_f1, confusion, known_mean, macro_f1, occurs, or_none
from rlir_ray.rewards.field_scores import FieldValues, commanded_values, read_clips
from rlir_ray.rewards.regression import mean_absolute_error, r2, share_within
from rlir_ray.spaces.fields import ActionField, Axis
from rlir_ray.spaces.space import Actions

CLASS_KEYS, AXIS_KEYS = ("accuracy", "macro_f1"), ("mae", "r2", "within")
CLIP_FRAMES = 9  # frames of a rollout: one context frame and eight generated frames


def class_weights(labels: npt.NDArray[np.int64], num_classes: int) -> Tensor:
    """Compute the square root of the inverse frequency, within 0.5..3, so that the model learns rare classes.

    Args:
        labels: int64 [N, heads].

    Returns:
        float32 [heads, num_classes]; 1 for a class that never occurs.
    """
    counts = np.stack([np.bincount(column, minlength=num_classes) for column in labels.T])
    frequency = np.maximum(counts, 1) / len(labels)
    seen = (counts > 0).sum(1, keepdims=True)
    weights = np.clip((1 / (seen * frequency)) ** 0.5, 0.5, 3)
    return torch.from_numpy(np.where(counts > 0, weights, 1)).float()


def loss_weights(labels: Labels, heads: Heads, names: Sequence[str], idle: float) -> dict[str, Tensor]:
    """Return the weight of each class in the loss, kind of head -> float32 [h, K].

    Args:
        labels: of all training frames, kind of head -> int64 [N, h].
        heads: of the model.
        names: fields in use.
        idle: factor of heads that decide none of these fields.
    """
    weights = {}
    for kind, used in heads.used(names).items():
        factors = torch.from_numpy(np.where(used, 1, idle)).float()
        weights[kind] = class_weights(labels[kind], heads.num_classes[kind]) * factors[:, None]
    return weights


def inverse_dynamics_loss(
    logits: Mapping[str, Tensor], labels: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> Tensor:
    """Compute the weighted cross-entropy of all heads, summed over heads, averaged over frames 1..F-1.

    Args:
        logits: kind of head -> log-probabilities [B, F, h, K].
        labels: kind of head -> int64 [B, F, h].
        weights: kind of head -> [h, K].
    """
    total = next(iter(logits.values())).new_zeros(())
    for kind, log_probabilities in logits.items():
        picked = log_probabilities.gather(-1, labels[kind][..., None])[..., 0]
        weight = weights[kind][torch.arange(len(weights[kind]), device=picked.device), labels[kind]]  # [B, F, h]
        total = total - (weight * picked)[:, 1:].sum(-1).mean()
    return total


# ---------------------------------------------------------------------------------------------------------------------
# Held-out scores


def cut_clips(recordings: Sequence[Recording], num_frames: int, num_clips: int) -> tuple[Frames, list[Actions]]:
    """Cut clips that do not overlap, spread evenly over the recordings.

    Returns:
        Frames uint8 [B, F, H, W, 3] and the actions of B clips, B at most `num_clips`.

    Raises:
        ValueError: no recording holds a clip.
    """
    places = [
        (recording, slice(start, start + num_frames))
        for recording in recordings
        for start in range(0, len(recording.frames) - num_frames + 1, num_frames)
    ]
    if not places:
        raise ValueError(
            f"held-out recordings must hold {num_frames} frames, got {len(recordings)} shorter ones; record longer "
            "episodes"
        )
    chosen = [places[index] for index in np.linspace(0, len(places) - 1, min(num_clips, len(places))).astype(int)]
    frames = np.stack([recording.frames[span] for recording, span in chosen])
    return frames, [recording.actions[span] for recording, span in chosen]


def compare(
    recovered: FieldValues, commanded: FieldValues, fields: Sequence[ActionField], shift: int = 0
) -> dict[str, dict[str, float | None]]:
    """Score each field over frames 1..F-1, and average over the fields that occur.

    Args:
        recovered, commanded: of B clips of F frames.
        fields: the fields.
        shift: compare what is recovered at k with what is commanded at k + shift.

    Returns:
        Field or `mean` -> metric -> value; None for a field that does not occur. Metrics: `accuracy`, `macro_f1` and
        `f1_CLASS` of the classes; of an axis also `mae` (in its unit) and `r2` of the number, and `within`, the share
        of frames that are at most one bin away. The mean has accuracy, macro-F1 and, if there is an axis, R².
    """
    num_frames = commanded.classes.shape[1]
    frames = np.arange(max(1, 1 - shift), num_frames - max(0, shift))
    read, wanted = recovered.frames(frames), commanded.frames(frames + shift)
    scores = {field.name: _field_row(read, wanted, column, field) for column, field in enumerate(fields)}
    keys = (*CLASS_KEYS, "r2") if any(isinstance(field, Axis) for field in fields) else CLASS_KEYS
    columns = {key: np.array([row.get(key) for row in scores.values()], np.float64) for key in keys}
    scores["mean"] = {key: _rounded(known_mean(column)) for key, column in columns.items()}
    return scores


def _field_row(read: FieldValues, wanted: FieldValues, column: int, field: ActionField) -> dict[str, float | None]:
    classes = read.classes[..., column], wanted.classes[..., column]
    table = confusion(*classes, field.num_classes)
    if not occurs(table, field.null_class):
        return dict.fromkeys((*CLASS_KEYS, *AXIS_KEYS) if isinstance(field, Axis) else CLASS_KEYS)
    row = {"accuracy": _rounded(accuracy(table)), "macro_f1": _rounded(macro_f1(table))}
    row |= {f"f1_{i}": _rounded(f1) for i, f1 in enumerate(class_f1(table)) if not np.isnan(f1)}
    if isinstance(field, Axis):
        numbers = read.values[..., column], wanted.values[..., column]
        figures = (mean_absolute_error(*numbers), r2(*numbers), share_within(*classes, 1))
        row |= {key: _rounded(figure) for key, figure in zip(AXIS_KEYS, figures, strict=True)}
    return row


def _rounded(figure: npt.ArrayLike) -> float | None:
    return or_none(round(float(np.asarray(figure)), 4))


def evaluate_inverse_dynamics(
    model: InverseDynamics, frames: Frames, actions: Sequence[Actions], names: Sequence[str]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Call `compare` at shifts of -1, 0 and +1 between frames and actions: the scores of a good model peak at 0.

    Args:
        frames: uint8 [B, F, H, W, 3].
        actions: B clips of F actions each; action k leads into frame k.
        names: fields to compare.
    """
    recovered, commanded = read_clips(model, frames, names), commanded_values(actions, names)
    fields = model.space.select(names)
    return {f"{shift:+d}": compare(recovered, commanded, fields, shift) for shift in (-1, 0, 1)}


def held_out_scores(
    model: InverseDynamics,
    validation: Sequence[Recording],
    names: Sequence[str],
    reconstruct: Reconstruct | None = None,
    num_clips: int = 512,
) -> dict[str, Any]:
    """Score a finished model on held-out recordings.

    Returns:
        ``shifts`` (`evaluate_inverse_dynamics`), ``gate`` (`rewards.calibration.gate`) and, with `reconstruct`,
        ``reconstructed`` (`compare` on reconstructed clips).
    """
    frames, actions = cut_clips(validation, CLIP_FRAMES, num_clips)
    by_kind = gate(model, frames, [clip[1:] for clip in actions], names)
    scores: dict[str, Any] = {
        "num_clips": len(frames),
        "shifts": evaluate_inverse_dynamics(model, frames, actions, names),
        "gate": {kind: _rounded(score) for kind, score in by_kind.items()},
    }
    if reconstruct:
        scores["reconstructed"] = evaluate_inverse_dynamics(model, reconstruct(frames), actions, names)["+0"]
    return scores
