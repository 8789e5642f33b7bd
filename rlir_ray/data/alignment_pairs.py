"""Pairs of neighbouring frames with the actions around them, for the probe of `rlir_ray.data.alignment`.

Legend: F frames, H W pixels, B pairs, C classes of a field.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from rlir_ray.spaces.fields import ActionField
from rlir_ray.spaces.layouts import check_space
from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.vpt import BUTTONS, IDM_BUTTONS, VPT_SPACE

SHIFTS = (-1, 0, 1)
# Larger frames are reduced to this size: motion stays visible, and a training step takes milliseconds.
HEIGHT, WIDTH = 48, 64
# Maximum number of pairs. Half of the pairs lie where actions change: elsewhere all shifts have the same action.
MAX_PAIRS = 6000
# Share of each recording, at its end, for the evaluation.
HELD_OUT = 0.25
# Minimum number of frames, and of samples of a class, for a meaningful result.
MIN_FRAMES, MIN_OF_CLASS = 600, 20
# Most classes of a graded axis: more would be too rare, and a change by one of many bins cannot be seen.
MAX_KINDS = 7


@dataclass(frozen=True, slots=True)
class Pairs:
    frames: Tensor
    """uint8 [B, 6, h, w], frame k - 1 before frame k."""
    kinds: list[Tensor]
    """Of each field int64 [B, shifts], below `num_kinds`; -1: a class that is too rare."""
    num_kinds: list[int]
    """Of each field, the number of classes that are frequent enough."""
    held_out: Tensor
    """bool [B], whether the pair is for the evaluation."""


def draw_pairs(
    recordings: Iterable[tuple[npt.NDArray[np.uint8], Actions]], random: np.random.Generator
) -> Pairs | None:
    """Draw at most `MAX_PAIRS` pairs, evenly from all recordings; None: there are too few frames or actions."""
    recordings = list(recordings)
    total = sum(len(actions) for _, actions in recordings)
    if total < MIN_FRAMES:
        return None
    frames, tables, held = [], [], []
    for (pictures, actions), own in zip(recordings, _visible_classes([each for _, each in recordings]), strict=True):
        count = len(actions)
        if count < 4:
            continue
        places = np.arange(1, count - 1)
        around = np.stack([own[places + shift] for shift in SHIFTS], 1)  # [n, shifts, fields]
        changes = (around != around[:, 1:2]).any((1, 2))
        quota = max(2, MAX_PAIRS * count // total)
        chosen = [random.permutation(places[kind])[: quota // 2] for kind in (changes, ~changes)]
        picked = np.sort(np.concatenate(chosen))
        frames.append(_small_pairs(pictures, picked))
        tables.append(around[picked - 1])
        held.append(picked >= (1 - HELD_OUT) * count)
    table, held_out = np.concatenate(tables), np.concatenate(held)
    kinds, num_kinds = [], []
    for column in range(table.shape[2]):
        counts = np.bincount(table[~held_out, 1, column], minlength=table[..., column].max() + 1)
        if len(common := np.flatnonzero(counts >= MIN_OF_CLASS)) < 2:
            continue
        place = np.full(len(counts), -1)
        place[common] = np.arange(len(common))
        num_kinds.append(len(common))
        kinds.append(torch.from_numpy(place[table[:, :, column]]))
    if not kinds:
        return None
    return Pairs(torch.cat(frames), kinds, num_kinds, torch.from_numpy(held_out))


def _visible_classes(clips: Sequence[Actions]) -> list[npt.NDArray[np.int64]]:
    """Return the classes of each clip in the fields that frames can show, [F, fields].

    Raises:
        ValueError: the clips are of several spaces.
    """
    space = clips[0].space
    for clip in clips:
        check_space(space, clip.space, "the first recording", "each recording")
    # VPT's model has no head for buttons without a visible effect.
    hidden = set(BUTTONS) - set(IDM_BUTTONS) if space == VPT_SPACE else set()
    fields = [field for field in space.fields if field.name not in hidden]
    tables = [clip.classes_of([field.name for field in fields]) for clip in clips]
    places = [_place_of_classes(field, column) for field, column in zip(fields, np.concatenate(tables).T, strict=True)]
    return [np.stack([place[column] for place, column in zip(places, table.T, strict=True)], 1) for table in tables]


def _place_of_classes(field: ActionField, classes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Map the classes of a field to those that the probe predicts: of a graded axis, bins that are about as frequent.

    Args:
        field: the field.
        classes: int64 [N], of all recordings.

    Returns:
        int64 [C].
    """
    if not field.is_graded or field.num_classes <= MAX_KINDS:
        return np.arange(field.num_classes)
    counts = np.bincount(classes, minlength=field.num_classes)
    middle = (np.cumsum(counts) - counts / 2) / len(classes)  # the share of frames below the middle of the bin
    return np.minimum((MAX_KINDS * middle).astype(np.int64), MAX_KINDS - 1)


def _small_pairs(pictures: npt.NDArray[np.uint8], places: npt.NDArray[np.int64]) -> Tensor:
    """Stack the frames at `places` and the frames before them, reduced, as uint8 [n, 6, h, w]."""
    parts = []
    for some in np.array_split(places, max(1, len(places) // 64)):
        pixels = torch.from_numpy(np.concatenate([pictures[some - 1], pictures[some]], -1)).permute(0, 3, 1, 2).float()
        size = (min(HEIGHT, pixels.shape[2]), min(WIDTH, pixels.shape[3]))
        parts.append(functional.interpolate(pixels, size, mode="area").round().to(torch.uint8))
    return torch.cat(parts)
