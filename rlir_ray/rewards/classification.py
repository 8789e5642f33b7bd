"""Classification metrics of recovered actions against commanded actions.
Legend: N frames, C classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def confusion(recovered: npt.ArrayLike, commanded: npt.ArrayLike, num_classes: int) -> npt.NDArray[np.int64]:
    """Count each pair of classes.

    Args:
        recovered: int [N], classes that a judge has recovered.
        commanded: int [N], commanded classes.
        num_classes: C.

    Returns:
        int64 [C, C], rows commanded, columns recovered. The confusions of disjoint sets of frames can be added.

    Raises:
        ValueError: the lengths differ or a class lies outside 0..C-1.
    """
    recovered, commanded = np.asarray(recovered, np.int64).ravel(), np.asarray(commanded, np.int64).ravel()
    if recovered.shape != commanded.shape:
        raise ValueError(
            f"recovered and commanded must be of one length, got {len(recovered)} and {len(commanded)}; "
            "cut both to the frames that are judged"
        )
    both = np.concatenate([recovered, commanded])
    if both.size and not (both.min() >= 0 and both.max() < num_classes):
        raise ValueError(
            f"classes must lie in 0..{num_classes - 1}, got {both.min()}..{both.max()}; check num_classes of the field"
        )
    return np.bincount(commanded * num_classes + recovered, minlength=num_classes**2).reshape(num_classes, -1)


def class_f1(confusion: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Compute the F1 of each class, [..., C, C] to [..., C]; NaN for a class that was never commanded."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    commanded = confusion.sum(-1)
    both = commanded + confusion.sum(-2)
    f1: npt.NDArray[np.float64] = np.divide(2 * hits, both, out=np.full(hits.shape, np.nan), where=commanded > 0)
    return f1


def macro_f1(confusion: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Average the F1 over the commanded classes, [..., C, C] to [...]; NaN without frames.

    A class that was never commanded has no F1, because one wrong recovery would count like a whole class. Its false
    alarms count as misses of other classes. So every row of a table averages over the same classes.
    """
    return known_mean(class_f1(confusion))


def balanced_accuracy(confusion: npt.NDArray[np.int64]) -> float:
    """Average the recall over the commanded classes; NaN without frames."""
    commanded = confusion.sum(1)
    seen = commanded > 0
    return float((np.diag(confusion)[seen] / commanded[seen]).mean()) if seen.any() else float("nan")


def occurs(confusion: npt.NDArray[np.int64], null_class: int | None) -> npt.NDArray[np.bool_]:
    """Return whether a field is used, [..., C, C] to bool [...]: a class other than the null class was commanded.

    A field in which only the null class was commanded scores 1.0 without effort and would raise any mean over fields.
    Without a null class (None), two classes must have been commanded for the same reason.
    """
    commanded = confusion.sum(-1)
    idle = commanded.max(-1) if null_class is None else commanded[..., null_class]
    found: npt.NDArray[np.bool_] = commanded.sum(-1) > idle
    return found


def known_mean(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Average over the last axis, ignoring NaN, [..., N] to [...]; NaN if all values are NaN."""
    found = np.asarray(values, np.float64)
    num_known = (~np.isnan(found)).sum(-1)
    sums = np.nansum(found, -1)
    means: npt.NDArray[np.float64] = np.divide(sums, num_known, out=np.full(sums.shape, np.nan), where=num_known > 0)
    return means


def or_none(value: float) -> float | None:
    """Convert a figure for strict JSON: None for NaN."""
    return None if np.isnan(value) else float(value)


def accuracy(confusion: npt.NDArray[np.int64]) -> float:
    """Compute the share of frames whose class was recovered; NaN without frames."""
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")
