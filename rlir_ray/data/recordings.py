"""Recordings in the VPT format: NAME.mp4 and NAME.jsonl, one event a frame.

**Event k leads INTO frame k**: it holds the input between frames k - 1 and k; event 0 is the null action. A
Gymnasium loop has another order (an observation, then the action taken after it): write an action beside the
next observation, or read existing files with `action_shift=-1` (`data.action_shift`).
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np

from rlir_ray.data.sources import find_recordings, list_recordings, log_left_out, pair
from rlir_ray.data.video import VideoFile, index_video
from rlir_ray.data.vpt_events import parse_event, recorder_version, repair_events
from rlir_ray.spaces.actions import Actions, Event

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

__all__ = [
    "Recording",
    "RecordingFile",
    "list_recordings",
    "load_recordings",
    "open_recording",
    "read_events",
    "read_recording",
    "read_recordings",
    "write_recording",
]

logger = logging.getLogger(__name__)

# Full colour resolution and a low rate factor, because compression would destroy the detail of small frames.
CODEC, PIXEL_FORMAT = "libx264", "yuv444p"
CODEC_OPTIONS = {"crf": "6", "preset": "superfast", "bf": "0", "g": "32", "threads": "1"}


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordingFile:
    """A recording on disk: events are in memory, frames are read on demand.

    Args:
        name: its path below the source that it comes from, or its file name, without an ending.
        video: where its F frames are.
        events: F events; event k leads into frame k. The recorder's errors are put right.
    """

    name: str
    video: VideoFile
    events: list[Event]
    actions: Actions

    def __len__(self) -> int:
        return len(self.events)

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Return frames [start, stop), uint8 [n, H, W, 3], RGB.

        Raises:
            ValueError: no such frames, or damaged ones; names the file.
        """
        return self.video.read(start, stop)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """One recording in memory; name, events and actions as in `RecordingFile`.

    Args:
        name: as above.
        frames: uint8 [F, H, W, 3], RGB.
        events: F events; event k leads into frame k.
    """

    name: str
    frames: npt.NDArray[np.uint8]
    events: list[Event]
    actions: Actions


def write_recording(path_stem: Path, frames: npt.NDArray[np.uint8], events: Iterable[Event], fps: int = 7) -> None:
    """Write PATH_STEM.mp4 and PATH_STEM.jsonl; a pair that is there under its name is whole.

    Example, a Gymnasium loop::

        frames, events = [env.reset()[0]], [{}]                       # nothing leads into the first frame
        for action in actions:
            frames.append(env.step(action)[0])                        # the frame that the action leads into ...
            events.append({"mouse": {"dx": 0, "dy": 0, "buttons": []}, "keyboard": {"keys": ["key.keyboard.w"]}})
        write_recording(Path("data/mine/first"), np.stack(frames), events)

    Args:
        path_stem: folder and name without an ending.
        frames: uint8 [F, H, W, 3], RGB; H and W even.
        events: F events; **event k leads INTO frame k**.
        fps: of the mp4, for viewers.

    Raises:
        ValueError: frames and events differ in number, or the frames are no uint8 RGB.
    """
    events = list(events)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) != len(events):
        raise ValueError(
            f"a recording needs uint8 frames [F, H, W, 3] and F events, got {frames.dtype} {frames.shape} and "
            f"{len(events)} events"
        )
    path_stem.parent.mkdir(parents=True, exist_ok=True)
    video, lines = pair(path_stem)
    part_video, part_lines = video.with_suffix(".mp4.part"), lines.with_suffix(".jsonl.part")
    with av.open(str(part_video), "w", format="mp4") as container:
        stream = container.add_stream(CODEC, rate=fps, options=CODEC_OPTIONS)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], PIXEL_FORMAT
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    part_lines.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    # Rename the events last: a recording counts as finished when both files exist.
    part_video.rename(video)
    part_lines.rename(lines)


def open_recording(path: Path, name: str = "", action_shift: int = 0) -> RecordingFile:
    """Open one recording without decoding a frame.

    Args:
        path: of the mp4, of the jsonl, or of both without their ending.
        name: of the recording within its source; empty: the file name.
        action_shift: event k + action_shift leads INTO frame k: -1 for the order of a Gymnasium loop, which writes an
            observation beside the action that is then taken in it. Above 0 the last frames, whose action is not there,
            are left out.

    Raises:
        ValueError: half of the pair is missing, a line is no event, the video is cut off, or they differ in length;
            the message names the file and the line.
    """
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".mp4", ".jsonl") else path
    halves = video_path, lines_path = pair(stem)
    for half in halves:
        if not half.is_file():
            raise ValueError(f"{half}: no such file; a recording is an mp4 and a jsonl of the same name")
    events, video = read_events(lines_path), index_video(video_path)
    if len(video) != len(events):
        raise ValueError(
            f"{lines_path}: {len(events)} events for the {len(video)} frames of {video_path.name}, it needs one a "
            "frame; record or download the pair again"
        )
    # The name holds the recorder's version even if the file was moved to another folder.
    events = repair_events(events, recorder_version(name) or recorder_version(stem.absolute()))
    actions, num_frames = Actions.from_events(events).shifted(action_shift), len(events) - max(0, action_shift)
    return RecordingFile(name=name or stem.name, video=video, events=events[:num_frames], actions=actions[:num_frames])


def read_recording(path: Path, name: str = "", action_shift: int = 0) -> Recording:
    """Read one recording with all its frames. Arguments and errors as `open_recording`."""
    opened = open_recording(path, name, action_shift)
    frames = opened.read(0, len(opened))
    return Recording(name=opened.name, frames=frames, events=opened.events, actions=opened.actions)


def read_recordings(paths: Iterable[Path], *, strict: bool = False) -> Iterator[Recording]:
    """Yield the recordings at `paths` in order; a broken recording is skipped with one line in the log.

    Args:
        paths: as `list_recordings` gives them.
        strict: raise at the first broken recording instead.
    """
    left_out: list[str] = []
    num_read = 0
    for recording in _readable((("", path) for path in paths), left_out, strict):
        num_read += 1
        yield recording
    if left_out:
        logger.warning("%d of %d recordings were left out", len(left_out), num_read + len(left_out))


def load_recordings(folder: Path, action_shift: int = 0) -> list[Recording]:
    """Load all recordings of a folder or an index; broken recordings are skipped with a line in the log.

    Args:
        folder: or index.
        action_shift: as `open_recording` takes it.

    Raises:
        ValueError: no such folder, or nothing in it that can be read.
    """
    source = find_recordings(folder)
    log_left_out(source.left_out)
    left_out = list(source.left_out)
    recordings = list(_readable(source.videos.items(), left_out, False, action_shift))
    if not recordings:
        raise ValueError(nothing_readable(source.path, left_out))
    if left_out:
        logger.warning("%d of %d recordings were left out", len(left_out), len(source))
    return recordings


def nothing_readable(path: Path, left_out: Sequence[str]) -> str:
    """Return the error for a source whose recordings are all broken."""
    return (
        f"{path} must hold a recording that can be read, got {len(left_out)} broken ones; make some with: python -m "
        f"rlir_ray collect --out DIR, or fix the first: {left_out[0]}"
    )


def _readable(
    items: Iterable[tuple[str, Path]], left_out: list[str], strict: bool, action_shift: int = 0
) -> Iterator[Recording]:
    """Yield the recordings of names and paths; append a line for each broken recording to `left_out`."""
    for name, path in items:
        try:
            recording = read_recording(path, name, action_shift)
        except ValueError as error:
            if strict:
                raise
            left_out.append(str(error))
            logger.warning("left out: %s", error)
            continue
        yield recording


def read_events(path: Path) -> list[Event]:
    """Return all events of a jsonl as they were written.

    Raises:
        ValueError: the file cannot be read, or a line is no event; names the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise ValueError(f"{path}: no readable file ({error.strerror}); record or download it again") from error
    # Only line feeds end a line: what players typed may hold other line separators.
    lines = text.rstrip().split("\n") if text.strip() else []
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(parse_event(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; record or download it again") from error
    return events
