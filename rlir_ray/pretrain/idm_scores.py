"""The loss and the held-out scores of inverse dynamics models.

Legend: B clips, F frames, N frames of all recordings. Index 0 of a clip has no frame before it and is never scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.data.recordings import Recording
from rlir_ray.idm.correlation_idm import CorrelationInverseDynamics
from rlir_ray.idm.vpt import VptInverseDynamics
from rlir_ray.idm.vpt_network import Logits
from rlir_ray.pretrain.idm_windows import NUM_BUTTONS, Frames, Reconstruct
from rlir_ray.rewards.calibration import gate, read_clips
from rlir_ray.rewards.classification import accuracy, class_f1, confusion, known_mean, macro_f1, occurs, or_none
from rlir_ray.spaces.actions import GROUPS, Actions, group_classes

Model = VptInverseDynamics | CorrelationInverseDynamics
KEYS = ("accuracy", "macro_f1")
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


def head_weights(groups: Sequence[str], idle: float) -> tuple[Tensor, Tensor]:
    """Return loss weights of the heads, buttons [20] and camera [2]: 1 for heads of the groups, else `idle`."""
    buttons, camera = torch.full((NUM_BUTTONS,), idle), torch.full((2,), idle)
    for group in map(GROUPS.__getitem__, groups):
        if group.camera_axis is not None:
            camera[group.camera_axis] = 1
        buttons[group.columns] = 1
    return buttons, camera


def inverse_dynamics_loss(
    logits: Logits,
    buttons: Tensor,
    camera: Tensor,
    button_weights: Tensor,
    camera_weights: Tensor,
) -> Tensor:
    """Compute the weighted cross-entropy of all heads, summed over heads, averaged over frames 1..F-1.

    Args:
        logits: buttons [B, F, 20, 2] and camera [B, F, 2, 11], log-probabilities.
        buttons: int64 [B, F, 20].
        camera: int64 [B, F, 2].
        button_weights: [20, 2].
        camera_weights: [2, 11].
    """
    total = logits["buttons"].new_zeros(())
    pairs = ((logits["buttons"], buttons, button_weights), (logits["camera"], camera, camera_weights))
    for log_probabilities, labels, weights in pairs:
        picked = log_probabilities.gather(-1, labels[..., None])[..., 0]
        weight = weights[torch.arange(len(weights), device=labels.device), labels]  # [B, F, heads]
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
    recovered: npt.NDArray[np.int64], commanded: npt.NDArray[np.int64], groups: Sequence[str], shift: int = 0
) -> dict[str, dict[str, float | None]]:
    """Compute accuracy and macro-F1 of each group, and their mean over the groups that occur, over frames 1..F-1.

    Args:
        recovered, commanded: int64 [B, F, len(groups)].
        shift: compare the class recovered at k with the class commanded at k + shift.

    Returns:
        Group or `mean` -> metric -> value; None for a group that does not occur.
    """
    num_frames = commanded.shape[1]
    frames = np.arange(max(1, 1 - shift), num_frames - max(0, shift))
    scores: dict[str, dict[str, float | None]] = {}
    for column, name in enumerate(groups):
        table = confusion(recovered[:, frames, column], commanded[:, frames + shift, column], GROUPS[name].num_classes)
        if not occurs(table, GROUPS[name].null_class):
            scores[name] = dict.fromkeys(KEYS)
            continue
        scores[name] = {"accuracy": round(accuracy(table), 4), "macro_f1": round(float(macro_f1(table)), 4)}
        scores[name].update(
            {f"f1_{i}": round(float(f1), 4) for i, f1 in enumerate(class_f1(table)) if not np.isnan(f1)}
        )
    columns = {key: np.array([scores[name][key] for name in groups], np.float64) for key in KEYS}
    scores["mean"] = {key: or_none(round(float(known_mean(column)), 4)) for key, column in columns.items()}
    return scores


def evaluate_inverse_dynamics(
    model: Model, frames: Frames, actions: Sequence[Actions], groups: Sequence[str]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Call `compare` at shifts of -1, 0 and +1 between frames and actions: the scores of a good model peak at 0.

    Args:
        frames: uint8 [B, F, H, W, 3].
        actions: B clips of F actions each; action k leads into frame k.
        groups: names from `rlir_ray.spaces.actions.GROUPS`.
    """
    recovered = read_clips(model, frames, groups)
    commanded = np.stack([group_classes(clip, groups) for clip in actions])
    return {f"{shift:+d}": compare(recovered, commanded, groups, shift) for shift in (-1, 0, 1)}


def held_out_scores(
    model: Model,
    validation: Sequence[Recording],
    groups: Sequence[str],
    reconstruct: Reconstruct | None = None,
    num_clips: int = 512,
) -> dict[str, Any]:
    """Score a finished model on held-out recordings.

    Returns:
        ``shifts`` (`evaluate_inverse_dynamics`), ``gate`` (`rewards.calibration.gate`) and, with `reconstruct`,
        ``reconstructed`` (`compare` on reconstructed clips).
    """
    frames, actions = cut_clips(validation, CLIP_FRAMES, num_clips)
    by_kind = gate(model, frames, [clip[1:] for clip in actions], groups)
    scores: dict[str, Any] = {
        "num_clips": len(frames),
        "shifts": evaluate_inverse_dynamics(model, frames, actions, groups),
        "gate": {name: or_none(round(score, 4)) for name, score in by_kind.items()},
    }
    if reconstruct:
        decoded = reconstruct(frames.reshape(-1, *frames.shape[2:])).reshape(frames.shape)
        scores["reconstructed"] = evaluate_inverse_dynamics(model, decoded, actions, groups)["+0"]
    return scores
