"""Clips: their types, the protocol of a source of clips (`prompts.source`), and reading of clips from recordings.

Legend: C context frames, F generated frames, K = C + F, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from rlir_ray.config import DataConfig, WorldConfig
from rlir_ray.data.recordings import Recorded, Recordings, resize_frames
from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.vpt import Event

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

    Args:
        pressed: the buttons of the actions, bool [K - 1, 23] as `spaces.vpt.BUTTONS`, with the contradictions that the
            actions do not hold; None: not recorded by VPT's recorder.
    """

    address: ClipAddress
    frames: npt.NDArray[np.uint8]
    actions: Actions
    pressed: npt.NDArray[np.bool_] | None = None


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


def read_clip(source: Recordings, address: ClipAddress, world: WorldConfig, data: DataConfig | None = None) -> Clip:
    """Read the clip at an address.

    Raises:
        ValueError: the recording or its frames do not exist or are broken.
    """
    data = data or DataConfig()
    recording = source.recording(address.recording, data.action_shift)
    return cut_one(recording, address.first_frame, world, data.resize)


def clip_starts(recording: Recorded, world: WorldConfig, min_wall_distance: float) -> list[int]:
    """Return the first frames of the clips of a recording that may serve as prompts, a clip's length apart."""
    length = world.num_context + world.num_frames
    events = recording.events
    return [
        start
        for start in range(0, len(recording) - length + 1, length)
        if not events or _shows_actions(events[start : start + length], min_wall_distance)
    ]


def _shows_actions(events: Sequence[Event], min_wall_distance: float) -> bool:
    """Return whether a clip's frames can show its actions: a bare wall shows no motion, nor does an open GUI."""
    distance = events[0].get("wallDistance")
    is_near = distance is not None and distance < min_wall_distance
    return not is_near and not any(event.get("isGuiOpen") for event in events)


def cut_one(recording: Recorded, start: int, world: WorldConfig, resize: str) -> Clip:
    stop = start + world.num_context + world.num_frames
    frames = resize_frames(recording.read(start, stop), world.height, world.width, resize)
    # Action k leads into frame k, so that the action into the first frame belongs to the past.
    between = slice(start + 1, stop)
    return Clip(
        address=ClipAddress(recording.name, start),
        frames=frames,
        actions=recording.actions[between],
        pressed=None if recording.pressed is None else recording.pressed[between],
    )
