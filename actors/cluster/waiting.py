"""Bounded waits that end early when Ctrl-C, SIGTERM or SIGHUP asks the run to end.

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

from actors.cluster.diagnostics import import_hint, one_line

Value = TypeVar("Value")
# Interval at which a wait checks whether the user has asked the run to end.
POLL_S = 0.2
WAY_OUT = "look into Ray's logs (/tmp/ray/session_latest/logs), or raise train.wait_timeout_s"


class Stopped(Exception):
    """The user asked the run to end."""


@contextlib.contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """Set the event on SIGINT, SIGTERM or SIGHUP until the context ends.

    Outside the main thread do nothing: Python sets signal handlers in the main thread only. Under `nohup`, SIGHUP stays
    ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        # Only a second SIGINT or SIGTERM ends the run at once: a closed terminal sends SIGHUP more than once, and a
        # service manager sends SIGHUP after SIGTERM.
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
    """Put the description of an activity in brackets, to append to a message; empty for an empty description."""
    return f" ({activity})" if activity else ""


def wait_all(
    refs: Sequence[ray.ObjectRef[Value]],
    timeout_s: float,
    awaited: str,
    stop: threading.Event | None = None,
    activity: Callable[[], str] = lambda: "",
    meanwhile: Callable[[], None] = lambda: None,
) -> list[Value]:
    """Wait for all references; return their values in order.

    Args:
        refs: the references.
        timeout_s: bound of the wait.
        awaited: description of the awaited processes and their work, for messages.
        stop: event that ends the wait early; None: only the bound ends the wait early.
        activity: describes the current work of the awaited processes, for the message of a timeout.
        meanwhile: called at each poll, several times a second.

    Raises:
        TimeoutError: the bound is reached; the message names the awaited processes, the time and the remedy.
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
                f"waited {timeout_s:.0f} s for {awaited} ({len(refs) - len(waiting)} of {len(refs)} answered)"
                f"{in_brackets(activity())}; {WAY_OUT}"
            )
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL_S)
        if waiting:
            meanwhile()
    try:
        return ray.get(list(refs), timeout=timeout_s)
    except ray.exceptions.RayError as error:
        if hint := import_hint(cause := one_line(error)):
            raise RuntimeError(f"{awaited}: {cause}; {hint}") from error
        raise
