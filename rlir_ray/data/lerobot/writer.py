"""Writing of LeRobotDataset v3.0; the package lerobot is not needed.

**Action k that is given leads INTO frame k**; LeRobot's row k - 1 gets it, because a row there holds an observation and
the action that is taken in it. Action 0 is not written. The last row, whose action leads into no frame, repeats the
action before: a value that does nothing would be a jump to zero for a robot that is given positions.
Legend: F frames, D numbers of an action, H W pixels.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rlir_ray.data.files import Json, write_json, write_text
from rlir_ray.data.lerobot import layout
from rlir_ray.data.lerobot.layout import ACTION
from rlir_ray.data.lerobot.metadata import add_task, check_name, column_of, features_of, packed_rows, stats_of
from rlir_ray.data.lerobot.shards import StagedEpisode, pack, read_staged, stage
from rlir_ray.data.lerobot.stats import Stats, frame_stats, merge_stats, number_stats
from rlir_ray.spaces.space import SPACE_FILE, Actions, ActionSpace

# LeRobot's own limits.
DATA_FILES_SIZE_IN_MB, VIDEO_FILES_SIZE_IN_MB = 100, 200


class LerobotWriter:
    """Write a LeRobotDataset v3.0 of one camera; a folder that holds one is continued.

    An episode is safe once `write` returns. `close` puts all episodes into shards, where readers find them; after a
    crash, the next writer of the folder does.

    Example::

        with LerobotWriter(Path("data/mine"), space, fps=20, height=48, width=64) as writer:
            while writer.num_episodes < 100:
                frames, actions = record()                  # action k leads into frame k
                writer.write(frames, Actions(space, actions))

    Args:
        folder: root of the dataset; it may not exist yet.
        space: of the actions.
        fps: frames a second.
        height: H.
        width: W.
        camera: feature of the frames.
        robot_type: as LeRobot's info.json has it.
        task: text of the task of the episodes to come.
        extra: further entries of info.json, which LeRobot ignores.

    Raises:
        ValueError: the folder holds a dataset of other settings or of another program, or its metadata are broken.
    """

    def __init__(
        self,
        folder: Path,
        space: ActionSpace,
        *,
        fps: int,
        height: int,
        width: int,
        camera: str = "observation.images.main",
        robot_type: str = "",
        task: str = "",
        extra: Mapping[str, object] | None = None,
    ) -> None:
        self.folder, self.space, self.fps, self.camera = Path(folder), space, fps, camera
        self._frame_shape = (height, width, 3)
        self._robot_type, self._extra = robot_type or None, dict(extra or {})
        self._columns: dict[str, int] | None = None  # until the first episode
        self._tasks: list[str] = []
        self._num_packed = self._num_frames = self._num_shards = 0
        self._stats: dict[str, Stats] = {}
        self._check_settings()
        if layout.is_lerobot(self.folder):
            self._resume()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / SPACE_FILE, space.to_json())
        self._task, self._tasks = task, add_task(self.folder, task)
        self._staged = self._read_staged()
        self._write_metadata()

    @property
    def num_episodes(self) -> int:
        """Number of complete episodes in the folder."""
        return self._num_packed + len(self._staged)

    @property
    def num_frames(self) -> int:
        """Number of frames of these episodes."""
        return self._num_frames + sum(int(each.row["length"]) for each in self._staged)

    def write(
        self,
        frames: npt.NDArray[np.uint8],
        actions: Actions,
        *,
        columns: Mapping[str, npt.NDArray[np.float32]] | None = None,
    ) -> None:
        """Write one episode.

        Args:
            frames: uint8 [F, H, W, 3], RGB.
            actions: F actions; **action k leads INTO frame k**, action 0 is not written.
            columns: further features, float32 [F, n], such as ``observation.state``; the same in each episode.

        Raises:
            ValueError: frames, actions and columns do not fit the dataset or each other.
        """
        columns = {name: np.asarray(values, np.float32) for name, values in (columns or {}).items()}
        self._check(frames, actions, columns)
        if self._columns is None:
            self._columns = {name: values.shape[1] for name, values in columns.items()}
            self._write_metadata()
        values = np.concatenate([actions.values[1:], actions.values[-1:]]).astype(np.float32)
        number, start, length = self.num_episodes, self.num_frames, len(frames)
        rows: dict[str, npt.NDArray[np.generic]] = {
            ACTION: values,
            **columns,
            "timestamp": (np.arange(length) / self.fps).astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, number),
            "index": start + np.arange(length),
            "task_index": np.full(length, self._tasks.index(self._task)),
        }
        stats = {name: number_stats(each) for name, each in rows.items()} | {self.camera: frame_stats(frames)}
        row: Json = {
            "episode_index": number,
            "tasks": [self._task],
            "length": length,
            "dataset_from_index": start,
            "dataset_to_index": start + length,
            **{f"stats/{name}/{key}": value for name, each in stats.items() for key, value in each.items()},
        }
        table = pa.table({name: column_of(each) for name, each in rows.items()})
        self._staged.append(stage(self.folder / layout.STAGED_FOLDER, row, table, frames, self.fps))
        if self._is_full():
            self._pack()

    def close(self) -> None:
        """Put all episodes into shards and update the metadata; writing may go on afterwards, in new shards."""
        if self._staged:
            self._pack()
        shutil.rmtree(self.folder / layout.STAGED_FOLDER, ignore_errors=True)

    def __enter__(self) -> LerobotWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error too: the episodes that were written are complete.
        self.close()

    # -----------------------------------------------------------------------------------------------------------------

    def _is_full(self) -> bool:
        """Whether a further episode of the last one's size would exceed the size of a file."""
        last = self._staged[-1]
        video = sum(each.num_video_bytes for each in self._staged) + last.num_video_bytes
        data = sum(each.num_table_bytes for each in self._staged) + last.num_table_bytes
        return video > VIDEO_FILES_SIZE_IN_MB * 2**20 or data > DATA_FILES_SIZE_IN_MB * 2**20

    def _pack(self) -> None:
        self._num_shards = pack(self.folder, self._staged, self._num_shards, self.camera, self.fps)
        self._count([each.row for each in self._staged])
        self._staged = []
        self._write_metadata()

    def _count(self, rows: list[Json]) -> None:
        self._num_packed += len(rows)
        self._num_frames += sum(row["length"] for row in rows)
        self._stats = merge_stats([*([self._stats] if self._stats else []), *(stats_of(row) for row in rows)])

    def _write_metadata(self) -> None:
        if self._stats:
            write_json(self.folder / layout.STATS_PATH, self._stats)
        (self.folder / layout.INFO_PATH).parent.mkdir(exist_ok=True)
        # Last, because it says how many episodes the other files have.
        write_json(self.folder / layout.INFO_PATH, self._extra | self._info())

    def _info(self) -> Json:
        return {
            "codebase_version": layout.V3,
            "robot_type": self._robot_type,
            "total_episodes": self._num_packed,
            "total_frames": self._num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": layout.CHUNKS_SIZE,
            "data_files_size_in_mb": DATA_FILES_SIZE_IN_MB,
            "video_files_size_in_mb": VIDEO_FILES_SIZE_IN_MB,
            "fps": self.fps,
            "splits": {"train": f"0:{self._num_packed}"},
            "data_path": layout.DATA_PATH,
            "video_path": layout.VIDEO_PATH,
            "features": features_of(self.space, self.camera, self._frame_shape, self.fps, self._columns or {}),
        }

    # -----------------------------------------------------------------------------------------------------------------
    # Checks and resuming

    def _check_settings(self) -> None:
        for name, value in (("fps", self.fps), ("height", self._frame_shape[0]), ("width", self._frame_shape[1])):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} of a LeRobot dataset must be an integer above 0, got {value!r}; round it")
        check_name(self.camera)
        if taken := sorted(self._extra.keys() & self._info().keys()):
            raise ValueError(f"extra must have other keys than info.json has already, got {taken[0]!r}; rename it")

    def _check(
        self, frames: npt.NDArray[np.uint8], actions: Actions, columns: Mapping[str, npt.NDArray[np.float32]]
    ) -> None:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != self._frame_shape or not len(frames):
            raise ValueError(
                f"an episode needs uint8 frames [F, {', '.join(map(str, self._frame_shape))}], got {frames.dtype} "
                f"{list(frames.shape)}; convert or resize the frames"
            )
        if differences := self.space.differences(actions.space):
            raise ValueError(f"actions must be of the dataset's space, got {differences[0]}; convert the actions")
        lengths = {ACTION: len(actions)} | {name: len(values) for name, values in columns.items()}
        if wrong := next((name for name, length in lengths.items() if length != len(frames)), None):
            raise ValueError(
                f"{wrong} needs a row for each of the {len(frames)} frames, got {lengths[wrong]}; give one a frame"
            )
        if flat := next((name for name, values in columns.items() if values.ndim != 2 or not values.shape[1]), None):
            raise ValueError(f"{flat} needs a shape [F, n], got {list(columns[flat].shape)}; reshape it")
        for name in columns:
            check_name(name, self.camera)
        given = {name: values.shape[1] for name, values in columns.items()}
        if self._columns is not None and given != self._columns:
            raise ValueError(
                f"columns must be those of the first episode, {self._columns or 'none'}, got {given or 'none'}; give "
                "the same columns, or write another dataset"
            )

    def _resume(self) -> None:
        """Continue a dataset that this class began: compare the settings, count the episodes."""
        info = layout.read_info(self.folder)
        path = self.folder / SPACE_FILE
        if not path.is_file():
            raise ValueError(f"{self.folder}: to be continued, a dataset must have a {SPACE_FILE}; give another folder")
        differences = self.space.differences(ActionSpace.from_json(path.read_text(encoding="utf-8")))
        known = self._info()["features"]
        for name in (self.camera, ACTION):
            shape = info.features.get(name, {}).get("shape")
            if shape != known[name]["shape"]:
                differences.append(f"{name} of shape {known[name]['shape']} here, {shape} there")
        if info.fps != self.fps:
            differences.append(f"fps={self.fps} here, {info.fps:g} there")
        if info.version != layout.V3:
            differences.append(f"{layout.V3} here, {info.version} there")
        if differences:
            raise ValueError(
                f"{self.folder}: to be continued, a dataset must have the same settings, got {differences[0]}; give "
                "another folder or the settings of the dataset"
            )
        rows = packed_rows(self.folder)
        self._count(rows)
        self._columns = {name: info.features[name]["shape"][0] for name in info.features if name not in known} or None
        if rows:
            self._columns = self._columns or {}
            last = {key: rows[-1][f"meta/episodes/{key}"] for key in ("chunk_index", "file_index")}
            self._num_shards = last["chunk_index"] * layout.CHUNKS_SIZE + last["file_index"] + 1

    def _read_staged(self) -> list[StagedEpisode]:
        """Return the staged episodes that are in no shard; delete what a crash left of others."""
        folder = self.folder / layout.STAGED_FOLDER
        for part in folder.glob("*.part"):
            part.unlink()
        staged = read_staged(folder)
        for packed in (each for each in staged if each.number < self._num_packed):
            packed.table.unlink()
        staged = [each for each in staged if each.number >= self._num_packed]
        if staged:
            self._columns = self._columns or {}
        return staged
