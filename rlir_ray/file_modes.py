"""Who may read saved weights: whoever may read any other new file. safetensors keeps its files to their owner."""

from __future__ import annotations

import stat
from pathlib import Path


def give_usual_mode(folder: Path | str) -> None:
    """Gives the safetensors files of a folder the mode that the umask gives a new file there."""
    folder = Path(folder)
    # A file's own mode says it without changing the umask, which all threads share.
    probe = folder / ".mode"
    probe.unlink(missing_ok=True)
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)
