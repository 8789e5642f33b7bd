"""Writing of files that other programs read: atomic writes, strict JSON, and the usual file mode."""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Json = dict[str, Any]
"""A parsed JSON or YAML object. Its file decides the types; the code that reads a field checks it."""


def write_json(path: Path, content: object) -> None:
    """Write strict JSON atomically; see `write_text` for errors."""
    write_text(path, strict_json(content, indent=1) + "\n")


def strict_json(content: object, indent: int | None = None) -> str:
    """Return JSON that any program can read: NaN and infinity become null."""
    return json.dumps(_finite_or_none(content), indent=indent, allow_nan=False)


def _finite_or_none(content: object) -> object:
    if isinstance(content, dict):
        return {key: _finite_or_none(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite_or_none(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def number(value: float | None) -> float:
    """Read a number that `strict_json` wrote: null becomes NaN."""
    return math.nan if value is None else value


def write_text(path: Path, text: str) -> None:
    """Write a file atomically.

    Raises:
        ValueError: the disk is full or not writable.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ValueError(
            f"could not save {path}: {error.strerror}; free some space or choose another folder"
        ) from error


def replace_folder(temporary: Path, final: Path) -> None:
    """Rename a finished folder to its final name, replacing an older folder."""
    old = final.with_name(final.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    temporary.rename(final)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out`, which is renamed to `out` when all files are written.

    Raises:
        ValueError: `out` already has content, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out must be a new folder, got {out} with content; give another folder or remove this one")
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"--out must be writable, got {out}: {error.strerror}; give another folder") from None
    try:
        yield part
        if out.exists():
            out.rmdir()
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def give_usual_mode(folder: Path | str) -> None:
    """Give the safetensors files of a folder the mode that the umask gives a new file there."""
    folder = Path(folder)
    # A probe file shows the usual mode; reading the umask would change it for all threads.
    probe = folder / ".mode"
    probe.unlink(missing_ok=True)
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)
