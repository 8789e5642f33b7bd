"""Small recordings as other programs write them: B frames, groups of pictures, the index at either end."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from rlir_ray.data.recordings import Recording
from rlir_ray.data.vpt.pairs import open_recording

HEIGHT, WIDTH, NUM_FRAMES, GOP = 48, 64, 60, 20
B_FRAMES = {"g": str(GOP), "bf": "3", "crf": "18", "threads": "1", "sc_threshold": "0"}


def moving_bars(num_frames: int = NUM_FRAMES, seed: int = 0) -> npt.NDArray[np.uint8]:
    """uint8 [F, H, W, 3]: each frame is another one, with noise that compresses badly."""
    x = np.arange(WIDTH)[None, :, None] + 3 * np.arange(num_frames)[:, None, None, None]
    bars = 128 + 100 * np.sin(x / 6 + np.array([0.0, 1.0, 2.0]))
    noise = np.random.default_rng(seed).integers(-20, 20, (num_frames, HEIGHT, WIDTH, 3))
    return np.clip(bars + noise, 0, 255).astype(np.uint8)


def write_video(
    path: Path, options: dict[str, str] = B_FRAMES, movflags: str = "", num_frames: int = NUM_FRAMES
) -> Path:
    """An mp4 at 20 Hz; `movflags=faststart` puts the index before the frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream("libx264", rate=20, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for frame in moving_bars(num_frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def decode_all(path: Path) -> npt.NDArray[np.uint8]:
    """Every frame from the first to the last, uint8 [F, H, W, 3]."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def event(dx: float = 0.0, keys: Sequence[str] = (), buttons: Sequence[int] = (), **fields: Any) -> dict[str, Any]:
    """An event of the VPT recorder with the fields that matter here."""
    return {
        "mouse": {"dx": dx, "dy": 0.0, "buttons": list(buttons), "newButtons": []},
        "keyboard": {"keys": [f"key.keyboard.{key}" for key in keys], "newKeys": [], "chars": ""},
        "isGuiOpen": False,
        "hotbar": 0,
        **fields,
    }


def write_pair(stem: Path, events: Sequence[dict[str, Any]] | None = None, num_frames: int = NUM_FRAMES) -> Path:
    """STEM.mp4 with B frames and STEM.jsonl; the events' dx is the frame's number. Returns the mp4."""
    events = [event(dx=float(frame)) for frame in range(num_frames)] if events is None else events
    video = write_video(stem.with_name(stem.name + ".mp4"), num_frames=num_frames)
    stem.with_name(stem.name + ".jsonl").write_text("".join(json.dumps(each) + "\n" for each in events))
    return video


def damage_frame(path: Path, packet_number: int = 30, offset: int = 0) -> None:
    """Overwrites eight bytes of a compressed frame: only decoding can find it.

    At its beginning the decoder fails; further on it makes up the rest of the picture and only says so.
    """
    with av.open(str(path)) as container:
        position = [packet.pos for packet in container.demux(video=0)][packet_number]
    assert position is not None
    content = bytearray(path.read_bytes())
    content[position + offset : position + offset + 8] = b"\xff" * 8
    path.write_bytes(content)


def turn(path: Path, matrix: tuple[int, ...]) -> None:
    """Writes the display matrix (of 1, 0 and -1: a, b, c, d) into the header of an mp4's track."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def read_recording(path: Path) -> Recording:
    """Read one VPT pair with all its frames."""
    opened = open_recording(path)
    frames = opened.read(0, len(opened))
    return Recording(name=opened.name, frames=frames, actions=opened.actions, events=opened.events)
