"""The groups that steps train, and the steps that the learner works on: one, and above staleness 0 the next one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import ray

from actors.learner.command_queue import Failure, StepReport
from actors.learner.group import LearnerGroup
from actors.rollout.actor import CallReport
from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.run.tracing import Span
from rlir_ray.trajectory import RewardScores, TrajectoryGroup


@dataclass(frozen=True, slots=True)
class ReadyGroup:
    """A scored group with signal."""

    group_id: int
    group_ref: ray.ObjectRef[TrajectoryGroup]
    advantages: npt.NDArray[np.float32]
    """[G, F]."""
    report: CallReport
    """Of the rollout call that sampled the group."""
    scored: Span
    """When the group was scored."""
    scores: RewardScores


@dataclass(frozen=True, slots=True)
class SubmittedStep:
    groups: list[ReadyGroup]
    wait: Span
    """How long the driver waited for these groups."""


class InFlightSteps:
    """Submit steps to the learner and finish them in their order.

    Args:
        learner: executes the steps.
        finished: called with each step and its report.
    """

    def __init__(self, learner: LearnerGroup, finished: Callable[[SubmittedStep, StepReport], None]) -> None:
        self.learner, self.finished = learner, finished
        self._steps: deque[SubmittedStep] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    def submit(self, step: SubmittedStep, advantages: Sequence[GroupAdvantages]) -> None:
        """Queue a step at the learner."""
        self.learner.submit_step([group.group_ref for group in step.groups], advantages)
        self._steps.append(step)

    def report_future(self) -> Future[StepReport | Failure] | None:
        """Done when the oldest step has ended; None: no step is in flight."""
        return self.learner.report_future()

    def finish_done(self) -> None:
        """Finish the steps that have ended: publish their weights, give their slots back."""
        while (future := self.report_future()) is not None and future.done():
            self._finish()

    def drain(self, most: int = 0) -> None:
        """Block until at most `most` steps are in flight."""
        while len(self._steps) > most:
            self._finish()

    def _finish(self) -> None:
        report = self.learner.finish_step()
        self.finished(self._steps.popleft(), report)
