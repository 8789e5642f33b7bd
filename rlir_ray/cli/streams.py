"""Standard output and error that outlive their console or pipe, in any locale."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, TextIO

# Of a pipe that nobody reads, and of a terminal that was closed.
GONE = (errno.EPIPE, errno.EIO)


class LastingFile(io.FileIO):
    """Writes to a console or pipe until that goes away, and from then on nowhere."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            # For all that writes to the same descriptor, libraries in C included.
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(memoryview(data).cast("B"))


def lasting(stream: TextIO | None, descriptor: int) -> TextIO:
    """The same stream, such that neither its end nor a character that its encoding lacks ends the program.

    Args:
        stream: standard output or error of this process; None: it was closed before the start.
        descriptor: 1 or 2.
    """
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    stream.flush()
    file = LastingFile(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(file), encoding=stream.encoding, errors="backslashreplace", line_buffering=True
    )


def make_standard_streams_last() -> None:
    """Replaces the standard streams of this process; those that a test or a program has put there stay."""
    if sys.stdout is sys.__stdout__:
        sys.stdout = lasting(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = lasting(sys.stderr, 2)
