"""Clips cut from recordings: possible first frames, and frames at the world's size. Independent of prompts.

Legend: C context frames, F generated frames, K = C + F, H W pixels.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from rlir_ray.config import DataConfig, WorldConfig
from rlir_ray.data.recordings import RecordingFile, nothing_readable, open_recording
from rlir_ray.data.sources import RecordingSource, log_left_out
from rlir_ray.spaces.actions import Actions, Event

logger = logging.getLogger(__name__)

PromptSplit = Literal["train", "heldout"]
Progress = Callable[[int, int], None]

# Fewest clips that are taken from a recording before the next is opened: long recordings are slow to decode.
MIN_CLIPS_OF_RECORDING = 8


@dataclass(frozen=True, order=True, slots=True)
class ClipAddress:
    """Address of a clip within one source.

    Example: ``ClipAddress("8.0/player-1", 320)``, whose prompt is ``8.0/player-1:320``.
    """

    recording: str
    """Path of the recording below its source, without an ending."""
    first_frame: int

    @property
    def prompt_id(self) -> str:
        return f"{self.recording}:{self.first_frame}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """K frames of a recording, uint8 [K, H, W, 3], and the K - 1 actions between them.

    Where only the context is kept, frames are [C, H, W, 3].
    """

    address: ClipAddress
    frames: npt.NDArray[np.uint8]
    actions: Actions


@dataclass(frozen=True, kw_only=True, slots=True)
class CutClips:
    """Clips of a source, and the recordings and clips that were skipped."""

    clips: list[Clip]
    left_out: tuple[str, ...]
    """One line for each broken or incomplete recording: file, line and reason."""
    num_recordings: int
    """Recordings of the source, including the skipped ones."""
    num_near_walls: int = 0
    """Clips of the opened recordings that were skipped only because they face a near wall."""
    longest: int = 0
    """Frames of the longest recording that was opened."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipRequest:
    """What is asked of a source."""

    split: PromptSplit
    num_clips: int
    """Exactly as many are returned."""
    num_whole: int | None
    """The first clips keep all K frames, as many as this; the others keep C. None: all keep K."""
    seed: int
    """The same seed and settings give the same clips."""
    folder: Path
    """For files of the source's own; it may not exist yet."""
    progress: Progress | None = None
    """Called with the frames that are done and their total."""


class Source(Protocol):
    """A member of the axis `sources`: a class that is built as `Source(config, **prompts.args)`.

    A source may also have `commands(num_frames, generator) -> Actions`, which prompts.actions=sampled draws from;
    without that method each clip gets the commands of another clip.
    """

    def clips(self, request: ClipRequest) -> CutClips:
        """Clips of the world's size, K - 1 actions each; training and held-out clips share none."""


# ---------------------------------------------------------------------------------------------------------------------
# One clip


def read_clip(
    source: RecordingSource, address: ClipAddress, world: WorldConfig, data: DataConfig | None = None
) -> Clip:
    """Read the clip at an address. Arguments as in `cut_clips`.

    Raises:
        ValueError: the recording or its frames do not exist, or are broken.
    """
    data = data or DataConfig()
    recording = open_in(source, address.recording, data.action_shift)
    return _cut(recording, address.first_frame, world, data.resize)


def open_in(source: RecordingSource, name: str, action_shift: int = 0) -> RecordingFile:
    """Open a recording by its name within a source; shift and errors as in `open_recording`."""
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


def _cut(recording: RecordingFile, start: int, world: WorldConfig, resize: str) -> Clip:
    stop = start + world.num_context + world.num_frames
    frames = _resize(recording.read(start, stop), world.height, world.width, resize)
    # Event k leads into frame k: the first frame's own action belongs to the past.
    actions = recording.actions[start + 1 : stop]
    return Clip(address=ClipAddress(recording.name, start), frames=frames, actions=actions)


def _resize(frames: npt.NDArray[np.uint8], height: int, width: int, resize: str) -> npt.NDArray[np.uint8]:
    """Resize uint8 [K, H, W, 3] to the world's size; `resize` as in `DataConfig`."""
    if frames.shape[1:3] == (height, width):
        return frames
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    # No antialiasing and half-pixel centres, to match cv2's INTER_LINEAR.
    resized = torch.nn.functional.interpolate(pixels, (height, width), mode=resize)
    return resized.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Clips for prompts


def cut_clips(
    source: RecordingSource,
    num_clips: int,
    world: WorldConfig,
    min_wall_distance: float,
    seed: int,
    data: DataConfig | None = None,
    num_whole: int | None = None,
) -> CutClips:
    """Cut clips that do not overlap, evenly from all recordings; only the frames of these clips are decoded.

    Args:
        source: of the recordings.
        num_clips: the most to return.
        world: frames of a clip and their size; frames of another size are resized to it.
        min_wall_distance: clips whose first frame faces a wall nearer than this are left out, where the recording
            says so (`wallDistance`).
        seed: of the order of recordings and of clips.
        data: how recordings are read; None: the defaults.
        num_whole: so many clips keep all frames, those after them the context frames only; None: all do.

    Returns:
        At most `num_clips`, fewer where the recordings do not hold as many.

    Raises:
        ValueError: every recording is broken, or, with `data.strict`, one of those that were opened.
    """
    data = data or DataConfig()
    if data.strict and source.left_out:
        raise ValueError(source.left_out[0])
    log_left_out(source.left_out)
    rng = np.random.default_rng([seed, 0])
    names = list(source.videos)
    quota = max(MIN_CLIPS_OF_RECORDING, math.ceil(num_clips / max(1, len(names))))
    clips: list[Clip] = []
    spare: list[ClipAddress] = []
    broken: dict[str, str] = {}
    num_near_walls = longest = 0
    # Only one recording is open at a time, and only the needed recordings are opened.
    for name in (names[index] for index in rng.permutation(len(names))):
        try:
            recording = open_in(source, name, data.action_shift)
            starts = rng.permutation(clip_starts(recording.events, world, min_wall_distance)).tolist()
            longest = max(longest, len(recording))
            num_near_walls += len(clip_starts(recording.events, world, 0)) - len(starts)
            taken = starts[: min(quota, num_clips - len(clips))]
            clips += _cut_all(recording, taken, world, data, num_whole, len(clips))
        except ValueError as error:
            _leave_out(name, error, broken, data)
            continue
        spare += [ClipAddress(name, start) for start in starts[quota:]]
        if len(clips) == num_clips:
            break
    # With too few recordings, take more clips of each.
    for name, addresses in itertools.groupby(spare, lambda address: address.recording):
        if len(clips) == num_clips:
            break
        try:
            recording = open_in(source, name, data.action_shift)
            taken = [address.first_frame for address in itertools.islice(addresses, num_clips - len(clips))]
            clips += _cut_all(recording, taken, world, data, num_whole, len(clips))
        except ValueError as error:
            _leave_out(name, error, broken, data)
            # Drop all clips of a broken recording.
            clips = [clip for clip in clips if clip.address.recording != name]
    left_out = (*source.left_out, *broken.values())
    if broken and len(broken) == len(names):
        raise ValueError(nothing_readable(source.path, left_out))
    return CutClips(
        clips=clips, left_out=left_out, num_recordings=len(source), num_near_walls=num_near_walls, longest=longest
    )


def _cut_all(
    recording: RecordingFile,
    starts: Sequence[int],
    world: WorldConfig,
    data: DataConfig,
    num_whole: int | None,
    num_before: int,
) -> list[Clip]:
    clips = []
    for number, start in enumerate(starts, num_before):
        clip = _cut(recording, start, world, data.resize)
        if num_whole is not None and number >= num_whole:
            # A copy: a view would keep all frames in memory.
            clip = replace(clip, frames=clip.frames[: world.num_context].copy())
        clips.append(clip)
    return clips


def _leave_out(name: str, error: ValueError, broken: dict[str, str], data: DataConfig) -> None:
    if data.strict:
        raise error
    logger.warning("left out: %s", error)
    broken[name] = str(error)
