"""Check a judge on real clips before training: actions and frames must be aligned, corrupted clips must score low.

Independent of training. Legend: P clips, K frames of a clip (action i leads into frame i + 1), H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rlir_ray.idm.base import InverseDynamics
from rlir_ray.idm.decoding import recovered_classes
from rlir_ray.rewards.classification import confusion, known_mean, macro_f1, occurs
from rlir_ray.spaces.actions import GROUPS, Actions, group_classes

SHIFTS = (-1, 0, 1)
# Least lead in macro-F1 that proves another shift; a smaller lead may be chance for a model that reads little.
MIN_LEAD = 0.05
# Most frames read at once, to bound the memory.
MAX_FRAMES = 576
# Margin in macro-F1 by which real clips must score above corrupted clips.
GATE_MARGIN = 0.1
# Blurred clips are reported but not in this list: they keep their motion, so a good judge may read them.
MUST_LOSE = ("static", "shuffled", "reversed", "wrong_action")


@dataclass(frozen=True, kw_only=True, slots=True)
class Alignment:
    """The macro-F1 of recovered actions against commanded actions at each shift."""

    macro_f1: dict[int, float]
    """Shift -> macro-F1 of the actions read in frames k against the actions that lead into frames k + shift."""

    @property
    def best_shift(self) -> int:
        return max(self.macro_f1, key=lambda shift: self.macro_f1[shift])


def check_alignment(
    idm: InverseDynamics,
    frames: npt.NDArray[np.uint8],
    actions: Sequence[Actions],
    groups: Sequence[str],
    source: str = "the recordings",
) -> Alignment:
    """Measure an inverse dynamics model on real clips at shifts -1, 0 and +1.

    Args:
        idm: the model.
        frames: uint8 [P, K, H, W, 3], real clips of at least four frames.
        actions: P times K - 1 actions; action i leads into frame i + 1.
        groups: action groups; the macro-F1 is averaged over the groups that occur.
        source: name of the clips, for the error.

    Raises:
        ValueError: the actions fit the frames best at another shift than 0.
    """
    commanded, recovered = _classes(actions, groups), read_clips(idm, frames, groups)
    num_frames = frames.shape[1]
    if num_frames < 4:
        raise ValueError(f"alignment needs clips of at least 4 frames, got {num_frames}; raise world.num_frames")
    # Compare the same frames at each shift: the frames whose neighbours have an action too.
    inner = slice(2, num_frames - 1)
    # Column i of the commands leads into frame i + 1.
    shifted = [commanded[:, 1 + shift : num_frames - 2 + shift] for shift in SHIFTS]
    tables = np.stack([group_scores(recovered[:, inner], part, groups) for part in shifted])  # [shifts, groups]
    # Compare the same groups at each shift: a group that occurs at some shifts only would change the mean.
    tables[:, np.isnan(tables).any(0)] = np.nan
    scores = dict(zip(SHIFTS, map(float, known_mean(tables)), strict=True))
    if np.isnan(scores[0]):
        raise ValueError(
            f"the actions of {source} must use an action group, got none of {','.join(groups)}; give recordings in "
            "which the player acts, or name the groups in use (world.groups)"
        )
    alignment = Alignment(macro_f1=scores)
    if best := alignment.best_shift:
        scored = f"macro-F1 {scores[best]:.2f} at shift {best:+d}, {scores[0]:.2f} in place"
        if scores[best] < scores[0] + MIN_LEAD:
            raise ValueError(
                f"the actions of {source} must be readable in their frames, got {scored}, too near to tell; give an "
                "inverse dynamics model that reads this world"
            )
        raise ValueError(
            f"the actions of {source} must lead into their own frames, but come a frame "
            f"{'late' if best > 0 else 'early'} ({scored}); set data.action_shift={best:+d} (where it is set, "
            f"add {best:+d} to it)"
        )
    return alignment


def gate(
    idm: InverseDynamics,
    frames: npt.NDArray[np.uint8],
    actions: Sequence[Actions],
    groups: Sequence[str],
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Compute the macro-F1 of an inverse dynamics model on real clips and on corrupted clips.

    Args:
        idm: the model.
        frames: uint8 [P, K, H, W, 3], real clips.
        actions: P times K - 1 actions; action i leads into frame i + 1.
        groups: action groups; the macro-F1 is averaged over the groups that occur.
        seed: seed of the shuffling.

    Returns:
        Kind of clip -> macro-F1, NaN if no group occurs; `check_gate` takes this result. Kinds: ``exact`` (real clips),
        ``static`` (the first frame repeated), ``blurred`` (by a box of 5 pixels), ``shuffled`` (all frames but the
        first in random order), ``reversed``, ``wrong_action`` (the next clip's actions).
    """
    commanded = _classes(actions, groups)
    order = np.argsort(np.random.default_rng(seed).random((len(frames), frames.shape[1] - 1)), axis=1) + 1
    shuffled = np.concatenate([np.zeros((len(frames), 1), np.int64), order], 1)
    variants = {
        "exact": frames,
        "static": np.repeat(frames[:, :1], frames.shape[1], axis=1),
        "blurred": box_blur(frames, 5),
        "shuffled": frames[np.arange(len(frames))[:, None], shuffled],
        "reversed": frames[:, ::-1],
    }
    recovered = {name: read_clips(idm, clips, groups)[:, 1:] for name, clips in variants.items()}
    scores = {name: _score(classes, commanded, groups) for name, classes in recovered.items()}
    return scores | {"wrong_action": _score(recovered["exact"], np.roll(commanded, -1, axis=0), groups)}


def check_gate(scores: Mapping[str, float], name: str, margin: float = GATE_MARGIN) -> None:
    """Reject an inverse dynamics model that reads corrupted clips nearly as well as real clips.

    Args:
        scores: from `gate`.
        name: the configuration key of the model, for the error.
        margin: macro-F1 by which real clips must score higher than corrupted clips.

    Raises:
        ValueError: corrupted clips score too high; the message names them.
    """
    if np.isnan(scores["exact"]):
        raise ValueError(
            f"{name} must be tried on clips in which an action group of the world occurs, got none; give recordings in "
            "which the player acts, or name the groups in use (world.groups)"
        )
    close = [f"{name} {scores[name]:.2f}" for name in MUST_LOSE if scores[name] > scores["exact"] - margin]
    if close:
        raise ValueError(
            f"{name} must read real clips better than corrupted ones by {margin} macro-F1, got real "
            f"{scores['exact']:.2f} and {', '.join(close)}; train it longer or give another"
        )


def read_clips(idm: InverseDynamics, frames: npt.NDArray[np.uint8], groups: Sequence[str]) -> npt.NDArray[np.int64]:
    """Read the classes of all frames, int64 [P, K, groups]; the class of frame k belongs to the action INTO frame k."""
    at_once = max(1, MAX_FRAMES // frames.shape[1])
    parts = []
    with torch.no_grad():
        for start in range(0, len(frames), at_once):
            clips = torch.from_numpy(np.ascontiguousarray(frames[start : start + at_once]))
            parts.append(recovered_classes(idm.logits(clips), groups).numpy())
    return np.concatenate(parts)


def box_blur(frames: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Replace each pixel by the average of `size` x `size` pixels (odd), uint8 [P, K, H, W, 3] to the same shape."""
    images = torch.from_numpy(np.ascontiguousarray(frames)).flatten(0, 1).permute(0, 3, 1, 2).float()
    blurred = torch.nn.functional.avg_pool2d(images, size, stride=1, padding=size // 2, count_include_pad=False)
    return blurred.round().to(torch.uint8).permute(0, 2, 3, 1).reshape(frames.shape).numpy()


def _classes(actions: Sequence[Actions], groups: Sequence[str]) -> npt.NDArray[np.int64]:
    return np.stack([group_classes(clip, groups) for clip in actions])  # [P, K - 1, groups]


def _score(recovered: npt.NDArray[np.int64], commanded: npt.NDArray[np.int64], groups: Sequence[str]) -> float:
    """Average the macro-F1 over the groups that occur; NaN if none occurs. Both arrays: int64 [P, frames, groups]."""
    return float(known_mean(group_scores(recovered, commanded, groups)))


def group_scores(
    recovered: npt.NDArray[np.int64], commanded: npt.NDArray[np.int64], groups: Sequence[str]
) -> npt.NDArray[np.float64]:
    """Compute the macro-F1 of each group, [groups]; NaN if the group never occurs.

    Args:
        recovered: int64 [P, frames, groups], recovered classes.
        commanded: int64 [P, frames, groups], commanded classes.
        groups: the action groups.
    """
    scores = np.full(len(groups), np.nan)
    for column, name in enumerate(groups):
        table = confusion(recovered[..., column], commanded[..., column], GROUPS[name].num_classes)
        if occurs(table, GROUPS[name].null_class):
            scores[column] = macro_f1(table)
    return scores
