"""Recordings in the VPT format: NAME.mp4 and NAME.jsonl, one event a frame. Knows nothing of who played.

Event k holds what was pressed while frame k came about; event 0 is the null action.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from rlir_ray.actions import Actions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt

logger = logging.getLogger(__name__)

# Full colour resolution and a low rate factor: small frames have no detail to spare.
CODEC, PIXEL_FORMAT = "libx264", "yuv444p"
CODEC_OPTIONS = {"crf": "6", "preset": "superfast", "bf": "0", "g": "32", "threads": "1"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """One recording.

    Args:
        name: the file name without its ending.
        frames: uint8 [F, H, W, 3], RGB.
        events: F events; event k leads into frame k.
    """

    name: str
    frames: npt.NDArray[np.uint8]
    events: list[dict[str, Any]]
    actions: Actions


def write_recording(
    path_stem: Path, frames: npt.NDArray[np.uint8], events: Iterable[dict[str, Any]], fps: int = 7
) -> None:
    """Writes PATH_STEM.mp4 and PATH_STEM.jsonl; a pair that is there under its name is whole.

    Args:
        path_stem: folder and name without an ending.
        frames: uint8 [F, H, W, 3], RGB; H and W even.
        events: F events.
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
    video, lines = path_stem.with_name(path_stem.name + ".mp4"), path_stem.with_name(path_stem.name + ".jsonl")
    part_video, part_lines = video.with_suffix(".mp4.part"), lines.with_suffix(".jsonl.part")
    with av.open(str(part_video), "w", format="mp4") as container:
        stream = container.add_stream(CODEC, rate=fps, options=CODEC_OPTIONS)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], PIXEL_FORMAT
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    part_lines.write_text("".join(json.dumps(event) + "\n" for event in events))
    # The events last: a pair is taken for finished when both are there.
    part_video.rename(video)
    part_lines.rename(lines)


def list_recordings(folder: Path) -> list[Path]:
    """The mp4 of each whole pair in a folder (and in folders below it), sorted by path; half pairs are logged.

    Raises:
        ValueError: no such folder, or no pair in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"no folder of recordings at {folder}; make one with: python -m rlir_ray collect --out {folder}"
        )
    videos = {path.with_suffix("") for path in folder.rglob("*.mp4")}
    lines = {path.with_suffix("") for path in folder.rglob("*.jsonl")}
    for stem in sorted(videos ^ lines):
        missing = ".jsonl" if stem in videos else ".mp4"
        logger.warning("%s%s: no such file, its other half is left out", stem, missing)
    if not videos & lines:
        held = sorted(path.name for path in folder.iterdir())
        found = f"{len(held)} other files ({', '.join(held[:3])}, …)" if held else "nothing"
        raise ValueError(f"{folder} must hold NAME.mp4 + NAME.jsonl pairs, found {found}; give the folder of the pairs")
    return [stem.with_name(stem.name + ".mp4") for stem in sorted(videos & lines)]


def read_recording(path: Path) -> Recording:
    """One recording.

    Args:
        path: of the mp4, of the jsonl, or of both without their ending.

    Raises:
        ValueError: half of the pair is missing, a line is no event, the video cannot be decoded, or they differ in
            length; the message names the file and the line.
    """
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".mp4", ".jsonl") else path
    video, lines = stem.with_name(stem.name + ".mp4"), stem.with_name(stem.name + ".jsonl")
    for half in (video, lines):
        if not half.exists():
            raise ValueError(f"{half}: no such file; a recording is an mp4 and a jsonl of the same name")
    events, frames = read_events(lines), read_frames(video)
    if len(frames) != len(events):
        raise ValueError(
            f"{lines}: {len(events)} events for the {len(frames)} frames of {video.name}, it needs one a frame; "
            "record or download the pair again"
        )
    return Recording(name=stem.name, frames=frames, events=events, actions=Actions.from_events(events))


def read_recordings(paths: Iterable[Path], *, strict: bool = False) -> Iterator[Recording]:
    """The recordings at `paths` in order; a broken one is left out with one line in the log.

    Args:
        paths: as `list_recordings` gives them.
        strict: raise at the first broken recording instead.
    """
    num_read = num_broken = 0
    for path in paths:
        try:
            recording = read_recording(path)
        except ValueError as error:
            if strict:
                raise
            num_broken += 1
            logger.warning("left out: %s", error)
            continue
        num_read += 1
        yield recording
    if num_broken:
        logger.warning("%d of %d recordings were left out", num_broken, num_read + num_broken)


def load_recordings(folder: Path) -> list[Recording]:
    """All recordings of a folder; broken ones are left out with a line in the log.

    Raises:
        ValueError: no such folder, or nothing in it that can be read.
    """
    paths = list_recordings(folder)
    recordings = list(read_recordings(paths))
    if not recordings:
        raise ValueError(
            f"{folder} must hold a recording that can be read, got {len(paths)} broken ones; make some with: "
            f"python -m rlir_ray collect --out {folder}"
        )
    return recordings


def read_frames(path: Path) -> npt.NDArray[np.uint8]:
    """All frames of an mp4, uint8 [F, H, W, 3], RGB.

    Raises:
        ValueError: the file is no video or ends early.
    """
    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path}: no readable video ({error}); record or download it again") from error
    if not frames:
        raise ValueError(f"{path}: a video without frames; record or download it again")
    return np.stack(frames)


def read_events(path: Path) -> list[dict[str, Any]]:
    """All events of a jsonl.

    Raises:
        ValueError: a line is no JSON object; names the file and the line.
    """
    events = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        try:
            event = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error.msg}); record or download it again") from error
        if not isinstance(event, dict):
            raise ValueError(f"{path}, line {number}: an event is a JSON object, got {line[:40]!r}")
        events.append(event)
    return events
