"""Alignment of events and frames, measured by a small network that sees only two neighbouring frames.

An inverse dynamics model that sees many frames learns any shift in its recordings, so that it cannot detect a shift. A
pair of frames shows only the action between the two. Therefore the shift with the best recall is the true one.
Legend: F frames, H W pixels, B pairs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from rlir_ray.spaces.actions import GROUPS, Actions, group_classes

SHIFTS = (-1, 0, 1)
# Larger frames are reduced to this size: motion stays visible, and a training step takes milliseconds.
HEIGHT, WIDTH = 48, 64
# Maximum number of pairs. Half of the pairs lie where actions change: elsewhere all shifts have the same action.
MAX_PAIRS = 6000
# Share of each recording, at its end, for the evaluation.
HELD_OUT = 0.25
# Maximum number of recordings to read from a folder; more recordings take longer without a clearer result.
MAX_RECORDINGS = 50
# Minimum number of frames, and of samples of a class, for a meaningful result.
MIN_FRAMES, MIN_OF_CLASS = 600, 20
BATCH = 96
# A shift other than 0 is reported if its recall is higher by this lead and by this number of standard errors.
MIN_LEAD, MIN_ERRORS = 0.05, 4.0
NUM_RESAMPLES = 200  # of the bootstrap that estimates the standard error


@dataclass(frozen=True, slots=True)
class Alignment:
    """Recall of each shift."""

    scores: dict[int, float]
    """Shift -> recall of the actions where the actions change, mean over classes and groups."""
    error: float
    """Standard error of the difference between the best shift and 0."""

    @property
    def best_shift(self) -> int:
        return max(self.scores, key=lambda shift: self.scores[shift])

    @property
    def is_shifted(self) -> bool:
        """Whether a shift other than 0 is significantly better than 0."""
        lead = self.scores[self.best_shift] - self.scores[0]
        return lead >= max(MIN_LEAD, MIN_ERRORS * self.error)


def measure_alignment(
    recordings: Iterable[tuple[npt.NDArray[np.uint8], Actions]],
    *,
    seconds: float = 30.0,
    seed: int = 0,
    max_steps: int = 1500,
) -> Alignment | None:
    """Recover the action of event k + shift from the frames k - 1 and k, at the shifts -1, 0 and +1.

    Args:
        recordings: frames uint8 [F, H, W, 3] and F actions of each recording; the last quarter is held out.
        seconds, max_steps: bounds of the training; it ends at the first one.
        seed: seed of weights and batches.

    Returns:
        The scores; None if too few actions change to compare the shifts.
    """
    pairs = _draw_pairs(recordings, np.random.default_rng(seed))
    if pairs is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Probe({name: len(known) for name, known in pairs.known.items()})
    _fit(model, pairs, time.monotonic() + seconds, max_steps, seed)
    return _evaluate(model, pairs, seed)


def check_alignment(
    recordings: Iterable[tuple[npt.NDArray[np.uint8], Actions]],
    source: str,
    *,
    action_shift: int = 0,
    way_out: str = "--action-shift={shift}",
    seconds: float = 30.0,
) -> Alignment | None:
    """Run `measure_alignment` before a training, and reject recordings whose events are shifted.

    Args:
        recordings: see `measure_alignment`; read with `action_shift`.
        source: name of the recordings, for the error.
        action_shift: shift with which the recordings were read.
        way_out: option to set, with ``{shift}`` for the value.

    Raises:
        ValueError: the events lead into other frames.
    """
    found = measure_alignment(recordings, seconds=seconds)
    if found is not None and found.is_shifted:
        best = found.best_shift
        raise ValueError(
            f"event k of {source} must lead INTO frame k, but two neighbouring frames show the action of event "
            f"k{best:+d} (recall {found.scores[best]:.2f}, and {found.scores[0]:.2f} without the shift); set "
            f"{way_out.format(shift=action_shift + best)}"
        )
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The pairs


@dataclass(frozen=True, slots=True)
class _Pairs:
    frames: Tensor
    """uint8 [B, 6, h, w], frame k - 1 before frame k."""
    classes: dict[str, Tensor]
    """Action group -> int64 [B, shifts], indices into `known`; -1: a class that is too rare."""
    known: dict[str, npt.NDArray[np.int64]]
    """Action group -> classes that are frequent enough."""
    held_out: Tensor
    """bool [B], whether the pair is for the evaluation."""


def _draw_pairs(
    recordings: Iterable[tuple[npt.NDArray[np.uint8], Actions]], random: np.random.Generator
) -> _Pairs | None:
    """Draw at most `MAX_PAIRS` pairs, evenly from all recordings; None: there are too few frames or actions."""
    recordings = list(recordings)
    total = sum(len(actions) for _, actions in recordings)
    if total < MIN_FRAMES:
        return None
    names, frames, tables, held = list(GROUPS), [], [], []
    for pictures, actions in recordings:
        own, count = group_classes(actions, names), len(actions)
        if count < 4:
            continue
        places = np.arange(1, count - 1)
        around = np.stack([own[places + shift] for shift in SHIFTS], 1)  # [n, shifts, groups]
        changes = (around != around[:, 1:2]).any((1, 2))
        quota = max(2, MAX_PAIRS * count // total)
        chosen = [random.permutation(places[kind])[: quota // 2] for kind in (changes, ~changes)]
        picked = np.sort(np.concatenate(chosen))
        frames.append(_small_pairs(pictures, picked))
        tables.append(around[picked - 1])
        held.append(picked >= (1 - HELD_OUT) * count)
    table, held_out = np.concatenate(tables), np.concatenate(held)
    classes, known = {}, {}
    for column, name in enumerate(names):
        counts = np.bincount(table[~held_out, 1, column], minlength=GROUPS[name].num_classes)
        if len(common := np.flatnonzero(counts >= MIN_OF_CLASS)) < 2:
            continue
        place = np.full(GROUPS[name].num_classes, -1)
        place[common] = np.arange(len(common))
        known[name], classes[name] = common, torch.from_numpy(place[table[:, :, column]])
    if not known:
        return None
    return _Pairs(torch.cat(frames), classes, known, torch.from_numpy(held_out))


def _small_pairs(pictures: npt.NDArray[np.uint8], places: npt.NDArray[np.int64]) -> Tensor:
    """Stack the frames at `places` and the frames before them, reduced, as uint8 [n, 6, h, w]."""
    parts = []
    for some in np.array_split(places, max(1, len(places) // 64)):
        pixels = torch.from_numpy(np.concatenate([pictures[some - 1], pictures[some]], -1)).permute(0, 3, 1, 2).float()
        size = (min(HEIGHT, pixels.shape[2]), min(WIDTH, pixels.shape[3]))
        parts.append(functional.interpolate(pixels, size, mode="area").round().to(torch.uint8))
    return torch.cat(parts)


# ---------------------------------------------------------------------------------------------------------------------
# The probe


class _Probe(nn.Module):
    """Small CNN from a pair of frames to the classes of every group at every shift."""

    def __init__(self, num_classes: Mapping[str, int]) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(9, 24, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d((3, 4)),
            nn.Flatten(),
            nn.Linear(32 * 12, 128),
            nn.ReLU(),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(128, len(SHIFTS) * count) for name, count in num_classes.items()})

    def forward(self, pairs: Tensor) -> dict[str, Tensor]:
        """Map uint8 [B, 6, h, w] to logits [B, shifts, classes] of each group; the change of the frames is an input."""
        pixels = pairs.float() / 128 - 1
        features = self.trunk(torch.cat([pixels, pixels[:, 3:] - pixels[:, :3]], 1))
        return {name: head(features).unflatten(1, (len(SHIFTS), -1)) for name, head in self.heads.items()}


def _fit(model: _Probe, pairs: _Pairs, deadline: float, max_steps: int, seed: int) -> None:
    rows = torch.nonzero(~pairs.held_out).flatten()
    weights = {name: _class_weights(table[rows], len(pairs.known[name])) for name, table in pairs.classes.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(max_steps):
        if time.monotonic() > deadline:
            break
        batch = rows[torch.randint(len(rows), (BATCH,), generator=generator)]
        outputs = model(pairs.frames[batch])
        losses = [
            functional.cross_entropy(
                logits.flatten(0, 1), pairs.classes[name][batch].flatten(), weights[name], ignore_index=-1
            )
            for name, logits in outputs.items()
        ]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).nansum().backward()
        optimizer.step()


def _class_weights(table: Tensor, num_classes: int) -> Tensor:
    counts = torch.bincount(table[table >= 0], minlength=num_classes).float()
    return counts.sum() / (num_classes * counts.clamp(min=1))


@torch.no_grad()
def _evaluate(model: _Probe, pairs: _Pairs, seed: int) -> Alignment | None:
    rows = torch.nonzero(pairs.held_out).flatten()
    outputs: dict[str, list[Tensor]] = {name: [] for name in pairs.known}
    for part in rows.split(256):
        for name, logits in model(pairs.frames[part]).items():
            outputs[name].append(logits.argmax(-1))
    tables = {name: pairs.classes[name][rows].numpy() for name in outputs}
    read = {name: torch.cat(parts).numpy() for name, parts in outputs.items()}
    scores = _scores(tables, read, np.arange(len(rows)))
    if scores is None:
        return None
    random = np.random.default_rng(seed)
    best = int(scores.argmax())
    drawn = [_scores(tables, read, random.integers(0, len(rows), len(rows))) for _ in range(NUM_RESAMPLES)]
    leads = [each[best] - each[SHIFTS.index(0)] for each in drawn if each is not None]
    return Alignment(dict(zip(SHIFTS, map(float, scores), strict=True)), float(np.std(leads)))


def _scores(
    tables: Mapping[str, npt.NDArray[np.int64]],
    read: Mapping[str, npt.NDArray[np.int64]],
    rows: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64] | None:
    """Compute the recall at each shift where a group changes, mean over classes and groups; None: no group changes."""
    found: list[Sequence[float]] = []
    for name, table in tables.items():
        true, guess = table[rows], read[name][rows]
        changes = (true >= 0).all(1) & (true != true[:, :1]).any(1)
        true, guess = true[changes], guess[changes]
        kinds = [kind for kind in np.unique(true) if ((true == kind).sum(0) >= MIN_OF_CLASS // 4).all()]
        if len(kinds) > 1:
            found.append(np.mean([((guess == true) & (true == k)).sum(0) / (true == k).sum(0) for k in kinds], 0))
    return np.mean(found, 0) if found else None
