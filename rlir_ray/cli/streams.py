"""Standard output and error that survive a closed console or pipe, in any locale."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO

# Errors of a pipe that nobody reads, and of a closed terminal.
GONE = (errno.EPIPE, errno.EIO)


class ProtectedStream(io.FileIO):
    """File that writes to a console or pipe until it is closed, and drops later output."""

    # Any: what memoryview takes, for which Python 3.11 has no name.
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            # Redirect the descriptor itself, because C libraries write to it too.
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(memoryview(data).cast("B"))


def protected(stream: TextIO | None, descriptor: int) -> TextIO:
    """Return the stream, wrapped so that a closed pipe or an unencodable character does not end the program.

    Args:
        stream: standard output or error of this process; None: it was closed before the start.
        descriptor: 1 or 2.
    """
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    stream.flush()
    file = ProtectedStream(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(file), encoding=stream.encoding, errors="backslashreplace", line_buffering=True
    )


def protect_standard_streams() -> None:
    """Replace the standard streams of this process; keep streams that a test or another program has set."""
    if sys.stdout is sys.__stdout__:
        sys.stdout = protected(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = protected(sys.stderr, 2)
