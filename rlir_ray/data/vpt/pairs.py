"""Reading and writing of recordings in the VPT format: NAME.mp4 and NAME.jsonl, one event a frame.

**Event k leads INTO frame k**: event k holds the input between frames k - 1 and k; event 0 is the null action. A
Gymnasium loop has another order (an observation, then the action taken after it): write an action beside the
next observation, or read existing files with `action_shift=-1` (`data.action_shift`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np

from rlir_ray.data.video import VideoFile, index_video
from rlir_ray.data.vpt.events import parse_event, recorder_version, repair_events
from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.vpt import Event, actions_from_buttons, pressed_and_turned

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy.typing as npt

# Full colour resolution and a low rate factor, because compression would destroy the detail of small frames.
CODEC, PIXEL_FORMAT = "libx264", "yuv444p"
CODEC_OPTIONS = {"crf": "6", "preset": "superfast", "bf": "0", "g": "32", "threads": "1"}


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordingFile:
    """A recording on disk: events are in memory, frames are read on demand.

    Args:
        name: path of the recording below its source, or its file name, without a suffix.
        video: index of the F frames.
        events: F events; event k leads into frame k; known errors of the recorder are repaired.
        actions: F actions, as the events say.
        pressed: the buttons of the actions, bool [F, 23], with the contradictions that the actions do not hold.
    """

    name: str
    video: VideoFile
    events: list[Event]
    actions: Actions
    pressed: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.events)

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Return frames [start, stop), uint8 [n, H, W, 3], RGB.

        Raises:
            ValueError: the frames do not exist or are damaged; the error names the file.
        """
        return self.video.read(start, stop)


def pair(stem: Path) -> tuple[Path, Path]:
    """Return the mp4 and the jsonl of a recording; the name may contain dots."""
    return stem.with_name(stem.name + ".mp4"), stem.with_name(stem.name + ".jsonl")


def write_recording(path_stem: Path, frames: npt.NDArray[np.uint8], events: Iterable[Event], fps: int = 7) -> None:
    """Write PATH_STEM.mp4 and PATH_STEM.jsonl; the files appear under these names only when they are complete.

    Example, a Gymnasium loop::

        frames, events = [env.reset()[0]], [{}]                       # nothing leads into the first frame
        for action in actions:
            frames.append(env.step(action)[0])                        # the frame that the action leads into ...
            events.append({"mouse": {"dx": 0, "dy": 0, "buttons": []}, "keyboard": {"keys": ["key.keyboard.w"]}})
        write_recording(Path("data/mine/first"), np.stack(frames), events)

    Args:
        path_stem: folder and name without a suffix.
        frames: uint8 [F, H, W, 3], RGB; H and W even.
        events: F events; **event k leads INTO frame k**.
        fps: frame rate of the mp4, for viewers only.

    Raises:
        ValueError: frames and events differ in number, or the frames are not uint8 RGB.
    """
    events = list(events)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) != len(events):
        raise ValueError(
            f"a recording needs uint8 frames [F, H, W, 3] and F events, got {frames.dtype} {frames.shape} and "
            f"{len(events)} events; convert the frames and give one event for each"
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
        path: path of the mp4, of the jsonl, or of both without a suffix.
        name: name of the recording within its source; empty: the file name.
        action_shift: event k + action_shift leads INTO frame k; -1 for the order of a Gymnasium loop, which writes an
            observation beside the action that is taken after it. With a shift above 0 the last frames have no action
            and are dropped.

    Raises:
        ValueError: a file of the pair is missing, a line is no event, the video is cut off, or video and events differ
            in length; the error names the file and the line.
    """
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".mp4", ".jsonl") else path
    halves = video_path, lines_path = pair(stem)
    for half in halves:
        if not half.is_file():
            raise ValueError(
                f"{half}: no such file; a recording is an mp4 and a jsonl of the same name, or the folder of a LeRobot "
                "dataset"
            )
    events, video = read_events(lines_path), index_video(video_path)
    if len(video) != len(events):
        raise ValueError(
            f"{lines_path}: {len(events)} events for the {len(video)} frames of {video_path.name}, it needs one a "
            "frame; record or download the pair again"
        )
    # The name holds the recorder's version even if the file was moved to another folder.
    events = repair_events(events, recorder_version(name) or recorder_version(stem.absolute()))
    num_events, num_frames = len(events), max(0, len(events) - max(0, action_shift))
    sources = range(action_shift, action_shift + num_frames)  # the event that leads into each frame
    pressed, camera = pressed_and_turned([events[source] if 0 <= source < num_events else {} for source in sources])
    return RecordingFile(
        name=name or stem.name,
        video=video,
        events=events[:num_frames],
        actions=actions_from_buttons(pressed, camera),
        pressed=pressed,
    )


def read_events(path: Path) -> list[Event]:
    """Return all events of a jsonl, without repairs.

    Raises:
        ValueError: the file cannot be read, or a line is no event; the error names the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise ValueError(f"{path}: no readable file ({error.strerror}); record or download it again") from error
    # Split at line feeds only, because typed text in events may contain other line separators.
    lines = text.rstrip().split("\n") if text.strip() else []
    events = []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(parse_event(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}; record or download it again") from error
    return events
