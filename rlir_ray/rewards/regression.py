"""Regression metrics of recovered numbers against commanded numbers. Legend: N frames."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def mean_absolute_error(recovered: npt.ArrayLike, commanded: npt.ArrayLike) -> float:
    """Average the distance of the recovered from the commanded numbers, [N] in their unit; NaN without frames."""
    found, wanted = _pair(recovered, commanded)
    return float(np.abs(found - wanted).mean()) if wanted.size else float("nan")


def r2(recovered: npt.ArrayLike, commanded: npt.ArrayLike) -> float:
    """Compute the coefficient of determination: the share of the commands' variance that the numbers [N] explain.

    1 is perfect; a reader that always says the commands' mean has 0, a worse reader less. NaN if all commands are
    equal, because a constant reader would then be perfect without effort.
    """
    found, wanted = _pair(recovered, commanded)
    if not wanted.size or np.ptp(wanted) == 0:
        return float("nan")
    return float(1 - np.square(found - wanted).mean() / wanted.var())


def share_within(recovered: npt.ArrayLike, commanded: npt.ArrayLike, tolerance: float) -> float:
    """Compute the share of frames [N] whose error is at most the tolerance; NaN without frames."""
    found, wanted = _pair(recovered, commanded)
    return float((np.abs(found - wanted) <= tolerance).mean()) if wanted.size else float("nan")


def _pair(
    recovered: npt.ArrayLike, commanded: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    found, wanted = np.asarray(recovered, np.float64).ravel(), np.asarray(commanded, np.float64).ravel()
    if found.shape != wanted.shape:
        raise ValueError(
            f"recovered and commanded must be of one length, got {len(found)} and {len(wanted)}; cut both to the "
            "frames that are judged"
        )
    return found, wanted
