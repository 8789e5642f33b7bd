"""Alignment of events and frames, measured by a small network that sees only two neighbouring frames.

An inverse dynamics model that sees many frames learns any shift in its recordings, so that it cannot detect a shift. A
pair of frames shows only the action between the two. Therefore the shift with the best recall is the true one.
Legend: F frames, H W pixels, B pairs (`rlir_ray.data.alignment_pairs`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from rlir_ray.data.alignment_pairs import MIN_OF_CLASS, SHIFTS, Pairs, draw_pairs
from rlir_ray.spaces.space import Actions

# Maximum number of recordings to read from a folder; more recordings take longer without a clearer result.
MAX_RECORDINGS = 50
BATCH = 96
# A shift other than 0 is reported if its recall is higher by this lead and by this number of standard errors.
MIN_LEAD, MIN_ERRORS = 0.05, 4.0
NUM_RESAMPLES = 200  # of the bootstrap that estimates the standard error


@dataclass(frozen=True, slots=True)
class Alignment:
    """Recall of each shift."""

    scores: dict[int, float]
    """Shift -> recall of the actions where the actions change, mean over classes and fields."""
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
        recordings: frames uint8 [F, H, W, 3] and F actions of each recording, all of one space; the last quarter is
            held out.
        seconds, max_steps: bounds of the training; it ends at the first one.
        seed: seed of weights and batches.

    Returns:
        The scores; None if too few actions change to compare the shifts.

    Raises:
        ValueError: the recordings have several action spaces.
    """
    pairs = draw_pairs(recordings, np.random.default_rng(seed))
    if pairs is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Probe(pairs.num_kinds)
    _fit(model, pairs, time.monotonic() + seconds, max_steps, seed)
    return _evaluate(model, pairs, seed)


def check_alignment(
    recordings: Iterable[tuple[npt.NDArray[np.uint8], Actions]],
    source: str,
    *,
    action_shift: int = 0,
    way_out: str = "--action-shift={shift}",
    seconds: float = 30.0,
    max_steps: int = 1500,
) -> Alignment | None:
    """Run `measure_alignment` before a training, and reject recordings whose events are shifted.

    Args:
        recordings: see `measure_alignment`; read with `action_shift`.
        source: name of the recordings, for the error.
        action_shift: shift with which the recordings were read.
        way_out: option to set, with ``{shift}`` for the value.
        seconds, max_steps: see `measure_alignment`.

    Raises:
        ValueError: the events lead into other frames.
    """
    found = measure_alignment(recordings, seconds=seconds, max_steps=max_steps)
    if found is not None and found.is_shifted:
        best = found.best_shift
        raise ValueError(
            f"event k of {source} must lead INTO frame k, but two neighbouring frames show the action of event "
            f"k{best:+d} (recall {found.scores[best]:.2f}, and {found.scores[0]:.2f} without the shift); set "
            f"{way_out.format(shift=action_shift + best)}"
        )
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The probe


class _Probe(nn.Module):
    """Small CNN from a pair of frames to the classes of every field at every shift."""

    def __init__(self, num_kinds: Sequence[int]) -> None:
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
        self.heads = nn.ModuleList(nn.Linear(128, len(SHIFTS) * count) for count in num_kinds)

    def forward(self, pairs: Tensor) -> list[Tensor]:
        """Map uint8 [B, 6, h, w] to logits [B, shifts, classes] of each field; the change of the frames is an input."""
        pixels = pairs.float() / 128 - 1
        features = self.trunk(torch.cat([pixels, pixels[:, 3:] - pixels[:, :3]], 1))
        return [head(features).unflatten(1, (len(SHIFTS), -1)) for head in self.heads]


def _fit(model: _Probe, pairs: Pairs, deadline: float, max_steps: int, seed: int) -> None:
    rows = torch.nonzero(~pairs.held_out).flatten()
    weights = [_class_weights(table[rows], count) for table, count in zip(pairs.kinds, pairs.num_kinds, strict=True)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(max_steps):
        if time.monotonic() > deadline:
            break
        batch = rows[torch.randint(len(rows), (BATCH,), generator=generator)]
        outputs = model(pairs.frames[batch])
        losses = [
            functional.cross_entropy(logits.flatten(0, 1), table[batch].flatten(), weight, ignore_index=-1)
            for logits, table, weight in zip(outputs, pairs.kinds, weights, strict=True)
        ]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(losses).nansum().backward()
        optimizer.step()


def _class_weights(table: Tensor, num_classes: int) -> Tensor:
    counts = torch.bincount(table[table >= 0], minlength=num_classes).float()
    return counts.sum() / (num_classes * counts.clamp(min=1))


@torch.no_grad()
def _evaluate(model: _Probe, pairs: Pairs, seed: int) -> Alignment | None:
    rows = torch.nonzero(pairs.held_out).flatten()
    outputs = [[logits.argmax(-1) for logits in model(pairs.frames[part])] for part in rows.split(256)]
    tables = [table[rows].numpy() for table in pairs.kinds]
    read = [torch.cat(parts).numpy() for parts in zip(*outputs, strict=True)]
    scores = _scores(tables, read, np.arange(len(rows)))
    if scores is None:
        return None
    random = np.random.default_rng(seed)
    best = int(scores.argmax())
    drawn = [_scores(tables, read, random.integers(0, len(rows), len(rows))) for _ in range(NUM_RESAMPLES)]
    leads = [each[best] - each[SHIFTS.index(0)] for each in drawn if each is not None]
    return Alignment(dict(zip(SHIFTS, map(float, scores), strict=True)), float(np.std(leads)))


def _scores(
    tables: Sequence[npt.NDArray[np.int64]],
    read: Sequence[npt.NDArray[np.int64]],
    rows: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64] | None:
    """Compute the recall at each shift where a field changes, mean over classes and fields; None: no field changes."""
    found: list[Sequence[float]] = []
    for table, guesses in zip(tables, read, strict=True):
        true, guess = table[rows], guesses[rows]
        changes = (true >= 0).all(1) & (true != true[:, :1]).any(1)
        true, guess = true[changes], guess[changes]
        kinds = [kind for kind in np.unique(true) if ((true == kind).sum(0) >= MIN_OF_CLASS // 4).all()]
        if len(kinds) > 1:
            found.append(np.mean([((guess == true) & (true == k)).sum(0) / (true == k).sum(0) for k in kinds], 0))
    return np.mean(found, 0) if found else None
