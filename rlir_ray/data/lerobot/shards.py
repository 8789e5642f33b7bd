"""Episodes on their way into a LeRobot dataset: each is staged whole, then packed with others into bounded files.

A staged episode is an mp4 and a table. The table is renamed last, so that an episode is whole exactly if its table is
there. Packing copies the compressed frames and encodes nothing again; the row in meta/episodes is written last, so that
only whole files are listed. A dataset that was cut off while packing gets the same files again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rlir_ray.data.files import Json
from rlir_ray.data.lerobot.episodes import episode_name
from rlir_ray.data.lerobot.layout import CHUNKS_SIZE, DATA_PATH, EPISODES_PATH, VIDEO_PATH

# The settings of our own recordings: small frames lose their colours with yuv420p, and LeRobot's readers (PyAV,
# torchcodec) decode yuv444p as well. Some web browsers do not.
from rlir_ray.data.vpt.pairs import CODEC, CODEC_OPTIONS, PIXEL_FORMAT

ROW_KEY = b"episode"


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedEpisode:
    """A whole episode that is in no shard yet.

    Args:
        row: its row of meta/episodes, but for the files; with the statistics under "stats/FEATURE/KEY".
    """

    row: Json
    table: Path
    video: Path

    @property
    def number(self) -> int:
        return int(self.row["episode_index"])

    @property
    def num_table_bytes(self) -> int:
        return self.table.stat().st_size

    @property
    def num_video_bytes(self) -> int:
        return self.video.stat().st_size


def stage(folder: Path, row: Json, table: pa.Table, frames: npt.NDArray[np.uint8], fps: int) -> StagedEpisode:
    """Write an episode into the folder of staged episodes."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / episode_name(row["episode_index"])
    staged = StagedEpisode(row=row, table=stem.with_suffix(".parquet"), video=stem.with_suffix(".mp4"))
    _encode(staged.video, frames, fps)
    write_table(staged.table, [table.replace_schema_metadata({ROW_KEY: json.dumps(row)})])
    return staged


def read_staged(folder: Path) -> list[StagedEpisode]:
    """Return the whole episodes of the folder of staged episodes, by number."""
    found = []
    for path in sorted(folder.glob("*.parquet")):
        row = json.loads((pq.read_schema(path).metadata or {})[ROW_KEY])
        found.append(StagedEpisode(row=row, table=path, video=path.with_suffix(".mp4")))
    return found


def pack(root: Path, staged: Sequence[StagedEpisode], first_shard: int, camera: str, fps: int) -> int:
    """Put staged episodes into shards and delete the staged files.

    Args:
        root: folder of the dataset.
        first_shard: number of shards that exist.
        camera: feature of the frames.

    Returns:
        The number of shards that exist now.
    """
    shard = first_shard
    # An mp4 has one set of codec settings; they differ if a recording is resumed with another encoder.
    for _, group in groupby(staged, key=_codec_settings):
        _pack_shard(root, list(group), shard, camera, fps)
        shard += 1
    for episode in staged:
        episode.table.unlink()
        episode.video.unlink()
    return shard


def _pack_shard(root: Path, staged: Sequence[StagedEpisode], shard: int, camera: str, fps: int) -> None:
    place = {"chunk_index": shard // CHUNKS_SIZE, "file_index": shard % CHUNKS_SIZE}
    _join_videos(root / VIDEO_PATH.format(video_key=camera, **place), [episode.video for episode in staged], fps)
    # A row group an episode: readers fetch one without the others.
    tables = (pq.read_table(episode.table, partitioning=None).replace_schema_metadata(None) for episode in staged)
    write_table(root / DATA_PATH.format(**place), tables)
    rows, start = [], 0
    for episode in staged:
        stop = start + episode.row["length"]
        files: Json = {f"{of}/{key}": value for of in ("data", "meta/episodes") for key, value in place.items()}
        files |= {f"videos/{camera}/{key}": value for key, value in place.items()}
        files |= {f"videos/{camera}/from_timestamp": start / fps, f"videos/{camera}/to_timestamp": stop / fps}
        rows.append(episode.row | files)
        start = stop
    write_table(root / EPISODES_PATH.format(**place), [pa.Table.from_pylist(rows)])


def write_table(path: Path, row_groups: Sequence[pa.Table] | Iterator[pa.Table]) -> None:
    """Write tables of one schema as the row groups of a parquet, atomically; the first table gives the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    tables = iter(row_groups)
    first = next(tables)
    with pq.ParquetWriter(part, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
    os.replace(part, path)


def _encode(path: Path, frames: npt.NDArray[np.uint8], fps: int) -> None:
    part = path.with_name(path.name + ".part")
    with av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream(CODEC, rate=fps, options=CODEC_OPTIONS)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], PIXEL_FORMAT
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    os.replace(part, path)


def _join_videos(path: Path, parts: Sequence[Path], fps: int) -> None:
    """Write the frames of videos one after another into one mp4, atomically; encode nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    num_frames = 0
    with av.open(str(temporary), "w", format="mp4") as joined:
        stream = None
        for part in parts:
            with av.open(str(part)) as container:
                source = container.streams.video[0]
                if stream is None:
                    stream = joined.add_stream_from_template(source)
                    stream.time_base = source.time_base
                assert source.time_base is not None, "an mp4 has a unit of time"
                offset = Fraction(num_frames, fps) / source.time_base
                assert offset.denominator == 1, "the unit of time of an mp4 divides its frames"
                for packet in container.demux(source):
                    if packet.dts is None or packet.pts is None:
                        continue  # the empty packet at the end
                    packet.dts, packet.pts = packet.dts + offset.numerator, packet.pts + offset.numerator
                    packet.stream = stream
                    joined.mux(packet)
                    num_frames += 1
    os.replace(temporary, path)


def _codec_settings(episode: StagedEpisode) -> bytes:
    with av.open(str(episode.video)) as container:
        return bytes(container.streams.video[0].codec_context.extradata or b"")
