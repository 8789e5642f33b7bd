"""The frames of LeRobot episodes: a stretch of a video, or a column of images.

Legend: H W pixels.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from PIL import Image

from rlir_ray.data import video as video_files
from rlir_ray.data.lerobot.episodes import TABLE_ERRORS, WAY_OUT, EpisodePlace, table_reason
from rlir_ray.data.video import VIDEO_ERRORS, VideoFile

# Rows of images that are decompressed at a time.
IMAGE_ROWS = 32


class FrameRows(Protocol):
    """Frames that are read by their row."""

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Return frames [start, stop), uint8 [n, H, W, 3], RGB."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoHeader:
    """What the header of a video says about its pictures."""

    tick_s: float
    """Seconds of the stream's unit of time."""
    num_pictures: int
    """0: a fragmented mp4, which states no number."""


def read_header(path: Path) -> VideoHeader:
    """Read the header of a video and check that the file is not cut off; read no packet.

    Raises:
        ValueError: the file is missing, no video, or cut off.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            header = VideoHeader(tick_s=float(stream.time_base or 0), num_pictures=stream.frames)
        video_files._check_boxes(path)
    except VIDEO_ERRORS as error:
        raise ValueError(f"{path}: no readable video ({video_files._reason(error)}); {WAY_OUT}") from error
    return header


def check_length(place: EpisodePlace, header: VideoHeader, fps: float) -> None:
    """Check that the video has a picture for each row of an episode, and not one more, as far as its header tells.

    Raises:
        ValueError: the numbers differ.
    """
    if place.stop_s is None:
        num_pictures = header.num_pictures or place.length
    else:
        num_pictures = round((place.stop_s - place.first_s) * fps)
        if header.num_pictures:
            num_pictures = min(num_pictures, header.num_pictures - round(place.first_s * fps))
    if num_pictures != place.length:
        raise ValueError(
            f"{place.video}: an episode must have as many pictures as rows, got {num_pictures} pictures for "
            f"{place.length} rows; {WAY_OUT}"
        )


def first_picture(place: EpisodePlace, video: VideoFile, header: VideoHeader, fps: float) -> int:
    """Return the index of an episode's frame 0 in its video.

    Frame k is the picture nearest to `first_s` + k / fps. LeRobot's reader allows 1e-4 s between the two times; half a
    frame still tells the pictures apart, and admits files whose unit of time is a millisecond.

    Raises:
        ValueError: a frame has no picture of its time.
    """
    times = video.timestamps * header.tick_s
    first = int(np.abs(times - place.first_s).argmin())
    found = times[first : first + place.length] - place.first_s
    wrong = np.abs(found - np.arange(len(found)) / fps) >= 0.5 / fps
    if len(found) == place.length and not wrong.any():
        return first
    frame = int(wrong.argmax()) if wrong.any() else len(found)
    seen = f"one at {found[frame]:.3f} s" if wrong.any() else "none"
    raise ValueError(
        f"{place.name}: {video.path}: frame {frame} must have its picture at {frame / fps:.3f} s of the episode, got "
        f"{seen}; {WAY_OUT}"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRows:
    """Encoded images in a column of a table."""

    path: Path
    camera: str

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Return the images of rows [start, stop), uint8 [n, H, W, 3], RGB; read their row groups alone.

        Raises:
            ValueError: the table cannot be read, or an image is missing, damaged, or of another size.
        """
        try:
            with pq.ParquetFile(self.path) as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                stops = np.cumsum(sizes)
                groups = [int(g) for g in np.flatnonzero((stops > start) & (stops - sizes < stop))]
                row = int(stops[groups[0]]) - sizes[groups[0]]
                frames = []
                for batch in file.iter_batches(IMAGE_ROWS, row_groups=groups, columns=[self.camera]):
                    inside = batch.column(0)[max(0, start - row) : max(0, stop - row)]
                    frames += [_image(cell.as_py()) for cell in inside]
                    row += len(batch)
            return np.stack(frames)
        except (*TABLE_ERRORS, ValueError, SyntaxError) as error:
            raise ValueError(f"{self.path}: no readable images ({table_reason(error)}); {WAY_OUT}") from error


def _image(cell: dict[str, bytes | str | None] | None) -> npt.NDArray[np.uint8]:
    content = cell.get("bytes") if isinstance(cell, dict) else None
    if not isinstance(content, bytes):
        raise ValueError("an image must lie in the table, got none")
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
