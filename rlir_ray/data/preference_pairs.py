"""Pairs of clips that people compared: a file of one JSON object a line, and its split. Independent of models.

A line is ``{"first": "a.mp4", "second": "b.mp4", "label": 1}``: 1 if the first clip is better, -1 if the second is
better, 0 for a tie. ``dimension`` may name what was judged. Paths are relative to the file.
Legend: K frames of a clip, H W pixels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from rlir_ray.data.video import index_video
from rlir_ray.data.vpt.index import log_skipped

if TYPE_CHECKING:
    import numpy.typing as npt

logger = logging.getLogger(__name__)

Found = TypeVar("Found")

LABELS = (1, -1, 0)
KEYS = ("first", "second", "label", "dimension")
# The dimension of a line that names none.
DIMENSION = "overall"
FORM = 'a line must be {"first": "a.mp4", "second": "b.mp4", "label": 1, -1 or 0}, with "dimension" if you like'


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferencePair:
    """One judgement.

    Example: ``PreferencePair(first=Path("a.mp4"), second=Path("b.mp4"), label=1, dimension="overall")``.
    """

    first: Path
    second: Path
    label: int
    """1: the first clip is better, -1: the second clip is better, 0: a tie."""
    dimension: str
    """What was judged."""

    @property
    def clips(self) -> tuple[Path, Path]:
        """Both clips."""
        return self.first, self.second


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadPairs(Generic[Found]):
    """The judgements of a file, and what was read from their clips."""

    pairs: list[PreferencePair]
    clips: dict[Path, Found]
    """One entry for each clip of the pairs."""
    shape: tuple[int, int, int]
    """K, H and W of every clip."""


def read_pairs(path: Path, read: Callable[[npt.NDArray[np.uint8]], Found]) -> ReadPairs[Found]:
    """Read the lines of a file, and each of their clips once.

    Log and skip a line that is broken, or whose clips cannot be read or differ in size or length from the first clip.

    Args:
        path: the file.
        read: gets the frames of a clip, uint8 [K, H, W, 3]; its result is kept, the frames are not.

    Raises:
        ValueError: the file cannot be read, or no line is left.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"--pairs must be a text file with one JSON object a line, got {type(error).__name__} at {path}; check the "
            "path"
        ) from None
    reader, pairs, skipped = _ClipReader(read), list[PreferencePair](), list[str]()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            pair = _parse(line, path.parent)
            for clip in pair.clips:
                reader.add(clip)
        except ValueError as error:
            skipped.append(f"{path}, line {number}: {error}")
        else:
            pairs.append(pair)
    if reader.shape is None or not pairs:
        first = f", the first: {skipped[0]}" if skipped else f"; {FORM}"
        raise ValueError(f"{path} must hold a pair that can be read, got {len(skipped)} broken lines{first}")
    log_skipped(tuple(skipped), "lines")
    if skipped:
        logger.warning("%d of %d lines were skipped", len(skipped), len(skipped) + len(pairs))
    used = {clip: reader.found[clip] for pair in pairs for clip in pair.clips}
    return ReadPairs(pairs=pairs, clips=used, shape=reader.shape)


class _ClipReader(Generic[Found]):
    """Reads clips of one shape, each once."""

    def __init__(self, read: Callable[[npt.NDArray[np.uint8]], Found]) -> None:
        self.read, self.found, self.broken = read, dict[Path, Found](), dict[Path, str]()
        self.shape: tuple[int, int, int] | None = None

    def add(self, path: Path) -> None:
        """Read a clip, unless it was read before.

        Raises:
            ValueError: the clip cannot be read, or has another shape than the first one.
        """
        if path in self.broken:
            raise ValueError(self.broken[path])
        if path in self.found:
            return
        try:
            self.found[path] = self.read(self._frames(path))
        except ValueError as error:
            self.broken[path] = str(error)
            raise

    def _frames(self, path: Path) -> npt.NDArray[np.uint8]:
        if not path.is_file():
            raise ValueError(f"no clip at {path}; correct the path, which is relative to the file")
        video = index_video(path)
        if self.shape and len(video) != self.shape[0]:
            raise ValueError(f"all clips must have the {self.shape[0]} frames of the first, got {len(video)} in {path}")
        frames = video.read(0, len(video))
        # The pixels decide, because a player swaps height and width of a rotated video.
        num_frames, height, width, _ = frames.shape
        if self.shape and (height, width) != self.shape[1:]:
            size = "{}x{}".format(*self.shape[1:])
            raise ValueError(f"all clips must have the size of the first, {size}, got {height}x{width} in {path}")
        self.shape = num_frames, height, width
        return frames


def _parse(line: str, folder: Path) -> PreferencePair:
    """Read one line.

    Raises:
        ValueError: the line has another form.
    """
    try:
        content: object = json.loads(line)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{FORM}, got {line[:40]!r}")
    if unknown := [key for key in content if key not in KEYS]:
        raise ValueError(f"{FORM}, got {unknown[0]!r:.60}")
    content.setdefault("dimension", DIMENSION)
    for key in ("first", "second", "dimension"):
        if not isinstance(content.get(key), str) or not content[key]:
            raise ValueError(f"{FORM}, got {content.get(key)!r:.60} as {key!r}")
    label = content.get("label")
    if not isinstance(label, int) or isinstance(label, bool) or label not in LABELS:
        raise ValueError(f"{FORM}, got {label!r:.60} as 'label'")
    first, second = folder / content["first"], folder / content["second"]
    if first == second:
        raise ValueError(f"the clips of a pair must differ, got {content['first']!r} twice")
    return PreferencePair(first=first, second=second, label=label, dimension=content["dimension"])


# ---------------------------------------------------------------------------------------------------------------------
# Splits


@dataclass(frozen=True, kw_only=True, slots=True)
class PairSplit:
    """Training and held-out judgements."""

    train: list[PreferencePair]
    validation: list[PreferencePair]
    shares_clips: bool
    """Whether a clip may be in both, so that the held-out figures are too good."""


def split_pairs(pairs: Sequence[PreferencePair], share: float, seed: int) -> PairSplit:
    """Hold out a share of the pairs.

    If the clips fall into several sets that no pair joins, no clip is in both parts. Otherwise only the judgements of
    the same two clips stay together.

    Args:
        pairs: the judgements.
        share: how many to hold out at most, between 0 and 1; at least one set is held out.
        seed: of the draw.

    Raises:
        ValueError: all judgements are of the same two clips.
    """
    roots = _joined(pairs)
    units = _grouped((roots[pair.first], pair) for pair in pairs)
    shares_clips = len(units) == 1
    if shares_clips:
        units = _grouped((frozenset(pair.clips), pair) for pair in pairs)
    if len(units) == 1:
        raise ValueError(
            f"pairs must be of three clips or more, so that some can be held out, got {len(roots)} clips; add pairs"
        )
    held: set[int] = set()
    for place in np.random.default_rng(seed).permutation(len(units)).tolist():
        if sum(len(units[other]) for other in held) + len(units[place]) <= share * len(pairs):
            held.add(place)
    held = held or {min(range(len(units)), key=lambda place: len(units[place]))}
    return PairSplit(
        train=[pair for place, unit in enumerate(units) for pair in unit if place not in held],
        validation=[pair for place, unit in enumerate(units) for pair in unit if place in held],
        shares_clips=shares_clips,
    )


def _joined(pairs: Sequence[PreferencePair]) -> dict[Path, Path]:
    """Map each clip to one clip of the set that pairs join it to, the same for the whole set."""
    parents: dict[Path, Path] = {}

    def root(clip: Path) -> Path:
        while parents.setdefault(clip, clip) != clip:
            clip = parents[clip]
        return clip

    for pair in pairs:
        parents[root(pair.first)] = root(pair.second)
    return {clip: root(clip) for clip in parents}


def _grouped(keyed: Iterable[tuple[Hashable, PreferencePair]]) -> list[list[PreferencePair]]:
    groups: dict[Hashable, list[PreferencePair]] = {}
    for key, pair in keyed:
        groups.setdefault(key, []).append(pair)
    return list(groups.values())
