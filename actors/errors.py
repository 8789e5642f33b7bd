"""Errors that crossed processes, for a person."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """The last cause of an error that crossed processes, in one line."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    text = lines[-1] if lines else type(cause).__name__
    return text if text.startswith(type(cause).__name__) or len(lines) > 1 else f"{type(cause).__name__}: {text}"
