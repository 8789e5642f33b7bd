"""The layout of LeRobot datasets that the reader and the writer share: info.json and the paths of all files.

A LeRobot row holds an observation and the action that was taken in it: **action t leads into frame t + 1**. Ours leads
INTO the frame of its own index, so that the reader and the writer shift the actions by one row.
Source: huggingface/lerobot@7427f31, `datasets/utils.py`; the package itself is not needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlir_ray.data.files import Json

ACTION = "action"
INFO_PATH, STATS_PATH, TASKS_PATH = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
EPISODES_FOLDER = "meta/episodes"
CHUNK_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
EPISODES_PATH = EPISODES_FOLDER + "/" + CHUNK_FILE + ".parquet"
DATA_PATH = "data/" + CHUNK_FILE + ".parquet"
VIDEO_PATH = "videos/{video_key}/" + CHUNK_FILE + ".mp4"
STAGED_FOLDER = ".staged"
"""Complete episodes that the writer has not put into shards yet."""
CHUNKS_SIZE = 1000

V3, V21 = "v3.0", "v2.1"


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetInfo:
    """What meta/info.json says; unknown keys are ignored.

    Args:
        folder: root of the dataset.
        version: `V3` or `V21`.
        fps: rows a second.
        features: name -> dtype, shape and names.
        data_path: template of the tables below the folder.
        video_path: template of the videos; None: the dataset has none.
        chunks_size: files a folder; v2.1: episodes a folder.
        total_episodes: that the dataset must have; 0: unknown or empty.
    """

    folder: Path
    version: str
    fps: float
    features: Mapping[str, Json]
    data_path: str
    video_path: str | None
    chunks_size: int
    total_episodes: int

    def file(self, template: str, **fields: object) -> Path:
        """Fill a path template of info.json.

        Raises:
            ValueError: the template has other fields, or leads out of the dataset.
        """
        try:
            relative = Path(template.format(**fields))
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{self.folder / INFO_PATH}: a path template must use the fields {', '.join(fields)}, got "
                f"{template!r}; download the dataset again"
            ) from error
        if relative.is_absolute() or ".." in relative.parts:
            raise ValueError(
                f"{self.folder / INFO_PATH}: a path template must stay below the dataset, got {template!r}; download "
                "the dataset again"
            )
        return self.folder / relative


def is_lerobot(path: Path) -> bool:
    """Return whether a path is the folder of a LeRobot dataset, of any version."""
    return (Path(path) / INFO_PATH).is_file()


def read_info(folder: Path) -> DatasetInfo:
    """Read meta/info.json.

    Raises:
        ValueError: the file is missing or no info, or has another version than v3.0 and v2.1.
    """
    path = folder / INFO_PATH
    info = read_object(path)
    version = info.get("codebase_version")
    if version not in (V3, V21):
        raise ValueError(
            f"{path}: codebase_version must be {V3} or {V21}, got {version!r}; convert the dataset with "
            "lerobot.scripts.convert_dataset_v21_to_v30, an older one to v2.1 first"
        )
    content: Json = {"chunks_size": CHUNKS_SIZE, "total_episodes": 0, "video_path": None} | info
    for key, (rule, is_right) in _RULES.items():
        if not is_right(content.get(key)):
            raise ValueError(f"{path}: {key} must {rule}, got {content.get(key)!r:.60}; download the dataset again")
    return DatasetInfo(folder=folder, version=version, **{key: content[key] for key in _RULES})


def read_object(path: Path) -> Json:
    """Read a JSON object.

    Raises:
        ValueError: the file cannot be read or holds another value.
    """
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: must be a JSON object, got no JSON ({reason}); download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must be a JSON object, got {type(content).__name__}; download it again")
    return content


def read_lines(path: Path) -> list[Json]:
    """Read the JSON objects of a jsonl.

    Raises:
        ValueError: the file cannot be read, or a line is no object.
    """
    try:
        rows: list[object] = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{path}: must hold a JSON object a line, got no JSON ({reason}); download it again"
        ) from error
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: must hold a JSON object a line, got another value; download it again")
    return [row for row in rows if isinstance(row, dict)]


def camera_of(info: DatasetInfo, camera: str = "") -> str:
    """Return the feature that holds the frames: the named camera, or the only camera.

    Raises:
        ValueError: no such camera, or none is named and the dataset has several.
    """
    cameras = sorted(name for name, feature in info.features.items() if feature.get("dtype") in ("video", "image"))
    rule = f"{info.folder}: camera must name a video or image feature"
    if not cameras:
        raise ValueError(f"{rule}, the dataset has none; give a dataset with frames")
    if camera in cameras:
        return camera
    if camera or len(cameras) > 1:
        raise ValueError(f"{rule}, got {camera or 'none'!r}; choose one of {', '.join(cameras)}")
    return cameras[0]


def _is_integer(value: object, low: int) -> bool:
    return isinstance(value, int) and value >= low


_RULES: dict[str, tuple[str, Callable[[object], bool]]] = {
    "fps": ("be a number above 0", lambda fps: isinstance(fps, int | float) and 0 < fps < math.inf),
    "features": (
        "map names to objects",
        lambda features: isinstance(features, dict) and all(isinstance(each, dict) for each in features.values()),
    ),
    "data_path": ("be a path template", lambda path: isinstance(path, str)),
    "video_path": ("be a path template or null", lambda path: isinstance(path, str | None)),
    "chunks_size": ("be an integer above 0", lambda size: _is_integer(size, 1)),
    "total_episodes": ("be an integer from 0 on", lambda number: _is_integer(number, 0)),
}
