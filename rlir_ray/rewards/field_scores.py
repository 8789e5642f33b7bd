"""One score a field: how well the actions that an inverse dynamics model reads in real clips are the recorded ones.

Legend: P clips, K frames of a clip, n fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rlir_ray.idm.base import InverseDynamics, Reading, axis_values, stack_classes
from rlir_ray.rewards.classification import confusion, macro_f1, occurs
from rlir_ray.rewards.regression import r2
from rlir_ray.spaces.fields import ActionField, Axis
from rlir_ray.spaces.space import Actions

# Most frames read at once, to bound the memory.
MAX_FRAMES = 576


@dataclass(frozen=True)
class FieldValues:
    """What some fields are in clips, recovered or commanded."""

    classes: npt.NDArray[np.int64]
    """[P, K, n]; of an axis the bin."""
    values: npt.NDArray[np.float32]
    """[P, K, n]; of an axis the number in its unit, of a choice the class."""

    def frames(self, span: slice | npt.NDArray[np.int64]) -> FieldValues:
        """Return some frames of all clips."""
        return FieldValues(self.classes[:, span], self.values[:, span])

    def clips(self, rows: npt.NDArray[np.int64]) -> FieldValues:
        """Return some clips."""
        return FieldValues(self.classes[rows], self.values[rows])

    def pictured(self, fields: Sequence[ActionField]) -> npt.NDArray[np.float32]:
        """Return the values that pictures compare with the commands, [P, K, n]: of graded axes numbers, else classes.

        The mean of a mu-law axis may lie in another bin than the one that counts as read.
        """
        columns = [
            self.values[..., column] if field.is_graded else field.centres(self.classes[..., column])
            for column, field in enumerate(fields)
        ]
        return np.stack(columns, -1).astype(np.float32)

    @classmethod
    def joined(cls, parts: Sequence[FieldValues]) -> FieldValues:
        """Return the clips of all parts, one part after another."""
        classes = np.concatenate([part.classes for part in parts])
        return cls(classes, np.concatenate([part.values for part in parts]))

    def of_next_clip(self) -> FieldValues:
        """Return the values of clip p + 1 at the place of clip p."""
        return FieldValues(np.roll(self.classes, -1, axis=0), np.roll(self.values, -1, axis=0))


def commanded_values(actions: Sequence[Actions], names: Sequence[str]) -> FieldValues:
    """Return what P clips of K actions command; numbers beyond the range of a clipped axis count as its end."""
    values = np.stack([clip.values_of(names) for clip in actions])
    for column, field in enumerate(actions[0].space.select(names)):
        if isinstance(field, Axis):
            values[..., column] = values[..., column].clip(field.low, field.high)
    return FieldValues(np.stack([clip.classes_of(names) for clip in actions]), values)


def read_clips(idm: InverseDynamics, frames: npt.NDArray[np.uint8], names: Sequence[str]) -> FieldValues:
    """Read clips, uint8 [P, K, H, W, 3]; the values of frame k belong to the action INTO frame k.

    The number of an axis is the expected value of its bins.
    """
    fields, at_once = idm.space.select(names), max(1, MAX_FRAMES // frames.shape[1])
    parts = []
    with torch.no_grad():
        for start in range(0, len(frames), at_once):
            reading = idm.read(torch.from_numpy(np.ascontiguousarray(frames[start : start + at_once])), names)
            parts.append(read_values(reading, fields))
    return FieldValues.joined(parts)


def read_long(idm: InverseDynamics, frames: npt.NDArray[np.uint8], names: Sequence[str], window: int) -> FieldValues:
    """Read clips of any length, uint8 [P, K, H, W, 3], as a model reads that was trained on clips of `window` frames.

    Windows overlap by half, and each frame counts where it is furthest from the ends of its window.
    """
    num_frames = frames.shape[1]
    if num_frames <= window:
        return read_clips(idm, frames, names)
    last, hop = num_frames - window, max(1, window // 2)
    starts = np.array([*range(0, last, hop), last])
    parts = [read_clips(idm, frames[:, start : start + window], names) for start in starts]
    places = np.arange(num_frames)[:, None] - starts  # [K, windows], place of each frame in each window
    room = np.minimum(places, window - 1 - places)
    # The ends of a clip are the ends of their windows too: nothing lies beyond them.
    chosen = room.argmax(1)
    rows = places[np.arange(num_frames), chosen]

    def picked(tables: list[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
        return np.stack([tables[part][:, row] for part, row in zip(chosen, rows, strict=True)], 1)

    return FieldValues(picked([part.classes for part in parts]), picked([part.values for part in parts]))  # type: ignore[arg-type]  # one type each


def read_values(reading: Reading, fields: Sequence[ActionField]) -> FieldValues:
    """Return what a reading says of B clips: the most probable classes, and of an axis the expected value."""
    classes = stack_classes(reading, [field.name for field in fields]).numpy()
    values = classes.astype(np.float32)
    for column, field in enumerate(fields):
        if isinstance(field, Axis):
            values[..., column] = axis_values(reading.probabilities[field.name], field).cpu().numpy()
    return FieldValues(classes, values)


def field_scores(
    recovered: FieldValues, commanded: FieldValues, fields: Sequence[ActionField]
) -> npt.NDArray[np.float64]:
    """Score each field in [0, 1]: a graded axis by R² of its number, every other field by macro-F1 of its classes.

    A graded axis has bins of equal width, which are often many and rare, and near misses count. The bins of a mu-law
    axis are classes, as VPT scores them. R² below 0 counts as 0, so that a static clip scores about 0.

    Returns:
        float64 [n]; NaN for a field that is never used: only its null class is commanded, or always the same number.
    """
    scores = np.full(len(fields), np.nan)
    for column, field in enumerate(fields):
        if field.is_graded:
            scores[column] = np.clip(r2(recovered.values[..., column], commanded.values[..., column]), 0, 1)
            continue
        table = confusion(recovered.classes[..., column], commanded.classes[..., column], field.num_classes)
        if occurs(table, field.null_class):
            scores[column] = macro_f1(table)
    return scores


def score_words(fields: Sequence[ActionField]) -> str:
    """Name the scores of these fields for a person."""
    graded = {field.is_graded for field in fields}
    return " and ".join(word for kind, word in ((False, "macro-F1"), (True, "R²")) if kind in graded)
