"""What an inverse dynamics model reads in held-out recordings.

Legend: B clips, F frames. Index 0 of a clip has no frame before it and is never scored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rlir_ray.data.files import Json
from rlir_ray.data.recordings import Recording
from rlir_ray.idm.correlation_idm import CorrelationInverseDynamics
from rlir_ray.idm.inverse_dynamics import InverseDynamicsModel
from rlir_ray.pretrain.windows import Frames, Reconstruct
from rlir_ray.rewards.calibration import gate, read_clips
from rlir_ray.rewards.classification import accuracy, class_f1, confusion, known_mean, macro_f1, occurs, or_none
from rlir_ray.spaces.actions import GROUPS, Actions, group_classes

Model = InverseDynamicsModel | CorrelationInverseDynamics
KEYS = ("accuracy", "macro_f1")
CLIP_FRAMES = 9  # of a rollout: one context frame and eight generated ones


def cut_clips(recordings: Sequence[Recording], num_frames: int, num_clips: int) -> tuple[Frames, list[Actions]]:
    """Clips that do not overlap, spread evenly over the recordings.

    Returns:
        frames uint8 [B, F, H, W, 3] and the actions of B clips, B at most `num_clips`.
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
    """Accuracy and macro-F1 of each group and their mean over the groups that occur, over frames 1..F-1.

    None for a group that never occurs, and for the mean without one.

    Args:
        recovered, commanded: int64 [B, F, len(groups)].
        shift: the class recovered at k is compared with the one commanded at k + shift.
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
    """`compare` at shifts of -1, 0 and +1 between frames and actions: a sound model is best at 0, by far.

    Args:
        frames: uint8 [B, F, H, W, 3].
        actions: of B clips, F each; action k leads into frame k.
        groups: names out of `rlir_ray.spaces.actions.GROUPS`.
    """
    recovered = read_clips(model, frames, groups)
    commanded = np.stack([group_classes(clip, groups) for clip in actions])
    return {f"{shift:+d}": compare(recovered, commanded, groups, shift) for shift in (-1, 0, 1)}


def held_out_figures(
    model: Model,
    validation: Sequence[Recording],
    groups: Sequence[str],
    reconstruct: Reconstruct | None = None,
    num_clips: int = 512,
) -> Json:
    """The figures of a finished model on held-out recordings.

    Returns:
        ``shifts`` (`evaluate_inverse_dynamics`), ``gate`` (`rlir_ray.rewards.calibration.gate`) and, with a tokenizer,
        ``reconstructed`` (`compare` on clips read through it).
    """
    frames, actions = cut_clips(validation, CLIP_FRAMES, num_clips)
    spoilt = gate(model, frames, [clip[1:] for clip in actions], groups)
    figures: Json = {
        "num_clips": len(frames),
        "shifts": evaluate_inverse_dynamics(model, frames, actions, groups),
        "gate": {name: or_none(round(score, 4)) for name, score in spoilt.items()},
    }
    if reconstruct:
        through = reconstruct(frames.reshape(-1, *frames.shape[2:])).reshape(frames.shape)
        figures["reconstructed"] = evaluate_inverse_dynamics(model, through, actions, groups)["+0"]
    return figures
