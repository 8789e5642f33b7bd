"""Watchdog of a worker process: when its work takes too long, the process logs its stacks and ends.

Nothing here knows of Ray; the process's standard error is its log.
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
    """Make `STACK_SIGNAL` write the stacks of all threads to the log, whatever the process is doing."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        # Where standard error is no file, as in some tests, there is no log either.
        faulthandler.register(STACK_SIGNAL, file=sys.stderr, all_threads=True)


@contextlib.contextmanager
def bounded(timeout_s: float) -> Iterator[None]:
    """End the process when the work inside takes longer: its stacks go to the log, and another process takes over.

    faulthandler's timer is used because it fires also if the work never returns to Python.

    Args:
        timeout_s: infinity: no bound.
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
    """Find the project's innermost frame in faulthandler's output: `samplers/tokens.py:120 in sample`.

    The frame is taken from the thread with the most frames of the project; empty: there is none.
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
