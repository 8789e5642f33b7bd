"""Two evaluations over the same prompts: paired differences and their standard errors.

Each prompt is compared with itself, so that the difficulty of a prompt cancels. Independent of models and files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlir_ray.evaluation.following import Following, bootstrap_std, standard_error
from rlir_ray.evaluation.quality import FIGURES, Quality


@dataclass(frozen=True, kw_only=True)
class Change:
    """After minus before, mean over the prompts, with its paired standard error; NaN where a side has no figure."""

    mean: float
    se: float


def following_changes(before: Following, after: Following) -> dict[str, Change]:
    """Compute the changes of `accuracy` and `macro_f1`.

    Raises:
        ValueError: the two were not read on the same prompts and commands.
    """
    if before.commanded.shape != after.commanded.shape or (before.commanded != after.commanded).any():
        raise ValueError(
            f"evaluations can be compared on the same prompts only, got {before.commanded.shape} and "
            f"{after.commanded.shape} (P, F, groups) or other commands; evaluate both with one prompt set"
        )
    resampled = after.resampled_macro_f1 - before.resampled_macro_f1
    return {
        "accuracy": _change(after.prompt_accuracy - before.prompt_accuracy),
        "macro_f1": Change(mean=after.macro_f1 - before.macro_f1, se=bootstrap_std(resampled)),
    }


def quality_changes(before: Quality, after: Quality) -> dict[str, Change]:
    """Compute the changes of the figures that both have, over the same prompts."""
    pairs = {figure: (getattr(before, figure), getattr(after, figure)) for figure in FIGURES}
    return {figure: _change(two - one) for figure, (one, two) in pairs.items() if one is not None and two is not None}


def _change(differences: npt.NDArray[np.float64]) -> Change:
    return Change(mean=float(differences.mean()), se=standard_error(differences))
