"""The steps that the learner works on: one, and above staleness 0 the next one, which already waits there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from actors.collector import ReadyGroup
from actors.learner_group import LearnerGroup
from actors.mailbox import StepReport
from rlir_ray.advantages import GroupAdvantages
from rlir_ray.timeline import Span


@dataclass(frozen=True, slots=True)
class OrderedStep:
    groups: list[ReadyGroup]
    wait: Span
    """Of the driver, for these groups."""


class UnderWay:
    """Args:
    learner: carries the steps out in their order.
    finished: called with each step and its report.
    """

    def __init__(self, learner: LearnerGroup, finished: Callable[[OrderedStep, StepReport], None]) -> None:
        self.learner, self.finished = learner, finished
        self._steps: deque[OrderedStep] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    def order(self, step: OrderedStep, advantages: Sequence[GroupAdvantages]) -> None:
        self.learner.order_step([group.group_ref for group in step.groups], advantages)
        self._steps.append(step)

    def report_future(self) -> Future[Any] | None:
        return self.learner.report_future()

    def finish_done(self) -> None:
        while (future := self.report_future()) is not None and future.done():
            self._finish()

    def drain(self, most: int = 0) -> None:
        """Waits until at most so many steps are under way."""
        while len(self._steps) > most:
            self._finish()

    def _finish(self) -> None:
        report = self.learner.finish_step()
        self.finished(self._steps.popleft(), report)
