"""Where recordings are: a folder of NAME.mp4 + NAME.jsonl pairs, or a published index of such pairs.

Nothing is downloaded and nothing is opened here but the index.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

logger = logging.getLogger(__name__)

# An index lists thousands of recordings, of which a user has some.
MAX_LOGGED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordingSource:
    """The recordings of a folder or of an index.

    Example: ``RecordingSource(path=Path("vpt"), videos={"8.0/player-1": Path("vpt/8.0/player-1.mp4")})``.
    """

    path: Path
    """What the user named."""
    videos: dict[str, Path]
    """The mp4 of each whole pair by the recording's name: its path below the source, without an ending; sorted."""
    left_out: tuple[str, ...] = ()
    """A line for each pair of which a half is missing."""

    def __len__(self) -> int:
        return len(self.videos) + len(self.left_out)


def pair(stem: Path) -> tuple[Path, Path]:
    """The mp4 and the jsonl of a recording; its name may hold dots."""
    return stem.with_name(stem.name + ".mp4"), stem.with_name(stem.name + ".jsonl")


def find_recordings(path: Path) -> RecordingSource:
    """The pairs of a folder (and of folders below it), or of an index JSON.

    An index holds `basedir` and `relpaths`, as those that are published with VPT. Its recordings are looked for in
    `basedir` if that is a folder here, else in the folder of the index, under the relpath or the relpath's last part.

    Raises:
        ValueError: no such folder or file, no index, or no whole pair.
    """
    path = Path(path)
    source = _in_index(path) if path.is_file() else _in_folder(path)
    if source.videos:
        return source
    if source.left_out:
        raise ValueError(
            f"{path} must hold a whole NAME.mp4 + NAME.jsonl pair, got {len(source.left_out)} that are not, the first: "
            f"{source.left_out[0]}"
        )
    held = sorted(each.name for each in path.iterdir()) if path.is_dir() else []
    found = f"{len(held)} other files ({', '.join(held[:3])}, …)" if held else "nothing"
    raise ValueError(f"{path} must hold NAME.mp4 + NAME.jsonl pairs, found {found}; give the folder of the pairs")


def list_recordings(path: Path) -> list[Path]:
    """The mp4 of each whole pair, sorted; half pairs are logged. Arguments and errors as `find_recordings`."""
    source = find_recordings(path)
    log_left_out(source.left_out)
    return list(source.videos.values())


def log_left_out(lines: tuple[str, ...]) -> None:
    """A line in the log for each of the first recordings that are left out."""
    for line in lines[:MAX_LOGGED]:
        logger.warning("left out: %s", line)
    if len(lines) > MAX_LOGGED:
        logger.warning("left out: %d more recordings", len(lines) - MAX_LOGGED)


def _in_folder(folder: Path) -> RecordingSource:
    if not folder.is_dir():
        raise ValueError(
            f"no folder of recordings at {folder}; make one with: python -m rlir_ray collect --out {folder}"
        )
    files = list(_files(folder))
    videos = {path.with_suffix("") for path in files if path.suffix == ".mp4"}
    lines = {path.with_suffix("") for path in files if path.suffix == ".jsonl"}
    missing = [pair(stem)[stem in videos] for stem in sorted(videos ^ lines)]
    return RecordingSource(
        path=folder,
        videos={stem.relative_to(folder).as_posix(): pair(stem)[0] for stem in sorted(videos & lines)},
        left_out=tuple(f"{half}: no such file; add it or remove its other half" for half in missing),
    )


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, through linked folders too; each folder once, so that a link back up ends."""
    seen = {os.path.realpath(folder)}
    for place, below, names in os.walk(folder, followlinks=True):
        found = {name: os.path.realpath(os.path.join(place, name)) for name in sorted(below)}
        below[:] = [name for name, real in found.items() if real not in seen]
        seen |= set(found.values())
        yield from (Path(place, name) for name in names)


def _in_index(path: Path) -> RecordingSource:
    basedir, names = _read_index(path)
    # An absolute basedir takes the place of the index's folder; one that is no folder here is an address.
    local = path.parent / basedir
    root = local if local.is_dir() else path.parent
    videos, left_out = {}, []
    for name in names:
        places = [pair(root / name), pair(root / PurePosixPath(name).name)]
        whole = [video for video, lines in places if video.is_file() and lines.is_file()]
        if whole:
            videos[name] = whole[0]
        else:
            # The place that holds one half, or else the first, is the one to complete.
            halves = next((each for each in places if any(half.is_file() for half in each)), places[0])
            missing = next(half for half in halves if not half.is_file())
            left_out.append(
                f"{missing}: no such file, listed in {path.name}; download {basedir.rstrip('/')}/{name}{missing.suffix}"
            )
    return RecordingSource(path=path, videos=videos, left_out=tuple(left_out))


def _read_index(path: Path) -> tuple[str, list[str]]:
    """Base directory and names (relpaths without an ending), sorted, each once."""
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
    """A relpath without its ending, which the published indices may or may not have."""
    parts = PurePosixPath(relpath) if isinstance(relpath, str) and relpath and "\\" not in relpath else None
    if parts is None or parts.is_absolute() or ".." in parts.parts or not parts.name:
        raise ValueError(
            f"{path}: a relpath must lie below basedir, without '..' or a leading '/', got {relpath!r:.60}; correct it"
        )
    return parts.as_posix().removesuffix(".mp4")
