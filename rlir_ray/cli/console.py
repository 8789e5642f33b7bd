"""Console output of a run: a line a stage, a line a step; a terminal also shows the present stage live."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlir_ray.config import TrainConfig


# Without a terminal, a line shows at least this often that the run works; on a terminal the clock moves every TICK_S.
STILL_EVERY_S, TICK_S = 30.0, 1.0


class StepView:
    """Prints stages and steps; used as the pipeline's `progress` and as one of its callbacks."""

    def __init__(self, config: TrainConfig) -> None:
        from rich.console import Console

        self.config = config
        # Wide enough that a step stays one line in a log file.
        self.console = Console(highlight=False, soft_wrap=True)
        # The spinner with Braille characters needs a Unicode encoding.
        spinner = "dots" if self.console.encoding.startswith("utf") else "line"
        self.status = self.console.status("", spinner=spinner) if self.console.is_terminal else None
        self.started = self.said = time.monotonic()
        self.present = ""
        """The present stage."""
        self._closed = threading.Event()
        self._ticking: threading.Thread | None = None
        self.first_step: float | None = None
        self.steps_before = 0
        """Steps done before this command resumed the run."""

    def stage(self, text: str) -> None:
        """Announce the run's present stage."""
        from rich.markup import escape

        # A path may hold what looks like markup.
        self.present, self.said = escape(text), time.monotonic()
        if self.status:
            self.status.update(f"{self._elapsed()}  {self.present}")
            self.status.start()
        self.console.print(f"[dim]{self._elapsed()}[/]  {self.present}")
        if self._ticking is None:
            self._ticking = threading.Thread(target=self._tick, daemon=True, name="console")
            self._ticking.start()

    def _elapsed(self) -> str:
        return _clock(time.monotonic() - self.started)

    def _tick(self) -> None:
        """Show regularly that the run is still working, until `close`."""
        while not self._closed.wait(TICK_S):
            if self.status:
                self.status.update(f"{self._elapsed()}  {self.present}")
            elif time.monotonic() - self.said >= STILL_EVERY_S:
                self.said = time.monotonic()
                self.console.print(f"[dim]{self._elapsed()}[/]  still at work (last: {self.present})")

    def step(self, metrics: dict[str, float]) -> None:
        """Print the line of one optimiser step."""
        if self.first_step is None:
            self.first_step = time.monotonic() - metrics.get("time/step_s", 0.0)
            self.steps_before = int(metrics["step"]) - 1
        self.said = time.monotonic()
        self.console.print(self.line(metrics))

    def line(self, metrics: dict[str, float]) -> str:
        """Format the step's line.

        Args:
            metrics: names as in metrics.jsonl; absent ones are left out.
        """
        step = int(metrics["step"])
        cells = [f"step {step:>3}/{self.config.num_steps}"]
        formats = (
            ("reward/mean", "reward {:.3f}"),
            ("follow/macro_f1", "macro-F1 {:.3f}"),
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
        cells += [text.format(metrics[key]) for key, text in formats if key in metrics]
        if metrics.get("updates/skipped"):
            cells.append("update skipped")
        cells.append(f"{_clock(self.seconds_left(step))} left")
        return "  ".join(cells)

    def seconds_left(self, step: int) -> float:
        """Estimate the remaining time from the mean time of the steps so far, bounded by the time limit."""
        elapsed = time.monotonic() - (self.first_step or self.started)
        left = elapsed / max(step - self.steps_before, 1) * (self.config.num_steps - step)
        if self.config.max_minutes:
            left = min(left, self.config.max_minutes * 60 - elapsed)
        return max(left, 0.0)

    def close(self) -> None:
        self._closed.set()
        if self.status:
            self.status.stop()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
