"""Action following, the recovery of commanded actions from videos: accuracy, macro-F1 and their standard errors.

Imports numpy only; independent of models.
Legend: P clips (one for each prompt), F generated frames, K action groups, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from rlir_ray.data.files import Json
from rlir_ray.rewards.classification import confusion, known_mean, macro_f1, occurs, or_none
from rlir_ray.spaces.actions import GROUPS

FIGURES = ("accuracy", "accuracy_se", "macro_f1", "macro_f1_se")
NUM_RESAMPLES = 200
# All evaluations take the same resamples, so that paired differences cancel what the prompts share.
BOOTSTRAP_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Following:
    """The classes that one inverse dynamics model recovered in P clips, and the figures computed from these classes.

    Means are over the groups in use: the groups with a command other than "none". Without such a group the means are
    NaN.

    Args:
        groups: names of the K columns, from `rlir_ray.spaces.actions.GROUPS`.
        commanded: int64 [P, F, K], the commanded classes.
        recovered: int64 [P, F, K], the classes that the model read.

    Raises:
        ValueError: the shapes differ, or do not fit the groups.
    """

    groups: tuple[str, ...]
    commanded: npt.NDArray[np.int64]
    recovered: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        shapes = self.commanded.shape, self.recovered.shape
        if shapes[0] != shapes[1] or len(shapes[0]) != 3 or shapes[0][-1] != len(self.groups):
            raise ValueError(
                f"commanded and recovered classes must both be [P, F, {len(self.groups)}], got {shapes[0]} and "
                f"{shapes[1]}; cut both to the generated frames"
            )

    @cached_property
    def in_use(self) -> npt.NDArray[np.bool_]:
        """Whether each group is in use, bool [K]."""
        return np.array([occurs(self.confusions[name].sum(0), GROUPS[name].null_class) for name in self.groups])

    @cached_property
    def prompt_accuracy(self) -> npt.NDArray[np.float64]:
        """Share of the (frame, group) pairs of each clip that agree, over the groups in use, [P]."""
        return known_mean(np.where(self.in_use, (self.commanded == self.recovered).mean(1), np.nan))

    @cached_property
    def accuracy(self) -> float:
        return float(self.prompt_accuracy.mean())

    @cached_property
    def accuracy_se(self) -> float:
        """Standard error over prompts: clips are independent of each other, frames of one clip are not."""
        return standard_error(self.prompt_accuracy)

    @cached_property
    def macro_f1(self) -> float:
        """Mean over the groups in use of the mean F1 over the commanded classes."""
        return float(known_mean(self.group_macro_f1(self._every_prompt))[0])

    @cached_property
    def macro_f1_se(self) -> float:
        """Standard error from resampled prompts."""
        return bootstrap_std(self.resampled_macro_f1)

    @cached_property
    def resampled_macro_f1(self) -> npt.NDArray[np.float64]:
        """Macro-F1 over prompts drawn with replacement, [NUM_RESAMPLES]; equal P gives equal draws."""
        return known_mean(self.group_macro_f1(resamples(len(self.commanded))))

    @cached_property
    def per_group(self) -> dict[str, dict[str, float]]:
        """Accuracy and macro-F1 of each group; NaN for a group that is not in use."""
        accuracies = np.where(self.in_use, (self.commanded == self.recovered).mean((0, 1)), np.nan)
        scores = self.group_macro_f1(self._every_prompt)[0]
        return {
            name: {"accuracy": float(accuracies[column]), "macro_f1": float(scores[column])}
            for column, name in enumerate(self.groups)
        }

    @cached_property
    def confusions(self) -> dict[str, npt.NDArray[np.int64]]:
        """Group -> counts [P, C, C]; rows are commanded classes, columns recovered classes."""
        found = {}
        for column, name in enumerate(self.groups):
            clips = zip(self.recovered[..., column], self.commanded[..., column], strict=True)
            found[name] = np.stack([confusion(*clip, GROUPS[name].num_classes) for clip in clips])
        return found

    @property
    def _every_prompt(self) -> npt.NDArray[np.int64]:
        return np.ones((1, len(self.commanded)), np.int64)

    def group_macro_f1(self, weights: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Compute macro-F1 of each group over weighted prompts.

        Args:
            weights: int [R, P], how often each of R samples holds each prompt.

        Returns:
            float64 [R, K]; NaN where no prompt of the sample uses the group.
        """
        columns = []
        for name, counts in self.confusions.items():
            pooled = (weights @ counts.reshape(len(counts), -1)).reshape(-1, *counts.shape[1:])  # [R, C, C]
            columns.append(np.where(occurs(pooled, GROUPS[name].null_class), macro_f1(pooled), np.nan))
        return np.stack(columns, -1)

    def to_json(self) -> dict[str, object]:
        """Return the figures (null if undefined) and the classes from which `from_json` computes them again."""
        figures = {name: or_none(getattr(self, name)) for name in FIGURES}
        per_group = {
            name: {figure: or_none(value) for figure, value in part.items()} for name, part in self.per_group.items()
        }
        return {
            **figures,
            "per_group": per_group,
            "groups": list(self.groups),
            "commanded": _to_text(self.commanded),
            "recovered": _to_text(self.recovered),
        }

    @classmethod
    def from_json(cls, content: Json) -> Following:
        commanded, recovered = (_from_text(content[key]) for key in ("commanded", "recovered"))
        return cls(groups=tuple(content["groups"]), commanded=commanded, recovered=recovered)


def _to_text(classes: npt.NDArray[np.int64]) -> list[str]:
    """Format classes as a line for each clip, with a word for each frame and a base-36 digit for each group."""
    return [" ".join("".join(np.base_repr(index, 36) for index in frame) for frame in clip) for clip in classes]


def _from_text(lines: Sequence[str]) -> npt.NDArray[np.int64]:
    return np.array([[[int(digit, 36) for digit in word] for word in line.split()] for line in lines], np.int64)


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
