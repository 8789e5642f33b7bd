"""Check a judge on real clips before training: actions and frames must be aligned, corrupted clips must score low.

The score of a field is that of `field_scores`: macro-F1, or R² of a graded axis. Independent of training.
Legend: P clips, K frames of a clip (action i leads into frame i + 1), H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlir_ray.idm.base import InverseDynamics
from rlir_ray.rewards.classification import known_mean
from rlir_ray.rewards.corruptions import corrupted_clips
from rlir_ray.rewards.field_scores import FieldValues, commanded_values, field_scores, read_clips, score_words
from rlir_ray.spaces.fields import ActionField
from rlir_ray.spaces.layouts import check_space
from rlir_ray.spaces.space import Actions

SHIFTS = (-1, 0, 1)
# Least lead in score that proves another shift; a smaller lead may be chance for a model that reads little.
MIN_LEAD = 0.05
# A model that scores less than this at every shift reads nothing.
MIN_SCORE = 0.1
# Margin in score by which real clips must score above corrupted clips.
GATE_MARGIN = 0.1
# Blurred clips are reported but not in this list: they keep their motion, so a good judge may read them.
MUST_LOSE = ("static", "shuffled", "reversed", "wrong_action")


@dataclass(frozen=True, kw_only=True, slots=True)
class Alignment:
    """The score of recovered actions against commanded actions at each shift."""

    macro_f1: dict[int, float]
    """Shift -> mean score of the actions read in frames k against the actions that lead into frames k + shift. Files of
    results know it by this name, which is older than R²."""

    @property
    def best_shift(self) -> int:
        return max(self.macro_f1, key=lambda shift: self.macro_f1[shift])


def check_alignment(
    idm: InverseDynamics,
    frames: npt.NDArray[np.uint8],
    actions: Sequence[Actions],
    names: Sequence[str],
    source: str = "the recordings",
) -> Alignment:
    """Measure an inverse dynamics model on real clips at shifts -1, 0 and +1.

    Args:
        idm: the model.
        frames: uint8 [P, K, H, W, 3], real clips of at least four frames.
        actions: P times K - 1 actions; action i leads into frame i + 1.
        names: fields to compare; the score is averaged over the fields in use.
        source: name of the clips, for the error.

    Raises:
        ValueError: the actions fit the frames best at another shift than 0, no field is in use, or the model recovers
            actions of another space.
    """
    fields = _shared_fields(idm, actions, names, source)
    commanded, recovered = commanded_values(actions, names), read_clips(idm, frames, names)
    num_frames = frames.shape[1]
    if num_frames < 4:
        raise ValueError(f"alignment needs clips of at least 4 frames, got {num_frames}; raise world.num_frames")
    # Compare the same frames at each shift: the frames whose neighbours have an action too.
    inner = slice(2, num_frames - 1)
    # Column i of the commands leads into frame i + 1.
    shifted = [commanded.frames(slice(1 + shift, num_frames - 2 + shift)) for shift in SHIFTS]
    tables = np.stack([field_scores(recovered.frames(inner), part, fields) for part in shifted])  # [shifts, fields]
    # Compare the same fields at each shift: a field that occurs at some shifts only would change the mean.
    tables[:, np.isnan(tables).any(0)] = np.nan
    scores = dict(zip(SHIFTS, map(float, known_mean(tables)), strict=True))
    if np.isnan(scores[0]):
        raise ValueError(
            f"the actions of {source} must use an action group, got none of {','.join(names)}; give recordings in "
            "which the player acts, or name the groups in use (world.groups)"
        )
    alignment = Alignment(macro_f1=scores)
    if best := alignment.best_shift:
        scored = f"{score_words(fields)} {scores[best]:.2f} at shift {best:+d}, {scores[0]:.2f} in place"
        if scores[best] < MIN_SCORE:
            raise ValueError(
                f"the actions of {source} must be readable in their frames, got {score_words(fields)} {scores[0]:.2f}, "
                "and no more a frame earlier or later; train the inverse dynamics model longer, or choose another "
                "architecture"
            )
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
    names: Sequence[str],
    *,
    seed: int = 0,
) -> dict[str, float]:
    """Score an inverse dynamics model on real clips and on corrupted clips.

    Args:
        idm: the model.
        frames: uint8 [P, K, H, W, 3], real clips.
        actions: P times K - 1 actions; action i leads into frame i + 1.
        names: fields to compare; the score is averaged over the fields in use.
        seed: seed of the shuffling.

    Returns:
        Kind of clip -> score, NaN if no field is in use; `check_gate` takes this result. Kinds: ``exact`` (real clips),
        ``static``, ``blurred``, ``shuffled``, ``reversed`` (see `corrupted_clips`), ``wrong_action`` (the next clip's
        actions).

    Raises:
        ValueError: the model recovers actions of another space.
    """
    fields = _shared_fields(idm, actions, names, "the real clips")
    commanded = commanded_values(actions, names)
    corrupted = corrupted_clips(frames, 1, seed)
    variants = {"exact": frames, **{kind: corrupted[kind] for kind in ("static", "blurred", "shuffled", "reversed")}}

    def score(recovered: FieldValues, wanted: FieldValues) -> float:
        return float(known_mean(field_scores(recovered, wanted, fields)))

    recovered = {name: read_clips(idm, clips, names).frames(slice(1, None)) for name, clips in variants.items()}
    scores = {name: score(values, commanded) for name, values in recovered.items()}
    return scores | {"wrong_action": score(recovered["exact"], commanded.of_next_clip())}


def check_gate(scores: Mapping[str, float], name: str, margin: float = GATE_MARGIN) -> None:
    """Reject an inverse dynamics model that reads corrupted clips nearly as well as real clips.

    Args:
        scores: from `gate`.
        name: the configuration key of the model, for the error.
        margin: score by which real clips must score higher than corrupted clips.

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
            f"{name} must read real clips better than corrupted ones by {margin} (macro-F1; R² of graded axes), got "
            f"real {scores['exact']:.2f} and {', '.join(close)}; train it longer or give another"
        )


def _shared_fields(
    idm: InverseDynamics, actions: Sequence[Actions], names: Sequence[str], source: str
) -> tuple[ActionField, ...]:
    """Return the fields to compare.

    Raises:
        ValueError: the model recovers actions of another space, no field is named, or a name is unknown.
    """
    for clip in actions:
        check_space(idm.space, clip.space, "the inverse dynamics model", f"the actions of {source}")
    if not names:
        raise ValueError(
            f"world.groups must name a field that the inverse dynamics model reads, got none; name some of "
            f"{', '.join(idm.space.names)}"
        )
    return idm.space.select(names)


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What an inverse dynamics model reads in real and in corrupted clips, and whether a run may trust it."""

    kinds: dict[str, float]
    """Kind of clip -> score; from `gate`."""
    shifts: dict[int, float]
    """Shift -> score of the actions moved by it, from `check_alignment`; empty if that check failed."""
    fault: str = ""
    """Why a reward or a judge must not use the model; empty: it may."""


def audit_model(
    idm: InverseDynamics,
    name: str,
    clips: Mapping[str, tuple[npt.NDArray[np.uint8], Sequence[Actions]]],
    names: Sequence[str],
) -> Audit:
    """Check the alignment of an inverse dynamics model on all clips, and its gate on the last ones.

    Args:
        idm: the model.
        name: the model's name, for the fault.
        clips: name of the clips -> frames uint8 [P, K, H, W, 3] and P times K - 1 actions; action i leads into frame
            i + 1.
        names: fields to compare; the score is averaged over the fields in use.

    Raises:
        ValueError: the model recovers actions of another space.
    """
    shifts: dict[int, float] = {}
    kinds = gate(idm, *list(clips.values())[-1], names)
    try:
        shifts = [check_alignment(idm, *part, names, source) for source, part in clips.items()][-1].macro_f1
        check_gate(kinds, name)
    except ValueError as error:
        return Audit(kinds=kinds, shifts=shifts, fault=str(error))
    return Audit(kinds=kinds, shifts=shifts)
