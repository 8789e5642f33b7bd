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
# The speed of this last time gives the remaining time; it must hold several lines.
SPEED_PERIOD_S = 600.0


def log_to_stderr() -> None:
    """Log messages to stderr with their time: through rich on a terminal, above a bar, otherwise a line for each."""
    if not sys.stderr.isatty():
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        return
    from rich.console import Console
    from rich.logging import RichHandler

    console = Console(stderr=True)
    handler = RichHandler(console=console, show_level=False, show_path=False, log_time_format="%H:%M:%S")
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])


@contextmanager
def progress_bar(name: str) -> Iterator[ShowProgress]:
    """Show percent, elapsed and remaining time, and a text such as the loss: a bar if stderr is a terminal, else lines.

    Yields:
        A function to call with the finished share of the work, in [0, 1], and with the text.
    """
    from rich import progress as rich
    from rich.console import Console
    from rich.logging import RichHandler

    is_terminal, printed = sys.stderr.isatty(), time.monotonic()
    # Messages stand above the bar if one console writes both.
    logged = (handler.console for handler in logging.root.handlers if isinstance(handler, RichHandler))
    with rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("gone,"),
        rich.TimeRemainingColumn(),
        rich.TextColumn("left  {task.fields[text]}"),
        console=next(logged, None) or Console(stderr=True),
        speed_estimate_period=SPEED_PERIOD_S,
        disable=not is_terminal,
    ) as bar:
        bar.add_task(name, total=1.0, text="")
        (task,) = bar.tasks

        def show(share: float, text: str) -> None:
            nonlocal printed
            bar.update(task.id, completed=min(share, 1.0), text=text)
            if is_terminal or time.monotonic() - printed < LINE_EVERY_S:
                return
            printed, remaining = time.monotonic(), task.time_remaining
            left = "" if remaining is None else f", {clock(remaining)} left"
            line = f"{name} {task.completed:4.0%}  {clock(task.elapsed or 0)} gone{left}  {text}"
            print(line, file=sys.stderr, flush=True)

        yield show
        bar.update(task.id, completed=1.0)


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
    """Format figures for a person: "loss 2.87, validation loss 2.93"; None becomes a dash."""
    return ", ".join(
        f"{name.replace('_', ' ')} {'–' if value is None else f'{value:.4g}'}" for name, value in figures.items()
    )
