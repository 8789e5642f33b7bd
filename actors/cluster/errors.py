"""Turn errors of other processes into one line for a person."""

from __future__ import annotations

import re

MISSING_MODULE = re.compile(r"No module named '([^']+)'")


def one_line(error: BaseException) -> str:
    """Return the last cause of an error of another process, in one line."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[-1] if lines else type(cause).__name__
    return text if text.startswith(type(cause).__name__) or len(lines) > 1 else f"{type(cause).__name__}: {text}"


def import_hint(cause: str) -> str:
    """Say what to do about a module that a worker cannot import; empty where that is not the cause.

    Args:
        cause: of `one_line`.
    """
    if (found := MISSING_MODULE.search(cause)) is None:
        return ""
    return (
        f"make {found[1]} importable in Ray's workers, not in the driver alone: put it into the folder that `train` "
        "starts in (of a job: its working_dir) or on PYTHONPATH, or install it on every node"
    )
