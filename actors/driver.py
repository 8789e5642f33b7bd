"""The training loop, in the driver's process. The driver holds references, floats and the ledger, no frame or token.

All values of max_staleness share one path. The driver admits rollout calls while slots are free and passes each group's
video to the reward pool by reference. The learner trains the groups of a step while the other pools work on later ones.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from actors.checkpointing import Checkpoints, RunState, describe_limits, ready_groups
from actors.cluster.waiting import Stopped
from actors.collector import Collector
from actors.learner.command_queue import StepReport
from actors.learner.group import LearnerGroup, LearnerLost
from actors.learner.in_flight import InFlightSteps, SubmittedStep
from actors.session import Session
from rlir_ray.algorithm.admission import Admission
from rlir_ray.algorithm.ledger import SkippedUpdates
from rlir_ray.local import check_logprobs, normalised_advantages
from rlir_ray.run.tracing import span_since


class Driver:
    """The loop that trains a run from a state to its limits.

    Args:
        session: the parts of the run; start them before `train`.
        checkpoints: the checkpoints of the run.
        state: the state to continue from.
        log: called with the metrics of each step.
    """

    def __init__(
        self, session: Session, checkpoints: Checkpoints, state: RunState, log: Callable[[dict[str, float]], None]
    ) -> None:
        self.session, self.checkpoints, self.state, self.log = session, checkpoints, state, log
        self.config, self.folder = session.config, session.folder
        self.skipped = SkippedUpdates(self.config.train.max_skipped_updates)
        self.collector: Collector | None = None
        self.in_flight: InFlightSteps | None = None
        self._num_restarts, self._last_step_at = 0, 0.0

    def train(self, budget_bytes: int) -> None:
        """Train until a limit is reached. `rlir_ray/local.py` is the same algorithm in one process.

        Args:
            budget_bytes: bytes of the object store that the groups in flight may take.

        Raises:
            Stopped: the user ended the run; the submitted steps are trained.
        """
        if self._is_complete():
            return  # the run was resumed for its evaluation alone
        self._budget_bytes = budget_bytes
        collector, in_flight = self._resume()
        self.session.progress(f"training: {describe_limits(self.config.train)}")
        while not self._is_complete():
            try:
                self._step(collector, in_flight)
                if self._is_complete():
                    # Save before the evaluation: a failed evaluation must not lose a step.
                    in_flight.drain()
                    self.checkpoints.save(self.state, self._learner(), collector.ready())
                elif len(in_flight):
                    continue
                elif self.checkpoints.is_due(self.state.step) and not self.skipped.num_in_a_row:
                    # Keep the older checkpoints while updates are skipped: the newest policy may be the cause.
                    self.checkpoints.write(self.state, self._learner(), collector.ready())
            except LearnerLost as loss:
                collector, in_flight = self._recover(loss)
                continue
            except Stopped:
                in_flight.drain()
                raise
            self._evaluate_if_due(self.state.step)
            if not len(in_flight):
                # Restart the clock: a checkpoint or an evaluation must not count as time of the next step.
                self._count_time()
            if self.session.stop.is_set():
                raise Stopped
        limits = " and ".join(self.state.limits(self.config.train))
        self.session.progress(f"trained {self.state.step} steps: {limits} is reached")

    def _is_complete(self) -> bool:
        return self.state.is_complete(self.config.train)

    def _step(self, collector: Collector, in_flight: InFlightSteps) -> None:
        """Collect and submit the groups of a step; return when the learner has enough queued work."""
        train, started = self.config.train, time.time()
        submitted = self.state.step + len(in_flight)
        groups = collector.collect(version=submitted, num_steps_left=train.num_steps - submitted)
        wait = span_since(started)
        wait = self.session.recording.add("driver", f"wait for the groups of step {submitted + 1}", wait)
        check_logprobs(self.config, [group.report.difference for group in groups])
        # While the learner trains, the pools sample and score the groups that `collect` has admitted ahead.
        in_flight.submit(
            SubmittedStep(groups, wait), normalised_advantages(self.config, [group.advantages for group in groups])
        )
        del groups
        # Keep one step queued so that the learner never idles, except before a checkpoint or evaluation: drain fully.
        in_flight.drain(most=0 if self._is_barrier(submitted + 1) else 1)

    def _is_barrier(self, step: int) -> bool:
        """Return whether this step must end before the next one is submitted, for a checkpoint or an evaluation."""
        train, every = self.config.train, self.config.evaluation.every
        is_evaluated = bool(every) and step % every == 0
        is_last = step == train.num_steps or self.session.stop.is_set()
        return not train.max_staleness or is_last or is_evaluated or self.checkpoints.is_due(step)

    def _finish_step(self, step: SubmittedStep, report: StepReport) -> None:
        """Publish the weights of a trained step, free the slots of its groups, and log its metrics."""
        assert self.collector is not None and self.in_flight is not None
        self.session.sync.publish(report, self._learner().sender)
        self.collector.finish(step.groups, report.skipped)
        self.state.step += 1
        seconds = self._count_time()
        if len(self.in_flight) and not (self._is_complete() or self.session.stop.is_set()):
            # Use the free slots now: the loop may block on the next step before it collects again.
            self.collector.admit(self.config.train.num_steps - self.state.step - len(self.in_flight))
        metrics = self.collector.metrics(step.groups, report.version - 1, step.wait)
        metrics |= {"step": self.state.step, "policy_version": report.version, **report.metrics}
        metrics |= {"time/wait_s": step.wait.seconds, "time/learn_s": report.span.seconds, "time/step_s": seconds}
        metrics |= self.session.overlap(metrics, report)
        self.state.metrics.append(metrics)
        self.log(metrics)
        self.skipped.add(self.state.step, report.skipped)

    def _count_time(self) -> float:
        """Add the seconds since the last call to the training time; return these seconds."""
        now = time.monotonic()
        seconds, self._last_step_at = now - self._last_step_at, now
        self.state.trained_s += seconds
        return seconds

    def _evaluate_if_due(self, step: int) -> None:
        every = self.config.evaluation.every
        if every and step % every == 0 and step < self.config.train.num_steps:
            temperature, guidance = self.config.evaluation.samplings[0]
            self.session.evaluate(f"step {step}", temperature, guidance=guidance)

    # -----------------------------------------------------------------------------------------------------------------
    # Checkpoints

    def _learner(self) -> LearnerGroup:
        assert self.session.learner is not None, "start the session first"
        return self.session.learner

    def _resume(self) -> tuple[Collector, InFlightSteps]:
        """Continue from the state: use the ready groups of its checkpoint, sample the other groups in flight again."""
        train, session = self.config.train, self.session
        in_flight = InFlightSteps(self._learner(), self._finish_step)
        admission = Admission(train.max_staleness, train.prompts_per_step, self._budget_bytes)
        collector = Collector(
            self.config,
            self.state.ledger,
            admission,
            session.submit,
            prompt_ids=session.prompt_ids,
            stop=session.stop,
            group_bytes=session.run.group_bytes,
            recording=session.recording,
            progress=session.progress,
            activity=session.activity,
            learner=in_flight,
        )
        collector.restore(ready_groups(self.state, train.wait_timeout_s))
        self.collector, self.in_flight, self._last_step_at = collector, in_flight, time.monotonic()
        return collector, in_flight

    def _recover(self, loss: LearnerLost) -> tuple[Collector, InFlightSteps]:
        """Start new learner ranks from the newest checkpoint; keep the other pools.

        Raises:
            LearnerLost: the learner was lost more often than learner.max_restarts allows.
        """
        most, lost_at = self.config.learner.max_restarts, self.state.step + 1
        assert self.collector is not None
        while self._num_restarts < most:
            self._num_restarts += 1
            self.session.stop_learner()
            self.state = self.checkpoints.read()
            self.folder.cut(self.state.step)
            self.session.progress(
                f"the learner was lost in step {lost_at} ({loss}); new ranks resume after step {self.state.step} "
                f"(restart {self._num_restarts} of learner.max_restarts={most})"
            )
            learner = self.session.start_learner(self.state.checkpoint)
            self.collector.drain()
            self.session.sync.reset()
            try:
                self.session.publish_ready(learner)
            except LearnerLost as again:
                loss = again
                continue
            return self._resume()
        raise loss

    def save_unsaved(self) -> None:
        """Save the steps since the last save, submitted steps included, unless the learner has failed.

        Save nothing in a run that ends because of skipped updates: the older checkpoints are the better ones.
        """
        learner = self.session.learner
        if self.in_flight is None or learner is None or learner.has_failed or self.skipped.is_too_many:
            return
        for _ in range(len(self.in_flight)):
            # Fault tolerance: if a callback ended the run with an error, report that first error and no later one.
            with contextlib.suppress(Exception):
                self.in_flight.drain()
        # Do not checkpoint a step whose weights were updated but whose groups are not yet in the ledger.
        if self.state.step not in (0, self.checkpoints.saved_step) and learner.holds(self.state.step):
            self.checkpoints.save(self.state, learner, self.collector.ready() if self.collector else [])
