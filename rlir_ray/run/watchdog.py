"""What a worker process does when its work does not come to an end: it says where it is, and ends.

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
    """From here on `STACK_SIGNAL` writes the stacks of all threads to the log, whatever the process is busy with."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        # Where standard error is no file, as in some tests, there is no log either.
        faulthandler.register(STACK_SIGNAL, file=sys.stderr, all_threads=True)


@contextlib.contextmanager
def bounded(timeout_s: float) -> Iterator[None]:
    """Ends the process when the work inside takes longer: its stacks go to the log, and another process takes over.

    A timer of the interpreter's own: it fires also where the work never comes back to Python.

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


def innermost(stacks: str) -> str:
    """Where the project's own code stands in what faulthandler wrote: `samplers/tokens.py:120 in sample`.

    The innermost of its frames, in the thread that is deepest in it; empty where none is.
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
