"""What the writer of LeRobot datasets says about them: features, tasks, and the rows of episodes.

Legend: F frames, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rlir_ray.data.files import Json
from rlir_ray.data.lerobot.episodes import TABLE_ERRORS, table_reason
from rlir_ray.data.lerobot.layout import ACTION, EPISODES_FOLDER, TASKS_PATH
from rlir_ray.data.lerobot.shards import write_table
from rlir_ray.data.lerobot.stats import Stats
from rlir_ray.data.vpt.pairs import PIXEL_FORMAT
from rlir_ray.spaces.space import ActionSpace

# LeRobot adds these columns to every table.
COUNTERS = {"timestamp": "float32"} | dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")


def check_name(name: str, camera: str = "") -> None:
    """Check the name of a feature beside the camera and the features that each dataset has.

    Raises:
        ValueError: the name is taken, empty, or holds a slash, which separates names in columns of statistics.
    """
    taken = sorted({ACTION, camera, *COUNTERS})
    if "/" in name or name in taken or not name:
        rule = f"have no slash and be none of {', '.join(filter(None, taken))}"
        raise ValueError(f"the name of a feature must {rule}, got {name!r}; rename it")


def features_of(
    space: ActionSpace, camera: str, frame_shape: tuple[int, int, int], fps: int, columns: Mapping[str, int]
) -> dict[str, Json]:
    """Return the features of info.json.

    Args:
        frame_shape: H, W and 3.
        columns: further features and their lengths.
    """
    height, width, channels = frame_shape
    info = {
        "height": height,
        "width": width,
        "channels": channels,
        "fps": fps,
        "codec": "h264",
        "pix_fmt": PIXEL_FORMAT,
    }
    video = {
        "dtype": "video",
        "shape": list(frame_shape),
        "names": ["height", "width", "channels"],
        "info": {f"video.{key}": value for key, value in info.items()} | {"has_audio": False},
    }
    names = [field.name for field in space.fields]
    return {
        camera: video,
        ACTION: {"dtype": "float32", "shape": [len(names)], "names": names},
        **{name: _feature("float32", length) for name, length in columns.items()},
        **{name: _feature(dtype, 1) for name, dtype in COUNTERS.items()},
    }


def add_task(folder: Path, task: str) -> list[str]:
    """Return the tasks of a dataset by index; append the task if it is new."""
    path = folder / TASKS_PATH
    rows = pq.read_table(path, partitioning=None).to_pylist() if path.is_file() else []
    tasks = [row["task"] for row in sorted(rows, key=lambda row: row["task_index"])]
    if task not in tasks:
        tasks.append(task)
        write_table(path, [_tasks_table(tasks)])
    return tasks


def packed_rows(folder: Path) -> list[Json]:
    """Return the rows of all episodes that are in shards, with their statistics.

    Raises:
        ValueError: a file of rows cannot be read.
    """
    rows: list[Json] = []
    for path in sorted((folder / EPISODES_FOLDER).glob("*/*.parquet")):
        try:
            rows += pq.read_table(path, partitioning=None).to_pylist()
        except TABLE_ERRORS as error:
            reason = table_reason(error)
            raise ValueError(f"{path}: no readable table ({reason}); restore it or give another folder") from error
    return rows


def _feature(dtype: str, length: int) -> Json:
    return {"dtype": dtype, "shape": [length], "names": None}


def column_of(values: npt.NDArray[np.generic]) -> pa.Array:
    """Return a column as LeRobot stores its shape: [F] and [F, 1] as numbers, [F, n] as lists of a fixed length."""
    flat = pa.array(values.reshape(-1))
    return flat if values.size == len(values) else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def stats_of(row: Json) -> dict[str, Stats]:
    """Return the statistics in a row of meta/episodes."""
    stats: dict[str, Stats] = {}
    for key, value in row.items():
        if key.startswith("stats/"):
            _, name, statistic = key.split("/")
            stats.setdefault(name, {})[statistic] = value
    return stats


def _tasks_table(tasks: list[str]) -> pa.Table:
    """Return the table that pandas writes of a frame with the index `task`, as LeRobot reads it with pandas."""
    text = {"pandas_type": "unicode", "numpy_type": "object"}
    number = {"pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [{"name": None, "field_name": None, **text, "metadata": {"encoding": "UTF-8"}}],
        "columns": [
            {"name": "task_index", "field_name": "task_index", **number},
            {"name": "task", "field_name": "task", **text, "metadata": None},
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    return table.replace_schema_metadata({b"pandas": json.dumps(pandas)})
