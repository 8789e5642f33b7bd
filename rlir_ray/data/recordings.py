"""Recordings of any format: the protocol, opening by path, and splits. The formats: VPT's pairs, LeRobot datasets.

**Action k leads INTO frame k**, whatever the order in which a format stores them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from rlir_ray.data.lerobot.layout import is_lerobot
from rlir_ray.data.lerobot.reader import LerobotDataset
from rlir_ray.data.vpt.index import find_recordings, log_skipped

if TYPE_CHECKING:
    import numpy.typing as npt

    from rlir_ray.spaces.space import Actions, ActionSpace
    from rlir_ray.spaces.vpt import Event

logger = logging.getLogger(__name__)

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
MIN_SPLIT = 2
"""Fewest recordings that can be divided."""
# Share of the recordings that a path with #validation names, at their end.
VALIDATION_SHARE = 0.1
FRAMES_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """One recording in memory.

    Args:
        name: name within its source.
        frames: uint8 [F, H, W, 3], RGB.
        actions: F actions; action k leads INTO frame k.
        events: F events of VPT's format; empty for any other format.
    """

    name: str
    frames: npt.NDArray[np.uint8]
    actions: Actions
    events: Sequence[Event] = ()


class Recorded(Protocol):
    """One recording on disk; frames are read on demand."""

    @property
    def name(self) -> str:
        """Name within its source."""

    @property
    def actions(self) -> Actions:
        """F actions; action k leads INTO frame k."""

    @property
    def events(self) -> Sequence[Event]:
        """F events of VPT's format; empty for any other format."""

    @property
    def pressed(self) -> npt.NDArray[np.bool_] | None:
        """The buttons of the actions, bool [F, 23], with their contradictions; None for any other format than VPT's."""

    def __len__(self) -> int:
        """F, the number of frames."""

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Return frames [start, stop), uint8 [n, H, W, 3], RGB.

        Raises:
            ValueError: the frames do not exist or are damaged; the error names the file.
        """


class Recordings(Protocol):
    """The recordings of a folder, an index or a dataset."""

    @property
    def path(self) -> Path:
        """The path that the user gave."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the recordings that may be opened, in order."""

    @property
    def skipped(self) -> tuple[str, ...]:
        """One line for each recording that cannot be opened: file and reason."""

    @property
    def space(self) -> ActionSpace:
        """The space of the actions."""

    def contents(self) -> list[str]:
        """Return lines that identify the recordings without reading their frames: names and sizes of files."""

    def __len__(self) -> int:
        """Number of recordings, the skipped ones included."""

    def recording(self, name: str, action_shift: int = 0) -> Recorded:
        """Open a recording without decoding a frame; its stored action k + action_shift leads INTO frame k.

        Raises:
            ValueError: there is no such recording, or a file of it is broken.
        """


@dataclass(frozen=True, slots=True)
class Part:
    """Some of the recordings of a source."""

    whole: Recordings
    names: tuple[str, ...]

    @property
    def path(self) -> Path:
        return self.whole.path

    @property
    def skipped(self) -> tuple[str, ...]:
        return self.whole.skipped

    @property
    def space(self) -> ActionSpace:
        return self.whole.space

    def contents(self) -> list[str]:
        return [*self.names, *self.whole.contents()]

    def __len__(self) -> int:
        return len(self.names) + len(self.skipped)

    def recording(self, name: str, action_shift: int = 0) -> Recorded:
        return self.whole.recording(name, action_shift)


def split_path(text: str) -> tuple[Path, str]:
    """Split ``PATH#train`` into the path and the split; without a split the second text is empty.

    Raises:
        ValueError: the text after the last # is no split, and no such path exists.
    """
    path, mark, split = text.rpartition("#")
    if not mark or Path(text).exists():
        return Path(text), ""
    if split not in SPLITS:
        raise ValueError(
            f"a path of recordings may end with #train or #validation, got {text!r}; correct the end or the path"
        )
    return Path(path), split


def open_recordings(path: Path | str, camera: str = "") -> Recordings:
    """Open a LeRobot dataset, a folder of VPT's NAME.mp4 + NAME.jsonl pairs, or an index of such pairs.

    Args:
        path: ``PATH`` for all recordings, ``PATH#validation`` for the last tenth of them, ``PATH#train`` for the rest.
        camera: camera of a LeRobot dataset, which is needed if the dataset has several.

    Raises:
        ValueError: nothing at the path can be opened as recordings.
    """
    place, split = split_path(str(path))
    found: Recordings = LerobotDataset(place, camera) if is_lerobot(place) else find_recordings(place)
    if not split:
        return found
    if len(found.names) < MIN_SPLIT:
        raise ValueError(
            f"a split needs at least {MIN_SPLIT} recordings, got {len(found.names)} in {place}; record more"
        )
    num_validation = max(1, round(VALIDATION_SHARE * len(found.names)))
    kept = found.names[-num_validation:] if split == "validation" else found.names[:-num_validation]
    return Part(found, tuple(kept))


def split_paths(data: Path | str) -> dict[Split, str]:
    """Return the path of each split: the folders train/ and validation/ below `data`, or a share of its recordings."""
    if all((Path(data) / split).is_dir() for split in SPLITS):
        return {split: str(Path(data) / split) for split in SPLITS}
    return {split: f"{data}#{split}" for split in SPLITS}


def read_all(source: Recordings, action_shift: int = 0, size: tuple[int, int] | None = None) -> Iterator[Recording]:
    """Yield recordings with all their frames; skip a broken recording with one line in the log.

    Args:
        source: the recordings.
        action_shift: see `Recordings.recording`.
        size: height and width to which the frames are reduced; None: as recorded.

    Raises:
        ValueError: no recording can be read.
    """
    log_skipped(source.skipped)
    broken: list[str] = []
    for name in source.names:
        try:
            opened = source.recording(name, action_shift)
            # In parts: the frames of a long recording may be large before they are reduced.
            parts = (
                (start, min(start + FRAMES_AT_ONCE, len(opened))) for start in range(0, len(opened), FRAMES_AT_ONCE)
            )
            frames = np.concatenate([_reduced(opened.read(*part), size) for part in parts])
        except ValueError as error:
            broken.append(str(error))
            logger.warning("skipped: %s", error)
            continue
        yield Recording(name=name, frames=frames, events=opened.events, actions=opened.actions)
    if len(broken) == len(source.names):
        raise ValueError(nothing_readable(source.path, [*source.skipped, *broken]))
    if num_skipped := len(source.skipped) + len(broken):
        logger.warning("%d of %d recordings were skipped", num_skipped, len(source))


def read_splits(
    data: Path | str, action_shift: int = 0, camera: str = "", size: tuple[int, int] | None = None
) -> dict[Split, list[Recording]]:
    """Read the recordings of both splits with all their frames; see `split_paths` and `read_all`."""
    logger.info("reading the recordings of %s", data)
    paths = split_paths(data)
    return {split: list(read_all(open_recordings(paths[split], camera), action_shift, size)) for split in SPLITS}


def nothing_readable(path: Path, skipped: Sequence[str]) -> str:
    """Return the error for a source whose recordings are all broken."""
    return (
        f"{path} must hold a recording that can be read, got {len(skipped)} broken ones; make some with: python -m "
        f"rlir_ray collect --out DIR, or fix the first: {skipped[0]}"
    )


def _reduced(frames: npt.NDArray[np.uint8], size: tuple[int, int] | None) -> npt.NDArray[np.uint8]:
    return frames if size is None else resize_frames(frames, *size, resize="area")


def resize_frames(frames: npt.NDArray[np.uint8], height: int, width: int, resize: str) -> npt.NDArray[np.uint8]:
    """Resize uint8 [n, H, W, 3] to [n, height, width, 3]; `resize` as in `DataConfig`."""
    if frames.shape[1:3] == (height, width):
        return frames
    # Imported here: processes that only hold prompts need not load torch.
    import torch

    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    # No antialiasing and half-pixel centres, to match cv2's INTER_LINEAR.
    resized = torch.nn.functional.interpolate(pixels, (height, width), mode=resize)
    return resized.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
