"""Wait with a bound, and end early: Ctrl-C, SIGTERM or SIGHUP asks the run to end.

A second Ctrl-C or SIGTERM ends the run at once.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TypeVar

import ray

from actors.cluster.errors import import_hint, one_line

Value = TypeVar("Value")
# How often a wait checks whether the user has asked for the end.
POLL_S = 0.2
WAY_OUT = "look into Ray's logs (/tmp/ray/session_latest/logs), or raise train.wait_timeout_s"


class Stopped(Exception):
    """The user asked the run to end."""


@contextlib.contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """Set the event on SIGINT, SIGTERM or SIGHUP. Outside the main thread the caller's program keeps its signals.

    Under `nohup` SIGHUP stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        # A terminal that is closed sends SIGHUP more than once, and a service manager sends it after SIGTERM.
        if stop.is_set() and number != signal.SIGHUP:
            raise KeyboardInterrupt
        stop.set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_brackets(activity: str) -> str:
    """Put a text about an activity in brackets, to append to a message; empty for no text."""
    return f" ({activity})" if activity else ""


def wait_all(
    refs: Sequence[ray.ObjectRef[Value]],
    timeout_s: float,
    who: str,
    stop: threading.Event | None = None,
    activity: Callable[[], str] = lambda: "",
    meanwhile: Callable[[], None] = lambda: None,
) -> list[Value]:
    """Wait for all references; return their values in order.

    Args:
        stop: gives up the wait when it is set; None: the wait ends by itself or by its bound.
        activity: says what the awaited processes are busy with, for the message of a wait that was too long.
        meanwhile: called at each poll, several times a second.

    Raises:
        TimeoutError: with the awaited processes, the time, and the way out.
        Stopped: the user ended the run.
        RuntimeError: a worker could not import a module.
    """
    deadline = time.monotonic() + timeout_s
    waiting = list(refs)
    while waiting:
        if stop is not None and stop.is_set():
            raise Stopped
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"waited {timeout_s:.0f} s for {who} ({len(refs) - len(waiting)} of {len(refs)} answered)"
                f"{in_brackets(activity())}; {WAY_OUT}"
            )
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_S)
        if waiting:
            meanwhile()
    try:
        return ray.get(list(refs), timeout=timeout_s)
    except ray.exceptions.RayError as error:
        if hint := import_hint(cause := one_line(error)):
            raise RuntimeError(f"{who}: {cause}; {hint}") from error
        raise
