"""A home folder for a user who has none, as in a container under an unknown user. Knows nothing of Ray."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def stand_in() -> Path:
    """Return the folder that takes the place of a home that is missing."""
    return Path(tempfile.gettempdir()) / f"rlir_ray-{os.getuid()}"


def ensure_home() -> None:
    """Set HOME to a private temporary folder where there is no home that this user can write.

    Ray and its libraries keep a token and results below the home folder, and fail at their import without one.

    Raises:
        ValueError: the folder cannot be made, or belongs to another user.
    """
    if _has_home():
        return
    folder = stand_in()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise PermissionError(f"{folder} is another user's")
    except OSError as error:
        raise ValueError(
            f"HOME must be a folder that this user can write, got {os.environ.get('HOME', 'none')} ({error}); set HOME"
        ) from error
    os.environ["HOME"] = str(folder)


def _has_home() -> bool:
    try:
        home = Path.home()
    except RuntimeError:
        return False
    # One that can only be read serves where it holds the token of the cluster.
    return os.access(home, os.W_OK | os.X_OK) or os.access(home / ".ray" / "auth_token", os.R_OK)
