"""The steps that are submitted to the learner but not finished: the current one, and with staleness the next one."""

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
    """[G, F], not yet normalised over the step."""
    report: CallReport
    """The report of the rollout call that sampled the group."""
    scored: Span
    """The span in which a replica scored the group."""
    scores: RewardScores


@dataclass(frozen=True, slots=True)
class SubmittedStep:
    """A step that was submitted to the learner."""

    groups: list[ReadyGroup]
    wait: Span
    """The span in which the driver waited for these groups."""


class InFlightSteps:
    """The queue of steps at the learner, which finish in the order of their submission.

    Args:
        learner: executes the steps.
        on_finished: called with each finished step and its report.
    """

    def __init__(self, learner: LearnerGroup, on_finished: Callable[[SubmittedStep, StepReport], None]) -> None:
        self.learner, self.on_finished = learner, on_finished
        self._steps: deque[SubmittedStep] = deque()

    def __len__(self) -> int:
        return len(self._steps)

    def submit(self, step: SubmittedStep, advantages: Sequence[GroupAdvantages]) -> None:
        """Submit a step to the learner."""
        self.learner.submit_step([group.group_ref for group in step.groups], advantages)
        self._steps.append(step)

    def report_future(self) -> Future[StepReport | Failure] | None:
        """Return a future that is done when the oldest step has ended; None: no step is in flight."""
        return self.learner.report_future()

    def finish_done(self) -> None:
        """Call `on_finished` for the steps that have ended; do not block."""
        while (future := self.report_future()) is not None and future.done():
            self._finish()

    def drain(self, most: int = 0) -> None:
        """Block until at most `most` steps are in flight."""
        while len(self._steps) > most:
            self._finish()

    def _finish(self) -> None:
        report = self.learner.finish_step()
        self.on_finished(self._steps.popleft(), report)
