"""How far a training is: one bar on a terminal; elsewhere nothing, for the log says it. Knows nothing of models."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ShowProgress = Callable[[float, str], None]


@contextmanager
def progress_bar(name: str) -> Iterator[ShowProgress]:
    """A bar with percent, time gone and left, and a text such as the latest loss, where stderr is a terminal.

    Yields:
        To be called with the share of the training that is done, of its steps or minutes, and with the text.
    """
    if not sys.stderr.isatty():
        yield lambda share, text: None
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
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("gone,"),
        TimeRemainingColumn(), TextColumn("left  {task.fields[text]}"),
    )  # fmt: skip
    terminal = sys.stderr
    log = [h for h in logging.root.handlers if isinstance(h, logging.StreamHandler) and h.stream is terminal]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=1.0, text="")
        # While the bar is live rich has put its own stderr there, which prints above the bar.
        for handler in log:
            handler.setStream(sys.stderr)
        try:
            yield lambda share, text: bar.update(task, completed=min(share, 1.0), text=text)
            bar.update(task, completed=1.0)
        finally:
            for handler in log:
                handler.setStream(terminal)
