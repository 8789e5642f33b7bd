"""Attempts of a call that may end its process: the count survives in a file, so that a restarted process goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


class Attempts:
    """Counts how often a call has ended its process, and refuses a call that has done so too often.

    Args:
        path: file of the count; the restarted process must use the same one. A call that ends normally deletes it.
        most: number of attempts that a call has.
    """

    def __init__(self, path: Path, most: int) -> None:
        self.path, self.most = path, most

    @contextlib.contextmanager
    def count(self, call: str) -> Iterator[None]:
        """Count an attempt of the call while the work inside runs.

        Args:
            call: name of the call, without line breaks.

        Raises:
            RuntimeError: all attempts of the call have ended the process.
        """
        num_before = self._num_ended(call)
        if num_before >= self.most:
            self.path.unlink()
            raise RuntimeError(f"{call} ended its process {num_before} times; the process's log has the cause")
        self.path.write_text(f"{num_before + 1} {call}", encoding="utf-8")
        try:
            yield
        finally:
            self.path.unlink(missing_ok=True)

    def _num_ended(self, call: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            number, _, name = self.path.read_text(encoding="utf-8").partition(" ")
            # Ignore a file that was cut off: the process ended before the call began.
            if name == call:
                return int(number)
        return 0
