"""Clips: their types, the protocol of a source of clips (`prompts.source`), and reading of clips from recordings.

Legend: C context frames, F generated frames, K = C + F, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from rlir_ray.config import DataConfig, WorldConfig
from rlir_ray.data.recording_index import RecordingSource
from rlir_ray.data.recordings import RecordingFile, open_recording
from rlir_ray.spaces.actions import Actions, Event

PromptSplit = Literal["train", "heldout"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, order=True, slots=True)
class ClipAddress:
    """Address of a clip within one source.

    Example: ``ClipAddress("8.0/player-1", 320)``, whose prompt is ``8.0/player-1:320``.
    """

    recording: str
    """Path of the recording below its source, without a suffix."""
    first_frame: int

    @property
    def prompt_id(self) -> str:
        return f"{self.recording}:{self.first_frame}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """K frames of a recording, uint8 [K, H, W, 3], and the K - 1 actions between them.

    If only the context is kept, frames are [C, H, W, 3].
    """

    address: ClipAddress
    frames: npt.NDArray[np.uint8]
    actions: Actions


@dataclass(frozen=True, kw_only=True, slots=True)
class CutClips:
    """Clips of a source, and the recordings and clips that were skipped."""

    clips: list[Clip]
    skipped: tuple[str, ...]
    """One line for each broken or incomplete recording: file, line and reason."""
    num_recordings: int
    """Recordings of the source, including the skipped ones."""
    num_near_walls: int = 0
    """Clips of the opened recordings that were skipped only because they face a near wall."""
    longest: int = 0
    """Number of frames of the longest opened recording."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipRequest:
    """Request for clips to a source."""

    split: PromptSplit
    num_clips: int
    """The source returns exactly this number of clips."""
    num_whole: int | None
    """Number of clips, from the first on, that keep all K frames; the other clips keep C. None: all keep K."""
    seed: int
    """The same seed and settings give the same clips."""
    folder: Path
    """Folder for files that the source creates; the folder may not exist yet."""
    progress: Progress | None = None
    """Called with the numbers of finished frames and of all frames."""


class Source(Protocol):
    """A member of the axis `sources`: a class that is built as `Source(config, **prompts.args)`.

    A source may also have `commands(num_frames, generator) -> Actions`. With prompts.actions=sampled, each clip then
    gets drawn commands; without this method, each clip gets the commands of another clip.
    """

    def clips(self, request: ClipRequest) -> CutClips:
        """Return clips of the world's size with K - 1 actions each; training and held-out clips share no frame."""


# ---------------------------------------------------------------------------------------------------------------------
# One clip


def read_clip(
    source: RecordingSource, address: ClipAddress, world: WorldConfig, data: DataConfig | None = None
) -> Clip:
    """Read the clip at an address.

    Raises:
        ValueError: the recording or its frames do not exist or are broken.
    """
    data = data or DataConfig()
    recording = open_in(source, address.recording, data.action_shift)
    return cut_one(recording, address.first_frame, world, data.resize)


def open_in(source: RecordingSource, name: str, action_shift: int = 0) -> RecordingFile:
    """Open a recording by its name within a source; see `open_recording` for the shift and errors."""
    if name not in source.videos:
        raise ValueError(
            f"{source.path} must hold the recording that a clip is cut from, got none named {name!r}; "
            "give the source that the address comes from"
        )
    return open_recording(source.videos[name], name, action_shift)


def clip_starts(events: Sequence[Event], world: WorldConfig, min_wall_distance: float) -> list[int]:
    """Return the first frames of the clips of a recording that may serve as prompts, a clip's length apart."""
    length = world.num_context + world.num_frames
    return [
        start
        for start in range(0, len(events) - length + 1, length)
        # A bare wall shows no motion, and in an open GUI the mouse does not turn the camera.
        if _wall_distance(events[start]) >= min_wall_distance
        and not any(event.get("isGuiOpen") for event in events[start : start + length])
    ]


def _wall_distance(event: Event) -> float:
    distance = event.get("wallDistance")
    return math.inf if distance is None else distance


def cut_one(recording: RecordingFile, start: int, world: WorldConfig, resize: str) -> Clip:
    stop = start + world.num_context + world.num_frames
    frames = _resize(recording.read(start, stop), world.height, world.width, resize)
    # Event k leads into frame k, so that the action into the first frame belongs to the past.
    actions = recording.actions[start + 1 : stop]
    return Clip(address=ClipAddress(recording.name, start), frames=frames, actions=actions)


def _resize(frames: npt.NDArray[np.uint8], height: int, width: int, resize: str) -> npt.NDArray[np.uint8]:
    """Resize uint8 [K, H, W, 3] to the world's size; `resize` as in `DataConfig`."""
    if frames.shape[1:3] == (height, width):
        return frames
    # Imported here: processes that only hold prompts need not load torch.
    import torch

    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    # No antialiasing and half-pixel centres, to match cv2's INTER_LINEAR.
    resized = torch.nn.functional.interpolate(pixels, (height, width), mode=resize)
    return resized.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
