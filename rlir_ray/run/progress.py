"""Progress of long work: a bar on a terminal, otherwise a line at intervals. Independent of models."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

ShowProgress = Callable[[float, str], None]
Item = TypeVar("Item")

# Interval of lines without a terminal, short enough that a log shows the run is alive.
LINE_EVERY_S = 30.0


@contextmanager
def progress_bar(name: str) -> Iterator[ShowProgress]:
    """Show percent, elapsed and remaining time, and a text such as the loss: a bar if stderr is a terminal, else lines.

    Yields:
        A function to call with the finished share of the work, in [0, 1], and the text.
    """
    if not sys.stderr.isatty():
        yield _Lines(name).show
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left  {task.fields[text]}"),
    )
    terminal = sys.stderr
    log = [h for h in logging.root.handlers if isinstance(h, logging.StreamHandler) and h.stream is terminal]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=1.0, text="")
        # While the bar is live, rich replaces sys.stderr by its own, which prints above the bar: log there.
        for handler in log:
            handler.setStream(sys.stderr)
        try:
            yield lambda share, text: bar.update(task, completed=min(share, 1.0), text=text)
            bar.update(task, completed=1.0)
        finally:
            for handler in log:
                handler.setStream(terminal)


class _Lines:
    """Progress as a line on stderr every `LINE_EVERY_S` seconds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = self.last_line = time.monotonic()
        self.first: float | None = None
        """The finished share at the first call, above 0 for resumed work; None before the first call."""

    def show(self, share: float, text: str) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = share
        if now - self.last_line < LINE_EVERY_S:
            return
        self.last_line, gone, done = now, now - self.started, share - self.first
        left = f", {clock(gone * max(1 - share, 0) / done)} left" if done > 0 else ""
        print(f"{self.name} {min(share, 1.0):4.0%}  {clock(gone)} gone{left}  {text}", file=sys.stderr, flush=True)


def counted(items: Iterable[Item], number: int, show: ShowProgress, what: str) -> Iterator[Item]:
    """Yield the items and show how many of them are done.

    Args:
        items: the items.
        number: number of the items.
        show: shows the progress, from `progress_bar`.
        what: name of the items, in the plural.
    """
    for done, item in enumerate(items, 1):
        yield item
        show(done / number, f"{done} of {number} {what}")


def clock(seconds: float) -> str:
    """Format seconds as minutes and seconds: 90 is 1:30."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def figure_words(figures: Mapping[str, float | None]) -> str:
    """Format figures for a person: "loss 2.87, validation loss 2.93"; – for None."""
    return ", ".join(
        f"{name.replace('_', ' ')} {'–' if value is None else f'{value:.4g}'}" for name, value in figures.items()
    )
