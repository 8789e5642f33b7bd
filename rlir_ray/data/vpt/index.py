"""Search for recordings: in a folder of NAME.mp4 + NAME.jsonl pairs, or by a published index of such pairs.

This module downloads nothing, and opens no file except the index. The plug-ins of `prompts.source` are elsewhere:
`clips.Source` is their protocol, and `recorded_clips.py` has the source `recordings`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rlir_ray.data.vpt.pairs import RecordingFile, open_recording, pair
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE

logger = logging.getLogger(__name__)

# Maximum number of skipped recordings in the log: an index lists thousands of recordings, of which a user has some.
MAX_LOGGED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class VptRecordings:
    """The recordings of a folder or of an index.

    Example: ``VptRecordings(path=Path("vpt"), videos={"8.0/player-1": Path("vpt/8.0/player-1.mp4")})``.
    """

    path: Path
    """Folder or index that the user gave."""
    videos: dict[str, Path]
    """Name -> mp4 of each complete pair, sorted; a name is the path below the source without a suffix."""
    skipped: tuple[str, ...] = ()
    """One line for each incomplete pair."""

    def __len__(self) -> int:
        return len(self.videos) + len(self.skipped)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.videos)

    @property
    def space(self) -> ActionSpace:
        return VPT_SPACE

    def recording(self, name: str, action_shift: int = 0) -> RecordingFile:
        """Open a recording; see `pairs.open_recording`.

        Raises:
            ValueError: there is no recording of this name, or it is broken.
        """
        if name not in self.videos:
            raise ValueError(
                f"{self.path} must hold the recording that a clip is cut from, got none named {name!r}; "
                "give the source that the address comes from"
            )
        return open_recording(self.videos[name], name, action_shift)

    def contents(self) -> list[str]:
        """Return a line for each recording: its name and the sizes of its files."""
        pairs = ((name, pair(video.with_suffix(""))) for name, video in sorted(self.videos.items()))
        return [f"{name} {[half.stat().st_size for half in halves]}" for name, halves in pairs]


def find_recordings(path: Path) -> VptRecordings:
    """Find the pairs of a folder, subfolders included, or of an index in JSON.

    An index has `basedir` and `relpaths`, as the indices published with VPT. The search starts in `basedir` if this is
    a local folder, else in the folder of the index, and looks for the relpath and for the relpath's last part.

    Raises:
        ValueError: the path does not exist or is no index, or there is no complete pair.
    """
    path = Path(path)
    source = _in_index(path) if path.is_file() else _in_folder(path)
    if source.videos:
        return source
    if source.skipped:
        raise ValueError(
            f"{path} must hold a complete NAME.mp4 + NAME.jsonl pair, got {len(source.skipped)} incomplete pairs, the "
            f"first: {source.skipped[0]}"
        )
    held = sorted(each.name for each in path.iterdir()) if path.is_dir() else []
    found = f"{len(held)} other files ({', '.join(held[:3])}, …)" if held else "nothing"
    raise ValueError(f"{path} must hold NAME.mp4 + NAME.jsonl pairs, found {found}; give the folder of the pairs")


def list_recordings(path: Path) -> list[Path]:
    """Return the mp4 of each complete pair, sorted, and log incomplete pairs; see `find_recordings`."""
    source = find_recordings(path)
    log_skipped(source.skipped)
    return list(source.videos.values())


def log_skipped(lines: tuple[str, ...], what: str = "recordings") -> None:
    """Log one line for each of the first `MAX_LOGGED` skipped inputs, and the number of the others."""
    for line in lines[:MAX_LOGGED]:
        logger.warning("skipped: %s", line)
    if len(lines) > MAX_LOGGED:
        logger.warning("skipped: %d more %s", len(lines) - MAX_LOGGED, what)


def _in_folder(folder: Path) -> VptRecordings:
    if not folder.is_dir():
        raise ValueError(
            f"no folder of recordings at {folder}; check the path, or record one with python -m rlir_ray collect"
        )
    files = list(_files(folder))
    videos = {path.with_suffix("") for path in files if path.suffix == ".mp4"}
    lines = {path.with_suffix("") for path in files if path.suffix == ".jsonl"}
    missing = [pair(stem)[stem in videos] for stem in sorted(videos ^ lines)]
    return VptRecordings(
        path=folder,
        videos={stem.relative_to(folder).as_posix(): pair(stem)[0] for stem in sorted(videos & lines)},
        skipped=tuple(f"{half}: no such file; add it or remove its other half" for half in missing),
    )


def _files(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, through symbolic links too; visit each folder once, so that link cycles end."""
    seen = {os.path.realpath(folder)}
    for place, below, names in os.walk(folder, followlinks=True):
        found = {name: os.path.realpath(os.path.join(place, name)) for name in sorted(below)}
        below[:] = [name for name, real in found.items() if real not in seen]
        seen |= set(found.values())
        yield from (Path(place, name) for name in names)


def _in_index(path: Path) -> VptRecordings:
    basedir, names = _read_index(path)
    # An absolute basedir replaces the folder of the index; a basedir that is no local folder is a download address.
    local = path.parent / basedir
    root = local if local.is_dir() else path.parent
    videos, skipped = {}, []
    for name in names:
        places = [pair(root / name), pair(root / PurePosixPath(name).name)]
        whole = [video for video, lines in places if video.is_file() and lines.is_file()]
        if whole:
            videos[name] = whole[0]
        else:
            # Name the missing half beside an existing half, else at the first place.
            halves = next((each for each in places if any(half.is_file() for half in each)), places[0])
            missing = next(half for half in halves if not half.is_file())
            skipped.append(
                f"{missing}: no such file, listed in {path.name}; download {basedir.rstrip('/')}/{name}{missing.suffix}"
            )
    return VptRecordings(path=path, videos=videos, skipped=tuple(skipped))


def _read_index(path: Path) -> tuple[str, list[str]]:
    """Return the base directory and the names (relpaths without a suffix), sorted and without duplicates."""
    try:
        index: object = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: a source must be a folder of recordings or an index in JSON, got no JSON ({error}); give "
            "another path or download the index again"
        ) from error
    rule = 'must be {"basedir": "…", "relpaths": ["8.0/name", …]}'
    if not isinstance(index, dict) or not isinstance(index.get("basedir"), str):
        raise ValueError(f"{path}: an index {rule}, got no text under 'basedir'; download it again")
    relpaths = index.get("relpaths")
    if not isinstance(relpaths, list) or not relpaths:
        raise ValueError(f"{path}: an index {rule}, got no list under 'relpaths'; download it again")
    return index["basedir"], sorted({_name(relpath, path) for relpath in relpaths})


def _name(relpath: object, path: Path) -> str:
    """Return a relpath without its suffix, which only some published indices have."""
    parts = PurePosixPath(relpath) if isinstance(relpath, str) and relpath and "\\" not in relpath else None
    if parts is None or parts.is_absolute() or ".." in parts.parts or not parts.name:
        raise ValueError(
            f"{path}: a relpath must lie below basedir, without '..' or a leading '/', got {relpath!r:.60}; fix it"
        )
    return parts.as_posix().removesuffix(".mp4")
