"""Watchdog of a worker process: if its work takes too long, the process logs its stacks and ends.

Independent of Ray; the log of a process is its standard error.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import signal
import sys
from collections.abc import Iterator

STACK_SIGNAL = signal.SIGUSR1
PROJECT = ("/rlir_ray/", "/actors/")


def show_stack_on_signal() -> None:
    """Make `STACK_SIGNAL` write the stacks of all threads to the log, even if the process is stuck."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        # Fails if standard error is no file, as in some tests: then there is no log either.
        faulthandler.register(STACK_SIGNAL, file=sys.stderr, all_threads=True)


@contextlib.contextmanager
def bounded(timeout_s: float) -> Iterator[None]:
    """End the process if the work inside takes too long; write its stacks to the log first.

    faulthandler's timer fires even if the work never returns to Python.

    Args:
        timeout_s: bound of the work in seconds; infinity: no bound.
    """
    if timeout_s == math.inf:
        yield
        return
    with contextlib.suppress(AttributeError, OSError, ValueError):
        faulthandler.dump_traceback_later(timeout_s, exit=True, file=sys.stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def innermost_frame(stacks: str) -> str:
    """Return the project's innermost frame in faulthandler's output: `samplers/tokens.py:120 in sample`.

    The frame comes from the thread with the most frames of the project; empty: no thread has such a frame.
    """
    best: list[str] = []
    for thread in stacks.split("Thread 0x"):
        frames = [line.strip() for line in thread.splitlines() if line.strip().startswith('File "')]
        own = [frame for frame in frames if any(part in frame for part in PROJECT)]
        best = max(best, own, key=len)
    if not best:
        return ""
    path, _, rest = best[0].removeprefix('File "').partition('", line ')
    number, _, function = rest.partition(" in ")
    return f"{'/'.join(path.split('/')[-2:])}:{number} in {function}"
