"""The learner group, usable alone: a Ray Train worker group behind start, wait_ready, step, save and stop."""

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
from typing import Any

import ray
from ray import train
from ray.train.torch import TorchConfig, TorchTrainer

from actors.cluster.diagnostics import activity
from actors.cluster.errors import import_hint, one_line
from actors.cluster.lifecycle import as_actor, stop_actors
from actors.cluster.placement import LEARNER_STRATEGY, node_id, on_node
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
from rlir_ray.config import Config
from rlir_ray.learner.step import Learner
from rlir_ray.run.capacity import bundle
from rlir_ray.run.checkpoint import Files

# Ranks that are still starting read the command to stop when they are done: on a busy machine that takes a while.
STOP_TIMEOUT_S = 60.0
TELL_TIMEOUT_S = 10.0


class LearnerLost(RuntimeError):
    """A rank failed or was lost; new ones can go on from a checkpoint."""


class LearnerGroup:
    """A Ray Train worker group with a `Learner` in each worker; commands and reports go through the command queue.

    Args:
        config: `learner`, `train`, the policy's checkpoint and how it samples are read.
        storage: folder for Ray Train's own state.
        make_learner: builds the learner in a worker; None: the configured engine and checkpoint.
        checkpoint: folder of one on this process's node, from which the ranks go on; None: from the start.
    """

    def __init__(
        self,
        config: Config,
        storage: Path,
        make_learner: Callable[[], Learner] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        self.config, self.storage = config, storage
        self.make_learner = make_learner or partial(build_learner, config)
        self.checkpoint_folder = checkpoint
        self.version = -1
        """Of the last report; -1 before the first."""
        self._num_commands = 0
        """Of all kinds, so far."""
        self.num_submitted = 0
        """Steps whose report has not come."""
        self._reports: deque[tuple[ray.ObjectRef, Future[Any]]] = deque()
        """To come, in order."""
        self.queue: Any = None
        self.sender: SendingRank | None = None
        """Of broadcasts, from the first report on; None: weights go through the object store alone."""
        self.has_failed = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the workers in the background; `wait_ready` says when they hold the policy."""
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(self.config.train.wait_timeout_s))
        # How often Ray Train looks whether the ranks have ended or died; its own 2 s are felt at the end of each run.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        # Its process serves recovery from a checkpoint on preempted nodes, which this group does not do.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        learner = self.config.learner
        self.queue = as_actor(CommandQueue, scheduling_strategy=on_node(node_id())).remote(learner.num_workers)
        trainer = TorchTrainer(
            run_rank,
            train_loop_config={
                "queue": self.queue,
                "make_learner": self.make_learner,
                "timeout_s": self.config.train.wait_timeout_s,
                "checkpoint": self.checkpoint_folder and (self.checkpoint_folder, node_id()),
                "broadcasts": self.config.broadcasts_weights,
            },
            torch_config=TorchConfig(
                backend="nccl" if learner.use_gpu else "gloo", timeout_s=math.ceil(self.config.train.wait_timeout_s)
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
    def _fit(trainer: TorchTrainer, queue: Any) -> None:
        try:
            trainer.fit()
        except Exception as error:
            # A worker that was killed cannot report; one that raised has done so, and this report stays unread.
            if ray.is_initialized():
                queue.report.remote(Failure(cause=f"learner group: {one_line(error)}"))

    def wait_placed(self, stop: threading.Event | None = None) -> None:
        """Blocks until the ranks have their places on the nodes; what starts later cannot take them."""
        num_workers, deadline = self.config.learner.num_workers, time.monotonic() + self.config.train.wait_timeout_s
        assert self._thread is not None, "start the group first"
        # The ranks of this group, by its own queue: Ray's placement groups do not tell whose they are.
        registered = self.queue.wait_registered.remote()
        # A group that failed has no places; wait_ready tells why.
        while self._thread.is_alive() and not ray.wait([registered], timeout=POLL_S)[0]:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"waited {self.config.train.wait_timeout_s:.0f} s for places of {num_workers} learner ranks; look "
                    "at `ray status`, or raise train.wait_timeout_s"
                )
            if stop is not None and stop.is_set():
                raise Stopped

    def wait_ready(self, stop: threading.Event | None = None) -> StepReport:
        """The policy's weights as the learner holds them: version 0, or the checkpoint's."""
        report = self._next_report(f"{self.config.learner.num_workers} learner ranks to start", stop)
        if self.config.broadcasts_weights:
            host, port = ray.get(self.queue.sender.remote(), timeout=TELL_TIMEOUT_S)
            self.sender = SendingRank(queue=self.queue, host=host, port=port)
        return report

    def submit_step(self, group_refs: Sequence[ray.ObjectRef], advantages: Sequence[GroupAdvantages]) -> None:
        """Submit an optimiser step; it waits at the ranks until they are done with the step before."""
        self._submit(split_step(list(group_refs), list(advantages), self.config.learner.num_workers))
        self.num_submitted += 1

    def finish_step(self) -> StepReport:
        """Block until the oldest submitted step is done; return its report. The other pools go on."""
        assert self.num_submitted, "submit a step first"
        report = self._next_report("the learner's step")
        self.num_submitted -= 1
        return report

    def report_future(self) -> Future[Any] | None:
        """Done when the next report is there; None: none is to come."""
        return self._reports[0][1] if self._reports else None

    def step(self, group_refs: Sequence[ray.ObjectRef], advantages: Sequence[GroupAdvantages]) -> StepReport:
        """Run one optimiser step, from the command to the report."""
        self.submit_step(group_refs, advantages)
        return self.finish_step()

    def save(self, folder: Path) -> None:
        """Saves the policy into a folder of this process's node, whole or not at all."""
        self._submit([SaveCommand(folder=str(folder), node=node_id())] * self.config.learner.num_workers)
        self._next_report("the learner to save the policy")

    def checkpoint(self, folder: Path, group_refs: Sequence[ray.ObjectRef]) -> Files:
        """Writes the learner's state and groups into an empty folder of this process's node; says what it wrote."""
        # Rank 0 alone writes.
        refs = [list(group_refs), *([] for _ in range(self.config.learner.num_workers - 1))]
        self._submit([CheckpointCommand(folder=str(folder), node=node_id(), group_refs=own) for own in refs])
        return self._next_report("the learner to write a checkpoint").files

    def _submit(self, commands: Sequence[Command]) -> None:
        self._num_commands += 1
        self._await(self.queue.execute.remote(self._num_commands, list(commands)))

    def _await(self, report: ray.ObjectRef) -> None:
        self._reports.append((report, report.future()))

    def _next_report(self, who: str, stop: threading.Event | None = None) -> StepReport:
        """Block until rank 0 reports, or any rank fails."""
        # Failed until a report comes: after an abandoned wait the next report belongs to another command.
        self.has_failed, timeout_s = True, self.config.train.wait_timeout_s
        report = wait_all([self._reports[0][0]], timeout_s, who, stop, self.activity)[0]
        self._reports.popleft()
        if isinstance(report, Failure):
            # New ranks could not import the module either.
            hint = import_hint(report.cause)
            kind = RuntimeError if report.is_final or hint else LearnerLost
            way_out = hint or "the run cannot go on without its learner: fix the cause and give the same command"
            raise kind(f"{report.cause}; {way_out}")
        self.has_failed, self.version = False, report.version
        return report

    def activity(self) -> str:
        """Say what the ranks are busy with."""
        return activity(ray.get(self.queue.ranks.remote(), timeout=TELL_TIMEOUT_S))

    def holds(self, version: int) -> bool:
        """Whether the group works and has done exactly this many steps."""
        return not self.has_failed and not self.num_submitted and self.version == version

    def end(self) -> None:
        """Tell the ranks to end after the command in hand, and return; `stop` waits for them."""
        if self.queue is not None:
            self.queue.end.remote()

    def stop(self) -> None:
        """End the ranks; block until they have ended."""
        if self.queue is None:
            return
        self.end()
        # A thread that still used Ray after its shutdown would end the whole process, and with it the user's message.
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_S)
        stop_actors([self.queue])
        self.queue, self._thread = None, None
