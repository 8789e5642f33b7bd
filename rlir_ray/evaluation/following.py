"""Action following, the recovery of commanded actions from videos: its figures and their standard errors.

A choice has accuracy and macro-F1, a graded axis the error and R². Independent of models; `following_json` is its file
format. Legend: P clips (one for each prompt), F generated frames, K fields, C classes of a field, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rlir_ray.rewards.classification import confusion, known_mean, macro_f1, occurs
from rlir_ray.rewards.field_scores import FieldValues
from rlir_ray.spaces.fields import ActionField, Axis

CLASS_FIGURES, AXIS_FIGURES = ("accuracy", "macro_f1"), ("axis_error", "r2")
"""Figures of the fields whose classes are compared, and of the graded axes."""
NUM_RESAMPLES = 200
# All evaluations take the same resamples, so that paired differences cancel what the prompts share.
BOOTSTRAP_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Following:
    """The actions that one inverse dynamics model recovered in P clips, and the figures computed from these actions.

    Means are over the fields in use: the choices with a command other than "none", the graded axes whose commands
    differ. Without such a field a mean is NaN.

    Args:
        fields: the K fields.
        commanded: classes and values [P, F, K], values within the ranges of their axes.
        recovered: the same as the model read them; of an axis, the mean of its distribution.

    Raises:
        ValueError: the shapes differ, or do not fit the fields.
    """

    fields: tuple[ActionField, ...]
    commanded: FieldValues
    recovered: FieldValues

    def __post_init__(self) -> None:
        one, *others = (part.shape for side in (self.commanded, self.recovered) for part in (side.classes, side.values))
        if any(other != one for other in others) or len(one) != 3 or one[-1] != len(self.fields):
            raise ValueError(
                f"commanded and recovered actions must both be [P, F, {len(self.fields)}], got {one} and {others[1]}; "
                "cut both to the generated frames"
            )

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the K fields."""
        return tuple(field.name for field in self.fields)

    @property
    def num_prompts(self) -> int:
        return len(self.commanded.classes)

    @property
    def headline(self) -> tuple[str, ...]:
        """The figures that sum up these fields."""
        return (() if self.is_graded.all() else CLASS_FIGURES) + (AXIS_FIGURES if self.is_graded.any() else ())

    @cached_property
    def is_graded(self) -> npt.NDArray[np.bool_]:
        """Whether each field is a graded axis, bool [K]."""
        return np.array([field.is_graded for field in self.fields])

    @cached_property
    def in_use(self) -> npt.NDArray[np.bool_]:
        """Whether each field is in use, bool [K]."""
        differ = np.ptp(self.commanded.values, axis=(0, 1)) > 0
        acts = [occurs(self.confusions[field.name].sum(0), field.null_class) for field in self.fields]
        return np.where(self.is_graded, differ, acts)

    # -----------------------------------------------------------------------------------------------------------------
    # Classes

    @cached_property
    def prompt_accuracy(self) -> npt.NDArray[np.float64]:
        """Share of the (frame, field) pairs of each clip that agree, over the fields in use, [P]."""
        agree = (self.commanded.classes == self.recovered.classes).mean(1)  # [P, K]
        return known_mean(np.where(self.in_use & ~self.is_graded, agree, np.nan))

    @cached_property
    def accuracy(self) -> float:
        return float(self.prompt_accuracy.mean())

    @cached_property
    def accuracy_se(self) -> float:
        """Standard error over prompts: clips are independent of each other, frames of one clip are not."""
        return standard_error(self.prompt_accuracy)

    @cached_property
    def macro_f1(self) -> float:
        """Mean over the fields in use of the mean F1 over the commanded classes."""
        return float(known_mean(self.group_macro_f1(self._every_prompt))[0])

    @cached_property
    def macro_f1_se(self) -> float:
        """Standard error from resampled prompts."""
        return bootstrap_std(self.resampled_macro_f1)

    @cached_property
    def resampled_macro_f1(self) -> npt.NDArray[np.float64]:
        """Macro-F1 over prompts drawn with replacement, [NUM_RESAMPLES]; equal P gives equal draws."""
        return known_mean(self.group_macro_f1(resamples(self.num_prompts)))

    @cached_property
    def confusions(self) -> dict[str, npt.NDArray[np.int64]]:
        """Field -> counts [P, C, C]; rows are commanded classes, columns recovered classes."""
        found = {}
        for column, field in enumerate(self.fields):
            clips = zip(self.recovered.classes[..., column], self.commanded.classes[..., column], strict=True)
            found[field.name] = np.stack([confusion(*clip, field.num_classes) for clip in clips])
        return found

    def group_macro_f1(self, weights: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Compute macro-F1 of each field over weighted prompts.

        Args:
            weights: int [R, P], how often each of R samples holds each prompt.

        Returns:
            float64 [R, K]; NaN where no prompt of the sample uses the field, or where the field is a graded axis.
        """
        columns = []
        for field in self.fields:
            counts = self.confusions[field.name]
            pooled = (weights @ counts.reshape(len(counts), -1)).reshape(-1, *counts.shape[1:])  # [R, C, C]
            counts_here = occurs(pooled, field.null_class) & (not field.is_graded)
            columns.append(np.where(counts_here, macro_f1(pooled), np.nan))
        return np.stack(columns, -1)

    # -----------------------------------------------------------------------------------------------------------------
    # Axes

    @cached_property
    def prompt_axis_error(self) -> npt.NDArray[np.float64]:
        """Mean absolute error of each clip, as a share of each axis's range, over the graded axes in use, [P]."""
        one, other = self._shares
        return known_mean(np.where(self.in_use & self.is_graded, np.abs(other - one).mean(1), np.nan))

    @cached_property
    def axis_error(self) -> float:
        return float(self.prompt_axis_error.mean())

    @cached_property
    def axis_error_se(self) -> float:
        return standard_error(self.prompt_axis_error)

    @cached_property
    def r2(self) -> float:
        """Share of the commands' variance that the readings explain, mean over the graded axes in use."""
        return float(self._graded_r2(self._every_prompt)[0])

    @cached_property
    def r2_se(self) -> float:
        """Standard error from resampled prompts."""
        return bootstrap_std(self.resampled_r2)

    @cached_property
    def resampled_r2(self) -> npt.NDArray[np.float64]:
        """R² over prompts drawn with replacement, [NUM_RESAMPLES]; equal P gives equal draws."""
        return self._graded_r2(resamples(self.num_prompts))

    def _graded_r2(self, weights: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return known_mean(np.where(self.is_graded, self.field_r2(weights), np.nan))

    def field_r2(self, weights: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Compute R² of each field's values over weighted prompts.

        Args:
            weights: int [R, P], how often each of R samples holds each prompt.

        Returns:
            float64 [R, K]; NaN where all commands of the sample are equal.
        """
        commanded, recovered = self._shares
        squared = np.square(recovered - commanded).sum(1)  # [P, K]
        # Sums around the mean of all commands keep their precision.
        centred = commanded - commanded.mean((0, 1))
        first, second = weights @ centred.sum(1), weights @ np.square(centred).sum(1)
        variance = second - np.square(first) / (weights.sum(1, keepdims=True) * commanded.shape[1])  # [R, K]
        lost = np.divide(weights @ squared, variance, out=np.full(variance.shape, np.nan), where=variance > 1e-9)
        found: npt.NDArray[np.float64] = 1 - lost
        return found

    @property
    def _shares(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Commanded and recovered values in units of their axes' ranges, [P, F, K] each."""
        ranges = np.array([field.high - field.low if isinstance(field, Axis) else 1.0 for field in self.fields])
        # One order in memory: otherwise sums of actions that were read from a file would differ in their last digit.
        commanded, recovered = (np.divide(side.values, ranges, order="C") for side in (self.commanded, self.recovered))
        return commanded, recovered

    # -----------------------------------------------------------------------------------------------------------------

    @cached_property
    def per_group(self) -> dict[str, dict[str, float]]:
        """Figures of each field; NaN where a figure does not apply or the field is not in use.

        All have `accuracy` and `macro_f1`. An axis also has `mae` (in its unit), `r2`, and `within`, the share of
        readings at most one bin away from the command.
        """
        one, other = self.commanded, self.recovered
        agree = np.where(self.in_use & ~self.is_graded, (one.classes == other.classes).mean((0, 1)), np.nan)
        scores, r2 = self.group_macro_f1(self._every_prompt)[0], self.field_r2(self._every_prompt)[0]
        errors = np.abs(np.subtract(other.values, one.values, dtype=np.float64, order="C")).mean((0, 1))
        near = (np.abs(other.classes - one.classes) <= 1).mean((0, 1))
        found = {}
        for column, field in enumerate(self.fields):
            figures = {"accuracy": agree[column], "macro_f1": scores[column]}
            if isinstance(field, Axis):
                figures |= {"mae": errors[column], "r2": r2[column], "within": near[column]}
            found[field.name] = {name: float(value) for name, value in figures.items()}
        return found

    @property
    def _every_prompt(self) -> npt.NDArray[np.int64]:
        return np.ones((1, self.num_prompts), np.int64)


def standard_error(values: npt.NDArray[np.float64]) -> float:
    """Compute the standard error of the mean of independent values [P]; NaN for fewer than two."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def bootstrap_std(resampled: npt.NDArray[np.float64]) -> float:
    """Compute the standard deviation over the finite resamples; NaN for fewer than two."""
    known = resampled[~np.isnan(resampled)]
    return float(known.std(ddof=1)) if len(known) > 1 else float("nan")


def resamples(num_prompts: int) -> npt.NDArray[np.int64]:
    """Draw bootstrap resamples; return how often each contains each prompt, int64 [NUM_RESAMPLES, num_prompts]."""
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    return generator.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=NUM_RESAMPLES)
