"""Reading of LeRobot datasets, v3.0 and v2.1, frame by frame; the package lerobot is not needed.

**Action k of an episode leads INTO frame k**, as everywhere here: LeRobot's row k - 1 holds it. The action of the last
row leads into no frame and is dropped; action 0 is unknown, does nothing, and is never a command.
Legend: F frames, D numbers of an action, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rlir_ray.data.lerobot.episodes import EpisodePlace, TableRows, find_episodes, read_rows
from rlir_ray.data.lerobot.frames import FrameRows, ImageRows, VideoHeader, check_length, first_picture, read_header
from rlir_ray.data.lerobot.layout import STAGED_FOLDER, DatasetInfo, camera_of, read_info
from rlir_ray.data.lerobot.space import action_length, read_space
from rlir_ray.data.video import VideoFile, index_video
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.spaces.vpt import Event

# Indices of videos that a dataset keeps: episodes that are opened in order share a video with their neighbours.
MAX_INDICES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class LerobotEpisode:
    """An episode on disk: actions are in memory, frames are read on demand.

    Args:
        name: such as ``episode_000003``.
        actions: F actions; action k leads INTO frame k, action 0 does nothing.
        rows: video or table that holds the frames.
        first_row: of the episode within `rows`.
        events, pressed: empty and None, as only VPT's format has them.
    """

    name: str
    actions: Actions
    rows: FrameRows
    first_row: int
    events: tuple[Event, ...] = ()
    pressed: None = None

    def __len__(self) -> int:
        return len(self.actions)

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Return frames [start, stop), uint8 [n, H, W, 3], RGB; a video is decoded from the preceding keyframe on.

        Raises:
            ValueError: the frames do not exist or are damaged; the error names the file.
        """
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"{self.name}: frames must lie within 0..{len(self)}, got [{start}, {stop})")
        return self.rows.read(self.first_row + start, self.first_row + stop)


class LerobotDataset:
    """A LeRobot dataset, opened without decoding a frame.

    Opening reads the metadata, the actions, and the header of each video. Only `recording` reads a video's packets.

    Example::

        dataset = LerobotDataset(Path("data/pusht"))
        episode = dataset.recording(dataset.names[0])
        frames, actions = episode.read(10, 20), episode.actions[10:20]    # action k leads into frame k

    Args:
        folder: root of the dataset.
        camera: video or image feature of the frames; empty: the only one.

    Raises:
        ValueError: the dataset has another version, no such camera, no action space, or no readable episode.
    """

    def __init__(self, folder: Path, camera: str = "") -> None:
        self.folder = Path(folder)
        info = read_info(self.folder)
        self.camera = camera_of(info, camera)
        self.fps = float(info.fps)
        self.space: ActionSpace = read_space(info)
        self._found: dict[str, tuple[EpisodePlace, int, Actions]] = {}
        self._headers: dict[Path, VideoHeader | str] = {}
        self._indices: dict[Path, VideoFile] = {}
        self.skipped: tuple[str, ...] = tuple(self._find(info))
        """One line for each broken or incomplete episode: name, file, reason and way out."""
        self.names: list[str] = sorted(self._found)
        if not self.names:
            first = f"{len(self.skipped)} broken ones, the first: {self.skipped[0]}" if self.skipped else "none"
            raise ValueError(
                f"{self.folder} must hold an episode that can be read, got {first}; record or download some"
            )

    def __len__(self) -> int:
        """Return the number of episodes, the skipped ones included."""
        return len(self._found) + len(self.skipped)

    @property
    def path(self) -> Path:
        return self.folder

    def contents(self) -> list[str]:
        """Return a line for each shard of data and videos: its name and size."""
        places = [place for place, _, _ in self._found.values()]
        files = {file for place in places for file in (place.table, place.video) if file is not None}
        return [f"{file.relative_to(self.folder)} {file.stat().st_size}" for file in sorted(files)]

    def recording(self, name: str, action_shift: int = 0) -> LerobotEpisode:
        """Open an episode by its name.

        Args:
            name: one of `names`.
            action_shift: correction of a dataset whose actions lead into other frames than LeRobot says: action
                k + action_shift, as this class counts, leads INTO frame k.

        Raises:
            ValueError: there is no readable episode of this name, or its video's pictures do not fit its rows.
        """
        if name not in self._found:
            raise ValueError(
                f"{self.folder} must hold the episode, got none named {name!r}; choose one from {self.names[0]} to "
                f"{self.names[-1]}"
            )
        place, first_row, actions = self._found[name]
        actions = actions.shifted(action_shift)
        if place.video is None:
            images = ImageRows(path=place.table, camera=self.camera)
            return LerobotEpisode(name=name, actions=actions, rows=images, first_row=first_row)
        video = self._indexed(place.video)
        first = first_picture(place, video, self._header(place.video), self.fps)
        return LerobotEpisode(name=name, actions=actions, rows=video, first_row=first)

    def _find(self, info: DatasetInfo) -> list[str]:
        """Collect the readable episodes; return one line for each other episode."""
        places, skipped = find_episodes(info, self.camera)
        for place, rows in read_rows(places, action_length(info)):
            try:
                if isinstance(rows, str):
                    raise ValueError(rows)
                if place.video is not None:
                    check_length(place, self._header(place.video), self.fps)
                self._found[place.name] = (place, rows.first_row, _actions(self.space, rows))
            except ValueError as error:
                skipped.append(f"{place.name}: {error}")
        listed = {place.name for place in places}
        staged = sorted(path.stem for path in (info.folder / STAGED_FOLDER).glob("*.parquet"))
        return skipped + [
            f"{name}: an episode must be in a shard, got a recording that was not closed; close it with LerobotWriter"
            for name in staged
            if name not in listed
        ]

    def _header(self, path: Path) -> VideoHeader:
        """Return the header of a video; read each header once, broken ones too."""
        if path not in self._headers:
            try:
                self._headers[path] = read_header(path)
            except ValueError as error:
                self._headers[path] = str(error)
        header = self._headers[path]
        if isinstance(header, str):
            raise ValueError(header)
        return header

    def _indexed(self, path: Path) -> VideoFile:
        """Return the index of a video; keep the last few indices."""
        if path not in self._indices:
            index = index_video(path)
            if len(self._indices) >= MAX_INDICES:
                del self._indices[next(iter(self._indices))]
            self._indices[path] = index
        return self._indices[path]


def _actions(space: ActionSpace, rows: TableRows) -> Actions:
    """Shift LeRobot's actions so that action k leads into frame k."""
    return Actions(space, np.concatenate([space.nothing(1).values, rows.actions[:-1]]))
