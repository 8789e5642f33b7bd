"""The episodes of a LeRobot dataset: where each one lies, and its actions. Reads tables, no pictures.

Legend: F rows (frames) of an episode, D numbers of an action.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlir_ray.data.files import Json
from rlir_ray.data.lerobot.layout import ACTION, EPISODES_FOLDER, V3, DatasetInfo, read_lines

WAY_OUT = "record or download it again"
TABLE_ERRORS = (pa.ArrowException, OSError, KeyError)


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodePlace:
    """Where an episode lies.

    Example: ``EpisodePlace(number=3, length=50, table=Path("data/chunk-000/file-000.parquet"), video=None)``.
    """

    number: int
    length: int
    """F, as the metadata say."""
    table: Path
    video: Path | None
    """None: the camera's frames lie in the table."""
    first_s: float = 0.0
    """Time of frame 0 in the video."""
    stop_s: float | None = None
    """End of the episode in the video; None: the end of the video."""

    @property
    def name(self) -> str:
        return episode_name(self.number)


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRows:
    """The rows of an episode in a table."""

    first_row: int
    """Place of row 0 of the episode in the file."""
    actions: npt.NDArray[np.float32]
    """[F, D], in LeRobot's order: action t leads into frame t + 1."""


def episode_name(number: int) -> str:
    return f"episode_{number:06d}"


def find_episodes(info: DatasetInfo, camera: str) -> tuple[list[EpisodePlace], list[str]]:
    """Return the places of all episodes by number, and one line for each episode without a place.

    Raises:
        ValueError: the metadata of v2.1 cannot be read.
    """
    rows, problem = _rows_v3(info) if info.version == V3 else (read_lines(info.folder / "meta/episodes.jsonl"), "")
    places: dict[int, EpisodePlace] = {}
    skipped = []
    for row in rows:
        try:
            place = (_place_v3 if info.version == V3 else _place_v21)(info, row, camera)
        except (KeyError, TypeError) as error:
            number = row.get("episode_index")
            name = episode_name(number) if isinstance(number, int) else "an episode"
            skipped.append(f"{name}: its row of metadata must have all columns, got {error}; {WAY_OUT}")
            continue
        places[place.number] = place
    named = {row.get("episode_index") for row in rows}
    skipped += [
        f"{episode_name(number)}: must have a row of metadata, got none{problem}; {WAY_OUT}"
        for number in range(info.total_episodes)
        if number not in named
    ]
    return [places[number] for number in sorted(places)], skipped


def _rows_v3(info: DatasetInfo) -> tuple[list[Json], str]:
    """Return the rows of all files of metadata, and what is wrong with the first broken file."""
    rows: list[Json] = []
    problem = ""
    for path in sorted((info.folder / EPISODES_FOLDER).glob("*/*.parquet")):
        try:
            with pq.ParquetFile(path) as file:
                # The statistics of each episode would be most of the bytes.
                names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
                rows += file.read(columns=names).to_pylist()
        except TABLE_ERRORS as error:
            problem = problem or f" ({path}: {table_reason(error)})"
    return rows, problem


def _place_v3(info: DatasetInfo, row: Json, camera: str) -> EpisodePlace:
    table = info.file(info.data_path, **{key: row[f"data/{key}"] for key in ("chunk_index", "file_index")})
    if info.features[camera]["dtype"] == "image":
        return EpisodePlace(number=int(row["episode_index"]), length=int(row["length"]), table=table, video=None)
    of_camera = f"videos/{camera}"
    return EpisodePlace(
        number=int(row["episode_index"]),
        length=int(row["length"]),
        table=table,
        video=info.file(
            info.video_path or "",
            video_key=camera,
            **{key: row[f"{of_camera}/{key}"] for key in ("chunk_index", "file_index")},
        ),
        first_s=float(row[f"{of_camera}/from_timestamp"]),
        stop_s=float(row[f"{of_camera}/to_timestamp"]),
    )


def _place_v21(info: DatasetInfo, row: Json, camera: str) -> EpisodePlace:
    number = int(row["episode_index"])
    fields = {"episode_chunk": number // info.chunks_size, "episode_index": number}
    is_video = info.features[camera]["dtype"] == "video"
    return EpisodePlace(
        number=number,
        length=int(row["length"]),
        table=info.file(info.data_path, **fields),
        video=info.file(info.video_path or "", video_key=camera, **fields) if is_video else None,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def read_rows(places: list[EpisodePlace], length: int) -> Iterator[tuple[EpisodePlace, TableRows | str]]:
    """Yield each episode with its rows, or with the line that says why it has none; read each table once.

    Args:
        places: episodes in any order.
        length: D.
    """
    by_table: dict[Path, list[EpisodePlace]] = {}
    for place in places:
        by_table.setdefault(place.table, []).append(place)
    for path, inside in by_table.items():
        try:
            table = pq.read_table(path, columns=[ACTION, "episode_index", "frame_index"], partitioning=None)
            episodes, frames = (table[key].to_numpy() for key in ("episode_index", "frame_index"))
            column = table[ACTION]
        except TABLE_ERRORS as error:
            reason = table_reason(error)
            yield from ((place, f"{path}: no readable table ({reason}); {WAY_OUT}") for place in inside)
            continue
        for place in inside:
            rows = np.flatnonzero(episodes == place.number)
            problem = _problem(place, rows, frames)
            actions = None if problem else _matrix(column.slice(int(rows[0]), len(rows)))
            if not problem and (actions is None or actions.shape[1] != length):
                found = "values of other lengths" if actions is None else actions.shape[1]
                problem = f"actions must have the {length} numbers that info.json says, got {found}"
            if actions is None or problem:
                yield place, f"{path}: {problem}; {WAY_OUT}"
            else:
                yield place, TableRows(first_row=int(rows[0]), actions=actions)


def _problem(place: EpisodePlace, rows: npt.NDArray[np.int64], frames: npt.NDArray[np.int64]) -> str:
    """Say what is wrong with the rows that an episode has in its table; empty: nothing."""
    if len(rows) != place.length or not len(rows):
        return f"an episode must have the {place.length} rows that the metadata say, got {len(rows)}"
    is_block = rows[-1] - rows[0] + 1 == len(rows)
    if not is_block or not np.array_equal(frames[rows], np.arange(len(rows))):
        return "the rows of an episode must be in the order of frame_index, one a frame, got another order"
    return ""


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float32] | None:
    """Return numbers or lists of numbers as float32 [rows, D], null as NaN; None: lists of several lengths."""
    num_rows = len(column)
    if pa.types.is_nested(column.type):
        sizes = set(pc.list_value_length(column).to_pylist())
        if len(sizes) != 1 or None in sizes:
            return None
        column = pc.list_flatten(column)
    try:
        values: npt.NDArray[np.float32] = column.cast(pa.float32(), safe=False).to_numpy()
    except pa.ArrowException:
        return None
    return np.asarray(values, np.float32).reshape(num_rows, -1)


def table_reason(error: Exception) -> str:
    """Say in a few words why a table cannot be read; a file without a footer is a recording that was not closed."""
    text = str(error)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if "magic bytes" in text or "footer" in text or "Parquet file size" in text:
        return "no footer: the recording was not closed, or the file is cut off"
    return text.split("\n")[0][:200] or type(error).__name__
