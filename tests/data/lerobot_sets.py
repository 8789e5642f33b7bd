"""Small LeRobot datasets: written by our writer, or built by hand as other programs build them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from rlir_ray.data.lerobot.writer import LerobotWriter
from rlir_ray.spaces.fields import Axis, Choice, Uniform
from rlir_ray.spaces.space import Actions, ActionSpace

HEIGHT, WIDTH, FPS = 32, 48, 10
CAMERA = "observation.images.main"
SPACE = ActionSpace(
    (
        Choice(name="fire", classes=("no", "yes")),
        Axis(name="turn", low=-10, high=90, unit="degrees", quantizer=Uniform(num_bins=21)),
    )
)


def frames_of(num_frames: int, episode: int = 0) -> npt.NDArray[np.uint8]:
    """uint8 [F, H, W, 3]: each frame of one grey, which says its episode and its number."""
    grey = (4 * np.arange(num_frames) + 40 * episode + 10).astype(np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (num_frames, HEIGHT, WIDTH, 3)).copy()


def actions_of(num_frames: int, episode: int = 0) -> Actions:
    """Action k turns by k + 20 * episode degrees and fires in every other frame."""
    frames = np.arange(num_frames)
    return Actions(SPACE, np.stack([frames % 2, frames + 20 * episode], axis=1).astype(np.float32))


def writer_of(folder: Path, **settings: Any) -> LerobotWriter:
    return LerobotWriter(folder, SPACE, **({"fps": FPS, "height": HEIGHT, "width": WIDTH} | settings))


def write_dataset(folder: Path, lengths: Sequence[int] = (12, 7, 9), **settings: Any) -> Path:
    with writer_of(folder, **settings) as writer:
        for episode, length in enumerate(lengths):
            writer.write(frames_of(length, episode), actions_of(length, episode))
    return folder


def add_camera(folder: Path, other: Path, camera: str) -> None:
    """Give a dataset the camera of another dataset whose episodes have the same lengths."""
    edit_info(folder, features=read_info(folder)["features"] | {camera: read_info(other)["features"][camera]})
    (other / "videos" / camera).rename(folder / "videos" / camera)
    rows = [path / "meta/episodes/chunk-000/file-000.parquet" for path in (folder, other)]
    mine, theirs = (pq.read_table(path, partitioning=None) for path in rows)
    for name in theirs.column_names:
        if name.startswith(f"videos/{camera}/"):
            mine = mine.append_column(name, theirs[name])
    pq.write_table(mine, rows[0])


def read_info(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "meta/info.json").read_text()))


def edit_info(folder: Path, **changes: Any) -> None:
    (folder / "meta/info.json").write_text(json.dumps(read_info(folder) | changes))


def edit_table(path: Path, **columns: Any) -> None:
    """Replace columns of a parquet."""
    table = pq.read_table(path, partitioning=None)
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, values if isinstance(values, pa.Array) else pa.array(values))
    pq.write_table(table, path)


def write_v21(folder: Path, lengths: Sequence[int] = (6, 5), dtype: str = "video") -> Path:
    """A dataset of v2.1 of another program: a robot's actions, no action_space.json, chunks of one episode.

    Action t of episode e is [t + 10 e, 5].
    """
    action = {"dtype": "float32", "shape": [2], "names": {"motors": ["pan", "grip"]}}
    info = {
        "codebase_version": "v2.1",
        "fps": FPS,
        "features": {CAMERA: {"dtype": dtype, "shape": [HEIGHT, WIDTH, 3], "names": None}, "action": action},
        "total_episodes": len(lengths),
        "total_videos": len(lengths),
        "chunks_size": 1,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info))
    rows, stats = [], []
    for episode, length in enumerate(lengths):
        actions = np.stack([np.arange(length) + 10 * episode, np.full(length, 5)], axis=1).astype(np.float32)
        images = {CAMERA: images_of(frames_of(length, episode))} if dtype == "image" else {}
        table = {"action": list(actions), "frame_index": np.arange(length), "episode_index": np.full(length, episode)}
        path = folder / f"data/chunk-{episode:03d}/episode_{episode:06d}.parquet"
        path.parent.mkdir(parents=True)
        # Two rows a group: images are fetched by group.
        pq.write_table(pa.table(table | images), path, row_group_size=2)
        if dtype == "video":
            video = folder / f"videos/chunk-{episode:03d}/{CAMERA}/episode_{episode:06d}.mp4"
            encode(video, frames_of(length, episode))
        rows.append({"episode_index": episode, "tasks": ["reach\u2028out"], "length": length})
        found = {"min": actions.min(0).tolist(), "max": actions.max(0).tolist(), "count": [length]}
        stats.append({"episode_index": episode, "stats": {"action": found}})
    for name, content in (("episodes", rows), ("episodes_stats", stats)):
        lines = [json.dumps(row, ensure_ascii=False) for row in content]
        (folder / f"meta/{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def images_of(frames: npt.NDArray[np.uint8]) -> pa.Array:
    cells = []
    for number, frame in enumerate(frames):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, format="PNG")
        cells.append({"bytes": file.getvalue(), "path": f"frame-{number:06d}.png"})
    return pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def encode(path: Path, frames: npt.NDArray[np.uint8], fps: int = FPS, **options: str) -> None:
    """An mp4 as LeRobot encodes: yuv420p, two frames a group of pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"g": "2", "crf": "10", "bf": "0"} | options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
