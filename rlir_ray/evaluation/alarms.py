"""Alarms while a policy trains: signs that it fools the reward. Independent of pools.

Legend: P held-out prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlir_ray.evaluation.following import Following, standard_error
from rlir_ray.evaluation.quality import Quality
from rlir_ray.evaluation.results import Evaluation

# A sign counts when it is larger than this many standard errors, and than a least size: a share of the real clips'
# figure, or an accuracy.
NUM_ERRORS, LEAST_SHARE, LEAST_GAP = 2.0, 0.01, 0.02
# The entropy that is left, as a share of that of the first steps.
LEAST_ENTROPY, FIRST_STEPS = 0.5, 3
FIGURES = ("brightness", "sharpness", "motion", "repeated")


@dataclass(frozen=True, slots=True)
class Sign:
    """How far a policy has moved in a direction that a fooled reward would take."""

    value: float
    se: float
    """Standard error over the prompts."""
    is_alarm: bool
    text: str
    """One line for a person."""


def signs(base: Evaluation, now: Evaluation, real: Evaluation) -> dict[str, Sign]:
    """Compare a policy in training with the base policy and with real clips, on the first prompts of both.

    Args:
        base: the policy before training, on P prompts or more.
        now: the policy in training, on P prompts.
        real: the real clips of P prompts or more.

    Returns:
        ``judge_gap``: gain by the reward's IDM minus gain by the judge, as an accuracy (of axes: as a share of their
        range); missing without both models. ``brightness``, ``sharpness``, ``motion`` and ``repeated``: distance from
        real clips minus that of the base.
    """
    found = {}
    if {"reward", "judge"} <= base.following.keys() & now.following.keys():
        gains = [_gains(base.following[idm], now.following[idm]) for idm in ("reward", "judge")]
        gap = gains[0] - gains[1]
        mean, se = float(gap.mean()), standard_error(gap)
        found["judge_gap"] = Sign(
            mean,
            se,
            mean > max(NUM_ERRORS * se, LEAST_GAP),
            f"the reward's model sees {gains[0].mean():+.3f} and the judge {gains[1].mean():+.3f} since the start",
        )
    for figure in FIGURES:
        if sign := _drift(figure, base.quality, now.quality, real.quality):
            found[figure] = sign
    return found


def _gains(before: Following, after: Following) -> npt.NDArray[np.float64]:
    """Return the gain of each prompt, [P]; where the space has only axes, the error that is gone."""
    if "accuracy" in after.headline:
        return after.prompt_accuracy - before.prompt_accuracy[: len(after.prompt_accuracy)]
    return before.prompt_axis_error[: len(after.prompt_axis_error)] - after.prompt_axis_error


def _drift(figure: str, base: Quality, now: Quality, real: Quality) -> Sign | None:
    values = [getattr(each, figure) for each in (base, now, real)]
    if any(each is None for each in values):
        return None
    before, after, wanted = (each[: len(values[1])] for each in values)
    distance = abs(float(after.mean() - wanted.mean())) - abs(float(before.mean() - wanted.mean()))
    se = standard_error(after - before)
    least = LEAST_GAP if figure == "repeated" else LEAST_SHARE * abs(float(wanted.mean()))
    text = f"{figure} is {after.mean():.3g}, was {before.mean():.3g} before training, {wanted.mean():.3g} in real clips"
    return Sign(distance, se, distance > max(NUM_ERRORS * se, least), text)


def entropy_sign(history: Sequence[Mapping[str, float]]) -> Sign | None:
    """Compare the entropy of the policy's draws with that of the first steps; None: too few steps, or not logged."""
    values = [step["entropy/mean"] for step in history if "entropy/mean" in step]
    if len(values) <= FIRST_STEPS:
        return None
    first = float(np.mean(values[:FIRST_STEPS]))
    share = values[-1] / max(first, 1e-12)
    text = f"the entropy of the policy's draws is {values[-1]:.3g}, and was {first:.3g} in the first steps"
    return Sign(share, 0.0, share < LEAST_ENTROPY, text)
