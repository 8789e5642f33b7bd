"""The steps that the learner works on: one, and above staleness 0 the next one, which already waits there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from actors.learner.command_queue import StepReport
from actors.learner.group import LearnerGroup
from actors.rollout.actor import CallReport
from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.run.tracing import Span
from rlir_ray.trajectory import RewardScores


@dataclass(frozen=True, slots=True)
class ReadyGroup:
    """A scored group with signal."""

    group_id: int
    group_ref: ray.ObjectRef
    advantages: npt.NDArray[np.float32]
    """[G, F]."""
    report: CallReport
    """Of the rollout call that sampled it."""
    scored: Span
    """When it was scored."""
    scores: RewardScores


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
