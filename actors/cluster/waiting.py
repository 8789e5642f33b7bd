"""Waiting with a bound, and ending early: Ctrl-C, SIGTERM or SIGHUP asks the run to end.

A second Ctrl-C or SIGTERM ends it at once.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

import ray

from actors.cluster.errors import import_hint, one_line

# How often a wait looks whether the user asked for the end.
POLL_S = 0.2
WAY_OUT = "look into Ray's logs (/tmp/ray/session_latest/logs), or raise train.wait_timeout_s"


class Stopped(Exception):
    """The user asked the run to end."""


@contextlib.contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """SIGINT, SIGTERM or SIGHUP set the event. Outside the main thread signals are left to the caller's program.

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
    """What somebody is busy with, to be added to a message; empty where nothing is known."""
    return f" ({activity})" if activity else ""


def wait_all(
    refs: Sequence[ray.ObjectRef],
    timeout_s: float,
    who: str,
    stop: threading.Event | None = None,
    activity: Callable[[], str] = lambda: "",
    meanwhile: Callable[[], None] = lambda: None,
) -> list[Any]:
    """The values of all references, in order.

    Args:
        stop: gives the wait up when it is set; None: the wait must end by itself.
        activity: what those that are waited for are busy with, asked when it was too long.
        meanwhile: called at each look at them, several times a second.

    Raises:
        TimeoutError: saying who was waited for, how long, and what to do.
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
