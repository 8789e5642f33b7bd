"""Random access to the frames of an mp4, without decoding the whole file. Independent of events.

Legend: F shown frames, P packets (compressed frames, in decoding order).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

WAY_OUT = "record or download it again"
# Exceptions of PyAV for a damaged file; IndexError is for a file without a video stream.
VIDEO_ERRORS = (av.FFmpegError, IndexError, ValueError)


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFile:
    """Index of a video's frames.

    Example: with two B frames, shown as 0 1 2 3 and stored as 0 3 1 2: ``packets == [0, 2, 3, 1]``.
    """

    path: Path
    height: int
    """Stored size in pixels; a player swaps height and width of a video that is rotated by 90 degrees."""
    width: int
    timestamps: npt.NDArray[np.int64]
    """[F], presentation time of each frame in the stream's unit, ascending."""
    packets: npt.NDArray[np.int64]
    """[F], index of the packet that holds each frame."""
    decode_times: npt.NDArray[np.int64]
    """[P], decoding time of each packet in the stream's unit, ascending."""
    keyframes: npt.NDArray[np.int64]
    """Indices of the frames at which decoding can start, ascending."""

    def __len__(self) -> int:
        return len(self.timestamps)

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Return frames [start, stop), uint8 [n, H, W, 3], RGB; decoding starts at the preceding keyframe.

        Raises:
            ValueError: the frames do not exist, or a decoded frame is damaged; the error names the file.
        """
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"{self.path}: frames must lie within 0..{len(self)}, got [{start}, {stop})")
        keyframe = int(max(self.keyframes[self.keyframes <= start], default=0))
        try:
            frames = list(self._decode(keyframe, start, stop))
            if len(frames) < stop - start and keyframe > 0:
                # With intra refresh, a frame marked as keyframe is complete some frames later: decode from the start.
                frames = list(self._decode(0, start, stop))
            if len(frames) < stop - start:
                raise ValueError(f"{len(frames)} of the frames [{start}, {stop}) can be decoded")
            return np.stack(frames)
        except VIDEO_ERRORS as error:
            raise ValueError(f"{self.path}: no readable video ({_reason(error)}); {WAY_OUT}") from error

    def _decode(self, keyframe: int, start: int, stop: int) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield frames [start, stop), decoding from `keyframe` on, as far as possible; 0 is the start of the file."""
        first = int(self.packets[keyframe]) if keyframe > 0 else 0
        last = int(self.packets[start:stop].max())
        wanted = {int(timestamp) for timestamp in self.timestamps[start:stop]}
        reached = False
        with av.open(str(self.path)) as container:
            stream = container.streams.video[0]
            if first > 0:
                container.seek(int(self.decode_times[first]), stream=stream)
            for frame in _decoded(container, stream, int(self.decode_times[first]), int(self.decode_times[last])):
                # A frame that is stored after the keyframe and shown before it depends on frames that were not decoded.
                reached = reached or frame.pts == self.timestamps[keyframe]
                if (frame.height, frame.width) != (self.height, self.width):
                    raise ValueError(f"a frame of {frame.height}x{frame.width} among {self.height}x{self.width} ones")
                if reached and frame.is_corrupt:
                    raise ValueError(f"the frame at {float(frame.time or 0):.2f} s is damaged")
                if reached and frame.pts in wanted:
                    yield _as_shown(frame)


def _as_shown(frame: VideoFrame) -> npt.NDArray[np.uint8]:
    """Convert a frame to RGB and apply the rotation that the file asks for, as a player does."""
    if matrix := frame.side_data.get(SideDataType.DISPLAYMATRIX):  # type: ignore[call-overload]  # av's stubs say int
        a, b, _, c, d, *_ = np.frombuffer(matrix, np.int32).astype(float)
        if a * d < b * c:
            raise ValueError("the file asks for a mirrored display, which would swap left and right")
    quarters, rest = divmod(int(frame.rotation), 90)  # counterclockwise
    if rest:
        raise ValueError(f"the file asks for a rotation by {frame.rotation} degrees, not by a multiple of 90")
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarters))


def _decoded(container: InputContainer, stream: VideoStream, first_time: int, last_time: int) -> Iterator[VideoFrame]:
    """Yield the decoded frames of the packets from `first_time` to `last_time`, and not one packet more."""
    for packet in container.demux(stream):
        if packet.size == 0:
            break
        assert packet.dts is not None, "index_video rejects such a file"
        # A seek may end at an earlier keyframe than the requested one.
        if packet.dts < first_time:
            continue
        yield from packet.decode()
        if packet.dts >= last_time:
            break
    # Flush the decoder, which holds back frames until no earlier frame can follow.
    yield from stream.codec_context.decode(None)


def index_video(path: Path) -> VideoFile:
    """Read the packets of an mp4 without decoding them.

    Raises:
        ValueError: the file is no video, is cut off, or has damaged packets.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            num_expected = stream.frames
            # A stream that is cut off before its settings has no size.
            height, width = getattr(stream, "height", 0), getattr(stream, "width", 0)
            # Demuxing ends with an empty packet.
            packets = [packet for packet in container.demux(stream) if packet.size]
        _check_packets(packets, num_expected)
        _check_boxes(path)
    except VIDEO_ERRORS as error:
        raise ValueError(f"{path}: no readable video ({_reason(error)}); {WAY_OUT}") from error
    # Packets before the start of an edited video are decoded but not shown.
    shown = [number for number, packet in enumerate(packets) if not packet.is_discard]
    if not shown:
        raise ValueError(f"{path}: a video without frames; {WAY_OUT}")
    timestamps = np.array([packets[number].pts for number in shown], np.int64)
    order = np.argsort(timestamps)
    return VideoFile(
        path=path,
        height=height,
        width=width,
        timestamps=timestamps[order],
        packets=np.array(shown, np.int64)[order],
        decode_times=np.array([packet.dts for packet in packets], np.int64),
        keyframes=np.flatnonzero([packets[shown[place]].is_keyframe for place in order]),
    )


def _reason(error: Exception) -> str:
    """Return FFmpeg's message without error number and path, because our message already has the path."""
    return getattr(error, "strerror", None) or str(error)


def _check_packets(packets: list[Packet[VideoStream]], num_expected: int) -> None:
    """Check that no packet is damaged or missing; `num_expected` is 0 for a fragmented mp4, which states no number."""
    if len(packets) < num_expected:
        raise ValueError(f"{len(packets)} of {num_expected} frames are there")
    if any(packet.is_corrupt for packet in packets):
        raise ValueError("the file is cut off")
    if any(packet.pts is None or packet.dts is None for packet in packets):
        raise ValueError("frames without a time")
    times = [packet.dts for packet in packets if packet.dts is not None]
    if len({packet.pts for packet in packets}) < len(packets) or times != sorted(set(times)):
        raise ValueError("frames of the same time")


def _check_boxes(path: Path) -> None:
    """Check that an mp4 is not cut off: each box starts with its size, and the last box must end with the file."""
    end = path.stat().st_size
    with path.open("rb") as file:
        position = 0
        while position < end:
            file.seek(position)
            header = file.read(16)
            if position == 0 and header[4:8] != b"ftyp":
                return  # another format under this name
            size = int.from_bytes(header[:4], "big")
            if size == 1:
                size = int.from_bytes(header[8:16], "big")
            if size == 0:
                return  # size 0: the box ends with the file
            position += max(size, 8)
    if position > end:
        raise ValueError(f"{end} of {position} bytes are there")
