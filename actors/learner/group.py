"""The learner group: a Ray Train worker group behind start, wait_ready, step, save and stop. It also works alone."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import ray
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer

from actors.cluster.diagnostics import activity, import_hint, one_line
from actors.cluster.placement import LEARNER_STRATEGY, Handle, as_actor, node_id, on_node, stop_actors
from actors.cluster.waiting import POLL_S, Stopped, wait_all
from actors.learner.actor import build_learner, run_rank
from actors.learner.command_queue import (
    CheckpointCommand,
    Command,
    CommandQueue,
    Failure,
    SaveCommand,
    SendingRank,
    StepReport,
    split_step,
)
from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.config import Config, LearnerConfig
from rlir_ray.learner.step import Learner
from rlir_ray.run.capacity import bundle
from rlir_ray.run.checkpoint import Files
from rlir_ray.trajectory import TrajectoryGroup

# A rank that is still starting reads the command to stop only after its start, which is slow on a busy machine.
STOP_TIMEOUT_S = 60.0
QUERY_TIMEOUT_S = 10.0


class LearnerLost(RuntimeError):
    """A rank failed or died, and new ranks can resume from a checkpoint."""


class LearnerGroup:
    """A Ray Train worker group with a `Learner` in each worker; commands and reports go through the command queue.

    Args:
        learner: number and resources of the workers.
        storage: folder for Ray Train's own state.
        make_learner: builds the learner in a worker.
        checkpoint: folder of the checkpoint, on this process's node, from which the ranks resume; None: the ranks start
            from the beginning.
        wait_timeout_s: bound of each wait for the ranks.
        broadcasts_weights: whether rank 0 can broadcast weights to the rollout actors.
        num_minibatches: parts of a step, with one optimiser update each.
    """

    def __init__(
        self,
        learner: LearnerConfig,
        storage: Path,
        make_learner: Callable[[], Learner],
        checkpoint: Path | None = None,
        *,
        wait_timeout_s: float,
        broadcasts_weights: bool = False,
        num_minibatches: int = 1,
    ) -> None:
        self.config, self.storage, self.make_learner = learner, storage, make_learner
        self.checkpoint_folder, self.wait_timeout_s = checkpoint, wait_timeout_s
        self.broadcasts_weights, self.num_minibatches = broadcasts_weights, num_minibatches
        self.version = -1
        """Version of the last report; -1 before the first report."""
        self._num_commands = 0
        """Number of commands of all kinds so far."""
        self.num_submitted = 0
        """Number of submitted steps whose report has not arrived yet."""
        self._reports: deque[tuple[ray.ObjectRef[StepReport | Failure], Future[StepReport | Failure]]] = deque()
        """Reports that have not arrived yet, oldest first."""
        self.queue: Handle = None
        self.sender: SendingRank | None = None
        """The sender of broadcasts, known after the first report; None: all weights go through the object store."""
        self.has_failed = False
        self._thread: threading.Thread | None = None

    @classmethod
    def from_config(
        cls,
        config: Config,
        storage: Path,
        make_learner: Callable[[], Learner] | None = None,
        checkpoint: Path | None = None,
    ) -> LearnerGroup:
        """Build the group of a run; without `make_learner` its workers build the configured policy and engine."""
        return cls(
            config.learner,
            storage,
            make_learner or partial(build_learner, config),
            checkpoint,
            wait_timeout_s=config.train.wait_timeout_s,
            broadcasts_weights=config.broadcasts_weights,
            num_minibatches=config.train.num_minibatches,
        )

    def start(self) -> None:
        """Start the workers in the background; `wait_ready` blocks until they hold the policy."""
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(self.wait_timeout_s))
        # How often Ray Train looks whether the ranks have ended or died; its own 2 s are felt at the end of each run.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        # Save the process of Ray Train's preemption watcher: this group does not use its checkpoints.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        learner = self.config
        self.queue = as_actor(CommandQueue, scheduling_strategy=on_node(node_id())).remote(learner.num_workers)
        trainer = TorchTrainer(
            run_rank,
            train_loop_config={
                "queue": self.queue,
                "make_learner": self.make_learner,
                "timeout_s": self.wait_timeout_s,
                "checkpoint": self.checkpoint_folder and (self.checkpoint_folder, node_id()),
                "broadcasts": self.broadcasts_weights,
            },
            torch_config=TorchConfig(
                backend="nccl" if learner.use_gpu else "gloo", timeout_s=math.ceil(self.wait_timeout_s)
            ),
            scaling_config=train.ScalingConfig(
                num_workers=learner.num_workers,
                use_gpu=learner.use_gpu,
                resources_per_worker={"CPU": 0.0, **bundle(learner)},
                placement_strategy=LEARNER_STRATEGY,
            ),
            run_config=train.RunConfig(name="learner", storage_path=str(self.storage.absolute())),
        )
        self._await(self.queue.next_report.remote())
        self._thread = threading.Thread(target=self._fit, args=(trainer, self.queue), name="learner", daemon=True)
        self._thread.start()

    @staticmethod
    def _fit(trainer: TorchTrainer, queue: Handle) -> None:
        try:
            trainer.fit()
        except Exception as error:
            # Report for a worker that was killed. A worker that raised has reported, and this report stays unread.
            if ray.is_initialized():
                queue.report.remote(Failure(cause=f"learner group: {one_line(error)}"))

    def wait_placed(self, stop: threading.Event | None = None) -> None:
        """Block until the ranks hold their resources on the nodes, so that later actors cannot take them."""
        num_workers, deadline = self.config.num_workers, time.monotonic() + self.wait_timeout_s
        assert self._thread is not None, "start the group first"
        # Ask the group's own queue: Ray's placement groups do not tell which group they belong to.
        registered = self.queue.wait_registered.remote()
        # Stop waiting if the group has failed; wait_ready raises the cause.
        while self._thread.is_alive() and not ray.wait([registered], timeout=POLL_S)[0]:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"waited {self.wait_timeout_s:.0f} s for places of {num_workers} learner ranks; look "
                    "at `ray status`, or raise train.wait_timeout_s"
                )
            if stop is not None and stop.is_set():
                raise Stopped

    def wait_ready(self, stop: threading.Event | None = None) -> StepReport:
        """Block until the ranks hold the policy; return the report with its weights: version 0 or the checkpoint's."""
        report = self._next_report(f"{self.config.num_workers} learner ranks to start", stop)
        if self.broadcasts_weights:
            host, port = ray.get(self.queue.sender.remote(), timeout=QUERY_TIMEOUT_S)
            self.sender = SendingRank(queue=self.queue, host=host, port=port)
        return report

    def submit_step(
        self, group_refs: Sequence[ray.ObjectRef[TrajectoryGroup]], advantages: Sequence[GroupAdvantages]
    ) -> None:
        """Submit a step; the ranks execute it after the steps before it."""
        ranks, minibatches = self.config.num_workers, self.num_minibatches
        self._submit(split_step(list(group_refs), list(advantages), ranks, minibatches))
        self.num_submitted += 1

    def finish_step(self) -> StepReport:
        """Block until the oldest submitted step is done; return its report. The other pools keep working."""
        assert self.num_submitted, "submit a step first"
        report = self._next_report("the learner's step")
        self.num_submitted -= 1
        return report

    def report_future(self) -> Future[StepReport | Failure] | None:
        """Return a future that is done when the next report arrives; None: no report is expected."""
        return self._reports[0][1] if self._reports else None

    def step(
        self, group_refs: Sequence[ray.ObjectRef[TrajectoryGroup]], advantages: Sequence[GroupAdvantages]
    ) -> StepReport:
        """Submit one step and block until it is done."""
        self.submit_step(group_refs, advantages)
        return self.finish_step()

    def save(self, folder: Path) -> None:
        """Save the policy into a folder on this process's node, completely or not at all."""
        self._submit([SaveCommand(folder=str(folder), node=node_id())] * self.config.num_workers)
        self._next_report("the learner to save the policy")

    def checkpoint(self, folder: Path, group_refs: Sequence[ray.ObjectRef[TrajectoryGroup]]) -> Files:
        """Write the learner's state and groups into an empty folder on this process's node; return the files."""
        # Send the references to rank 0 only, which alone writes.
        refs = [list(group_refs), *([] for _ in range(self.config.num_workers - 1))]
        self._submit([CheckpointCommand(folder=str(folder), node=node_id(), group_refs=own) for own in refs])
        return self._next_report("the learner to write a checkpoint").files

    def _submit(self, commands: Sequence[Command]) -> None:
        self._num_commands += 1
        self._await(self.queue.execute.remote(self._num_commands, list(commands)))

    def _await(self, report: ray.ObjectRef[StepReport | Failure]) -> None:
        self._reports.append((report, report.future()))

    def _next_report(self, awaited: str, stop: threading.Event | None = None) -> StepReport:
        """Block until rank 0 reports, or any rank fails."""
        # The group counts as failed until the report arrives: after an abandoned wait, the next report would belong to
        # another command.
        self.has_failed = True
        report: StepReport | Failure = wait_all(
            [self._reports[0][0]], self.wait_timeout_s, awaited, stop, self.activity
        )[0]
        self._reports.popleft()
        if isinstance(report, Failure):
            # A missing module is final: new ranks could not import it either.
            hint = import_hint(report.cause)
            kind = RuntimeError if report.is_final or hint else LearnerLost
            way_out = hint or "the run cannot go on without its learner: fix the cause and give the same command"
            raise kind(f"{report.cause}; {way_out}")
        self.has_failed, self.version = False, report.version
        return report

    def activity(self) -> str:
        """Describe the current work of the ranks."""
        return activity(ray.get(self.queue.ranks.remote(), timeout=QUERY_TIMEOUT_S))

    def holds(self, version: int) -> bool:
        """Return whether the group has not failed, is idle, and has done exactly `version` steps."""
        return not self.has_failed and not self.num_submitted and self.version == version

    def end(self) -> None:
        """Tell the ranks to end after the command in hand, and return; `stop` waits for them."""
        if self.queue is not None:
            self.queue.end.remote()

    def stop(self) -> None:
        """Stop the ranks and wait for their end; a second call does nothing."""
        if self.queue is None:
            return
        self.end()
        # Wait for the thread: if it used Ray after Ray's shutdown, the whole process would end without a message.
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_S)
        stop_actors([self.queue])
        self.queue, self._thread = None, None
