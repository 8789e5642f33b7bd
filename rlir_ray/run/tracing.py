"""Tracing: spans of all pools on one clock, the reached and the possible overlap of the stages, and a Chrome trace.

Plain values; independent of Ray. Times are seconds since the epoch.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """The time span of some work of one process."""

    start_s: float
    end_s: float
    host: str
    """Host whose clock gave the times."""
    process: int
    """Id of the process."""

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


def span_since(start_s: float) -> Span:
    """Return a span of this process, from a `time.time()` to now."""
    return Span(start_s=start_s, end_s=max(start_s, time.time()), host=platform.node(), process=os.getpid())


def overlap_metrics(stages: Mapping[str, tuple[float, int]], step_s: float) -> dict[str, float]:
    """Compute each pool's work in a step, and the reached share of the possible overlap.

    Stages without overlap take the sum of their times; perfectly overlapped stages take the time of the longest stage.
    `overlap/ceiling` is the ratio of these two times; `overlap/reached` is the share of the longest stage in the step.

    Example: sampling 1 s, scoring 1 s and learning 2 s in a step of 2.5 s: ceiling 2, reached 0.8.

    Args:
        stages: name -> seconds of work in the step, summed over the pool's workers, and the number of workers.
        step_s: wall-clock seconds of the step.
    """
    each = {name: work_s / max(1, num_workers) for name, (work_s, num_workers) in stages.items()}
    longest = max(each.values())
    idle = {
        f"time/{name}_idle_s": max(0.0, step_s * max(1, workers) - work_s) for name, (work_s, workers) in stages.items()
    }
    if not longest:
        return idle
    return {**idle, "overlap/ceiling": sum(each.values()) / longest, "overlap/reached": longest / step_s}


def waited_for(wait: Span, sampled: Iterable[Span], scored: Iterable[Span]) -> dict[str, float]:
    """Split the driver's wait for groups: the wait is for rollouts until sampling has ended, then for scores.

    Args:
        wait: span of the driver's wait.
        sampled: spans of the groups' rollout calls.
        scored: spans of the groups' scoring.
    """
    last_sample = max((span.end_s for span in sampled), default=wait.start_s)
    last_score = max((span.end_s for span in scored), default=last_sample)
    sample_s = min(max(0.0, last_sample - wait.start_s), wait.seconds)
    score_s = min(max(0.0, last_score - max(last_sample, wait.start_s)), wait.seconds - sample_s)
    return {
        "time/wait_sample_s": sample_s,
        "time/wait_score_s": score_s,
        "time/wait_other_s": wait.seconds - sample_s - score_s,
    }


class TraceRecorder:
    """The spans of all pools on one clock, for chrome://tracing or https://ui.perfetto.dev.

    Args:
        offsets: host -> seconds by which its clock is ahead of this host's; a missing host has no offset.
        is_kept: whether spans are kept for `events`.
    """

    def __init__(self, offsets: Mapping[str, float] | None = None, *, is_kept: bool = False) -> None:
        self.offsets, self.is_kept = dict(offsets or {}), is_kept
        self._spans: dict[tuple[str, str, int, float], tuple[str, Span]] = {}

    def add(self, pool: str, name: str, span: Span) -> Span:
        """Convert a span to this host's clock, record it, and return it.

        Spans of one process with the same start are one span: the work on several groups at once.
        """
        ahead = self.offsets.get(span.host, 0.0)
        span = replace(span, start_s=span.start_s - ahead, end_s=span.end_s - ahead)
        if self.is_kept:
            self._spans.setdefault((pool, span.host, span.process, span.start_s), (name, span))
        return span

    def events(self) -> dict[str, object]:
        """Return the spans in the Trace Event Format: a row for each process, in microseconds since the first span."""
        first = min((span.start_s for _, span in self._spans.values()), default=0.0)
        rows = {
            row: number for number, row in enumerate(sorted({(key[0], key[1], key[2]) for key in self._spans}), start=1)
        }
        named = [
            {"name": "process_name", "ph": "M", "pid": number, "args": {"name": f"{pool} {host}:{process}"}}
            for (pool, host, process), number in rows.items()
        ]
        work = [
            {
                "name": name,
                "cat": pool,
                "ph": "X",
                "pid": rows[pool, host, process],
                "tid": 0,
                "ts": round((span.start_s - first) * 1e6),
                "dur": round(span.seconds * 1e6),
            }
            for (pool, host, process, _), (name, span) in self._spans.items()
        ]
        return {"displayTimeUnit": "ms", "traceEvents": [*named, *work]}
