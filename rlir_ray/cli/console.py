"""Console of the commands: streams that survive a closed pipe in any locale, and the lines of a run that trains."""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TextIO

from rlir_ray.run.progress import clock

if TYPE_CHECKING:
    from rich.text import Text

    from rlir_ray.config import TrainConfig

# Errors of a write to a pipe without a reader, and to a closed terminal.
GONE = (errno.EPIPE, errno.EIO)


class ProtectedStream(io.FileIO):
    """A file that writes to a console or pipe until the reader closes, and drops later output."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            # Redirect the descriptor itself, because C libraries write to it too.
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(memoryview(data).cast("B"))


def protected(stream: TextIO | None, descriptor: int) -> TextIO:
    """Return the stream, wrapped so that a closed pipe or an unencodable character does not end the program.

    Args:
        stream: standard output or error of this process; None: it was closed before the start.
        descriptor: 1 or 2.
    """
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    stream.flush()
    file = ProtectedStream(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(file), encoding=stream.encoding, errors="backslashreplace", line_buffering=True
    )


def protect_standard_streams() -> None:
    """Replace the standard streams of this process; keep streams that a test or another program has set."""
    if sys.stdout is sys.__stdout__:
        sys.stdout = protected(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = protected(sys.stderr, 2)


# Without a terminal, the console prints at least this often that the run works.
STILL_EVERY_S, TICK_S = 30.0, 1.0
# Metrics in the line of a step.
STEP_FORMATS = (
    ("reward/mean", "reward {:.3f}"),
    ("follow/macro_f1", "macro-F1 {:.3f}"),
    ("follow/axis_error", "axis error {:.3f}"),
    ("loss/kl", "KL {:.4f}"),
    ("ratio/kl", "step KL {:.4f}"),
    ("ratio/clip_fraction", "clip {:.1%}"),
    ("staleness/mean", "staleness {:.1f}"),
    ("throughput/frames_per_s", "{:.0f} frames/s"),
    ("time/sample_s", "sample {:.1f}s"),
    ("time/score_s", "score {:.1f}s"),
    ("time/learn_s", "learn {:.1f}s"),
    ("time/wait_s", "wait {:.1f}s"),
)


class StepView:
    """Prints a line for each stage and step; a terminal also shows the present stage live.

    `stage` is the pipeline's `progress`, and `step` one of its callbacks.
    """

    def __init__(self, config: TrainConfig) -> None:
        from rich.console import Console

        self.config = config
        # soft_wrap keeps a step on one line of a log file.
        self.console = Console(highlight=False, soft_wrap=True)
        # The spinner of Braille characters needs a Unicode encoding.
        spinner = "dots" if self.console.encoding.startswith("utf") else "line"
        self.status = self.console.status(self, spinner=spinner) if self.console.is_terminal else None
        self.started = self.printed = time.monotonic()
        self.present = ""
        """The present stage."""
        self.first_step: float | None = None
        self.steps_before = 0
        """Steps that earlier commands trained, if this command resumed the run."""
        self._closed = threading.Event()
        self._reminder: threading.Thread | None = None

    def __rich__(self) -> Text:
        """Build the line of the present stage; rich builds the live line again several times a second."""
        return self._line(self.present)

    def _line(self, text: str) -> Text:
        from rich.text import Text

        return Text.assemble((clock(time.monotonic() - self.started), "dim"), "  ", text)

    def _print(self, line: Text) -> None:
        self.printed = time.monotonic()
        self.console.print(line)

    def stage(self, text: str) -> None:
        """Announce the run's present stage."""
        self.present = text
        self._print(self._line(text))
        if self.status:
            self.status.start()
        elif self._reminder is None:
            self._reminder = threading.Thread(target=self._remind, daemon=True, name="console")
            self._reminder.start()

    def _remind(self) -> None:
        """Print regularly that the run still works, until `close`."""
        while not self._closed.wait(TICK_S):
            if time.monotonic() - self.printed >= STILL_EVERY_S:
                self._print(self._line(f"still at work (last: {self.present})"))

    def step(self, metrics: dict[str, float]) -> None:
        """Print the line of one optimiser step."""
        from rich.text import Text

        if self.first_step is None:
            self.first_step = time.monotonic() - metrics.get("time/step_s", 0.0)
            self.steps_before = int(metrics["step"]) - 1
        self._print(Text(self.line(metrics)))

    def line(self, metrics: dict[str, float]) -> str:
        """Format the line of a step.

        Args:
            metrics: names as in metrics.jsonl; the line leaves out missing metrics.
        """
        step = int(metrics["step"])
        cells = [f"step {step:>3}/{self.config.num_steps}"]
        cells += [text.format(metrics[key]) for key, text in STEP_FORMATS if key in metrics]
        if metrics.get("updates/skipped"):
            cells.append("update skipped")
        cells.append(f"{clock(self.seconds_left(step))} left")
        return "  ".join(cells)

    def seconds_left(self, step: int) -> float:
        """Estimate the remaining time from the mean time of the steps so far; the time limit bounds the estimate."""
        elapsed = time.monotonic() - (self.first_step or self.started)
        left = elapsed / max(step - self.steps_before, 1) * (self.config.num_steps - step)
        if self.config.max_minutes:
            left = min(left, self.config.max_minutes * 60 - elapsed)
        return max(left, 0.0)

    def close(self) -> None:
        self._closed.set()
        if self.status:
            self.status.stop()
