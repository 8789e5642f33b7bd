"""Read an uploaded clip: multipart/form-data to frames and actions. All limits are checked before decoding.

Independent of Ray: takes a request, returns arrays or raises an `UploadError` with an HTTP status. Legend: K frames of
a clip.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message, Receive

from rlir_ray.data.video import index_video
from rlir_ray.data.vpt.pairs import open_recording
from rlir_ray.rewards.inverse import ClipScores
from rlir_ray.spaces.fields import ActionField, Axis, Choice
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE

CURL = "curl -F video=@NAME.mp4 -F events=@NAME.jsonl URL"
# A recorded event has some hundred bytes; even an event that lists every key stays below this bound.
MAX_LINE_BYTES = 16_384
# A form needs two parts, video and events; a form with more parts than this is rejected.
MAX_PARTS = 8
MAX_BYTES = 16 << 20


class UploadError(ValueError):
    """The error of a bad upload.

    Args:
        status: HTTP status, 4xx.
        text: the rule, the value and the remedy.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of an upload."""

    height: int
    """Height of a frame in pixels."""
    width: int
    """Width of a frame in pixels."""
    max_frames: int = 576
    """Most frames of a clip."""
    max_bytes: int = MAX_BYTES
    """Most bytes of the whole request."""


async def read_form(request: Request, limits: Limits) -> dict[str, bytes]:
    """Read the parts of a multipart/form-data request by name; stop at the limit.

    Starlette parses the body while it arrives and keeps parts above 1 MiB on disk.

    Raises:
        UploadError: 415: the content type is another one; 413: the body is too large; 400: the body is broken.
    """
    content_type = request.headers.get("content-type", "")
    media_type, options = parse_options_header(content_type)
    if media_type != b"multipart/form-data" or b"boundary" not in options:
        raise UploadError(415, f"an upload must be multipart/form-data, got {content_type[:80]!r}; try {CURL}")
    stated_bytes = request.headers.get("content-length", "")
    if stated_bytes.isdecimal():
        _check_bytes(int(stated_bytes), limits)
    bounded = Request(request.scope, _bounded(request.receive, limits))
    bounds = {"max_files": MAX_PARTS, "max_fields": MAX_PARTS, "max_part_size": limits.max_bytes}
    try:
        async with bounded.form(**bounds) as form:
            parts = {name: await _content(part) for name, part in form.multi_items()}
    except MultiPartException as error:
        if '"name"' in error.message:
            raise UploadError(400, f"each part of an upload must have a name, got none; try {CURL}") from error
        raise UploadError(
            400, f"an upload must be a form of at most {MAX_PARTS} parts, got another ({error.message}); try {CURL}"
        ) from error
    if not parts:
        raise UploadError(400, f"an upload must end with its boundary, got 0 parts of it; try {CURL}")
    return parts


async def _content(part: UploadFile | str) -> bytes:
    return await part.read() if isinstance(part, UploadFile) else part.encode()


def _bounded(receive: Receive, limits: Limits) -> Receive:
    """Return a `receive` that raises an UploadError when the body exceeds the limit."""
    num_bytes = 0

    async def receive_bounded() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        _check_bytes(num_bytes, limits)
        return message

    return receive_bounded


def _check_bytes(num_bytes: int, limits: Limits) -> None:
    if num_bytes > limits.max_bytes:
        raise UploadError(413, f"an upload must have at most {limits.max_bytes} bytes, got {num_bytes}; cut the clip")


def read_clip(parts: dict[str, bytes], limits: Limits, space: ActionSpace) -> tuple[npt.NDArray[np.uint8], Actions]:
    """Read the frames and actions of an upload.

    Args:
        parts: `video`, an mp4 of K frames, and `events`, a jsonl of K lines; line k leads into frame k. In VPT's space
            a line is an event of VPT's recorder, in any other space ``{FIELD: VALUE, ...}``.
        limits: of the upload.
        space: of the actions.

    Returns:
        uint8 [K, H, W, 3], and K - 1 actions; action i leads into frame i + 1.

    Raises:
        UploadError: 400: a part is missing or not readable; 413: the clip is too long; 422: the frames have another
            size, or the number of events differs from the number of frames.
    """
    for name in ("video", "events"):
        if name not in parts:
            raise UploadError(400, f"an upload must have the parts video and events, got no {name}; try {CURL}")
    _check_events(parts["events"], limits)
    with tempfile.TemporaryDirectory(prefix="rlir_upload_") as folder:
        path, events = Path(folder, "upload.mp4"), Path(folder, "upload.jsonl")
        path.write_bytes(parts["video"])
        events.write_bytes(parts["events"])
        try:
            _check_video(path, limits)
            if space == VPT_SPACE:
                recording = open_recording(path)
                video, actions = recording.video, recording.actions
            else:
                video, actions = index_video(path), _read_rows(parts["events"], space)
            if len(actions) != len(video):
                raise UploadError(422, f"events must have a line a frame, got {len(actions)} for {len(video)} frames")
            frames = video.read(0, len(video))
            # Check the size again: a rotated video has other sides after decoding.
            _check_size(frames.shape[1], frames.shape[2], limits)
        except UploadError:
            raise
        except ValueError as error:
            differ = "it needs one a frame" in str(error)
            raise UploadError(422 if differ else 400, str(error).replace(f"{folder}/", "")) from error
    return frames, actions[1:]


def _read_rows(events: bytes, space: ActionSpace) -> Actions:
    """Read one JSON object a line, with the value of each field; a choice's value is its class or the class's name."""
    rows = []
    for number, line in enumerate(events.decode(errors="replace").strip().split("\n"), start=1):
        try:
            row = json.loads(line, parse_int=float)
        except (ValueError, RecursionError) as error:
            # Python raises a RecursionError for JSON that is nested too deeply.
            reason = getattr(error, "msg", error)
            raise ValueError(f"events, line {number}, must be JSON, got {reason}; write one object a line") from None
        if not isinstance(row, dict) or row.keys() != set(space.names):
            raise ValueError(
                f"events, line {number}, must have the fields {', '.join(space.names)}, got {line[:80]}; give a value "
                "of each"
            )
        rows.append([_value(field, row[field.name], number) for field in space.fields])
    # Numbers beyond float32 become infinite, which `Actions` rejects.
    with np.errstate(over="ignore"):
        return Actions(space, np.array(rows, np.float32))


# Any: a value that a user has written.
def _value(field: ActionField, value: Any, number: int) -> float:
    if isinstance(field, Choice) and value in field.classes:
        return float(field.classes.index(value))
    if not isinstance(value, float):
        raise ValueError(f"{field.name} in line {number} must be a number, got {str(value)[:80]!r}; correct the line")
    return value


def _check_events(events: bytes, limits: Limits) -> None:
    lines = events.rstrip().split(b"\n")
    if len(lines) > limits.max_frames:
        raise UploadError(413, f"events must have at most {limits.max_frames} lines, got {len(lines)}; cut the clip")
    if (longest := max(map(len, lines))) > MAX_LINE_BYTES:
        raise UploadError(413, f"an event must have at most {MAX_LINE_BYTES} bytes, got {longest}; leave fields out")


def _check_video(path: Path, limits: Limits) -> None:
    """Check size and length in the file's index, without decoding."""
    if path.read_bytes()[4:8] != b"ftyp":
        raise UploadError(400, "video must be an mp4, got another format; convert it: ffmpeg -i VIDEO NAME.mp4")
    video = index_video(path)
    if not 2 <= len(video) <= limits.max_frames:
        status = 413 if len(video) > 1 else 422
        raise UploadError(status, f"a clip must have 2 to {limits.max_frames} frames, got {len(video)}; cut the clip")
    _check_size(video.height, video.width, limits)


def _check_size(height: int, width: int, limits: Limits) -> None:
    if (height, width) != (limits.height, limits.width):
        raise UploadError(
            422,
            f"frames must be {limits.height}x{limits.width} (height x width), got {height}x{width}; "
            f"resize them: ffmpeg -i NAME.mp4 -vf scale={limits.width}:{limits.height} SMALL.mp4",
        )


def clip_report(scores: ClipScores) -> dict[str, object]:
    """Return the scores of a clip as JSON for a person: agreement, commanded and recovered values of each frame."""
    return {
        "frames": len(scores.agreement) + 1,
        "agreement": round(float(scores.agreement.mean()), 4),
        "per_frame": [
            {
                "frame": frame + 1,
                "agreement": round(float(scores.agreement[frame]), 4),
                "groups": {
                    field.name: {
                        "commanded": value_words(field, float(scores.commanded[field.name][frame])),
                        "recovered": value_words(field, float(scores.recovered[field.name][frame])),
                        "agreement": round(float(scores.by_field[field.name][frame]), 4),
                    }
                    for field in scores.space.select(tuple(scores.by_field))
                },
            }
            for frame in range(len(scores.agreement))
        ],
    }


def value_words(field: ActionField, value: float) -> str | float:
    """Return a value for a person: the name of a choice's class, or the number of an axis."""
    return round(value, 2) if isinstance(field, Axis) else field.words(value)
