"""A run in this process, for tests of the driver's logic: the pools' own shells, and threads in place of actors.

Ray only holds the groups. A call samples at once, one thread scores the groups in their order, and another thread
trains the steps.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray

from actors.checkpointing import Checkpoints, RunState
from actors.cluster.waiting import Stopped
from actors.driver import Driver
from actors.evaluation.watch import Watch
from actors.learner.command_queue import StepReport
from actors.reward.replica import RewardReplica, ScoreReport
from actors.rollout.actor import RolloutActor
from actors.rollout.pool import GroupRefs
from benchmarks.stages import SleepLearner, SleepSampler, random_prompts
from rlir_ray.algorithm.advantages import GroupAdvantages
from rlir_ray.config import Config
from rlir_ray.config.load import load_config
from rlir_ray.evaluation.alarms import Sign
from rlir_ray.learner.batches import StepBatch, trained_decisions
from rlir_ray.rewards.base import Reward
from rlir_ray.run.checkpoint import LEARNER, Files, describe_files, save_arrays
from rlir_ray.run.tracing import TraceRecorder, span_since

TIMEOUT_S, PER_STEP = 60, 4
# Of a group of `SleepSampler` while it is in flight, rounded up.
GROUP_BYTES = 54_000


def stage_config(folder: Path, *overrides: str) -> Config:
    """The shipped recipe, for stages that sleep: four groups a step, and no checkpoint between steps."""
    return load_config(
        "doom_tiny_ar",
        [
            f"run.dir={folder}",
            "run.name=faults",
            "learner.engine=torch",
            "train.max_minutes=0",
            f"train.prompts_per_step={PER_STEP}",
            "rollout.prompts_per_call=2",
            "prompts.num_train=16",
            "prompts.num_heldout=4",
            "object_store_budget_bytes=20000000",
            "checkpoint.every=0",
            "train.wait_timeout_s=120",
            *overrides,
        ],
    )


class InProcessLearner:
    """What the driver needs of a `LearnerGroup`; a thread trains the steps in their order."""

    sender, has_failed = None, False

    def __init__(self, learner: Any) -> None:
        self.learner, self.thread = learner, ThreadPoolExecutor(1)
        self.reports: deque[Future[StepReport]] = deque()

    def submit_step(self, group_refs: Sequence[ray.ObjectRef], advantages: Sequence[GroupAdvantages]) -> None:
        self.reports.append(self.thread.submit(self._step, list(group_refs), list(advantages)))

    def _step(self, group_refs: list[ray.ObjectRef], advantages: list[GroupAdvantages]) -> StepReport:
        started, groups = time.time(), ray.get(group_refs, timeout=TIMEOUT_S)
        batch = StepBatch(groups=groups, advantages=advantages, num_decisions=trained_decisions(groups, advantages))
        metrics = self.learner.step(batch)
        return StepReport(
            version=self.learner.num_steps, metrics=metrics, weights_refs=[], checksum="", span=span_since(started)
        )

    def report_future(self) -> Future[StepReport] | None:
        return self.reports[0] if self.reports else None

    def finish_step(self) -> StepReport:
        report = self.reports[0].result(TIMEOUT_S)
        self.reports.popleft()
        return report

    def holds(self, version: int) -> bool:
        return not self.reports and self.learner.num_steps == version

    def save(self, folder: Path) -> None:
        self.learner.save(folder)

    def checkpoint(self, folder: Path, group_refs: Sequence[ray.ObjectRef]) -> Files:
        save_arrays(folder / LEARNER, self.learner.state())
        return describe_files([folder / LEARNER])


class InProcessSession:
    """What the driver needs of a `Session`."""

    folder = None

    def __init__(
        self,
        config: Config,
        make_reward: Callable[[], Reward],
        learner: InProcessLearner,
        sample_s: float,
        progress: Callable[[str], None],
    ) -> None:
        self.config, self.learner, self.progress = config, learner, progress
        self.run = SimpleNamespace(group_bytes=GROUP_BYTES)
        self.stop, self.recording, self.scoring = threading.Event(), TraceRecorder(), ThreadPoolExecutor(1)
        self.rollout = RolloutActor(lambda: SleepSampler(sample_s))
        self.replica = RewardReplica(make_reward, config.reward.max_frames)
        self.prompts = random_prompts(config, "train").prompts
        self.prompt_ids = [prompt.prompt_id for prompt in self.prompts]
        self.sync = SimpleNamespace(publish=self._publish)
        self.watch = Watch(config.evaluation, progress)
        self.signs: dict[int, dict[str, Sign]] = {}
        """Step -> signs of its evaluation."""

    def _publish(self, report: StepReport, sender: None) -> None:
        self.rollout.load_weights(self.learner.learner.weights(), report.version, report.checksum)

    def submit(
        self, group_ids: Sequence[int], seeds: Sequence[int], indices: Sequence[int]
    ) -> list[tuple[GroupRefs, Future[ScoreReport]]]:
        prompts, group_size = [self.prompts[index] for index in indices], self.config.train.group_size
        *columns, report = map(ray.put, self.rollout.sample(group_ids, seeds, group_size, None, prompts))
        refs = [GroupRefs(group, video, report) for group, video in zip(columns[::2], columns[1::2], strict=True)]
        return [(each, self.scoring.submit(self._score, each.video_ref)) for each in refs]

    def _score(self, video_ref: ray.ObjectRef) -> ScoreReport:
        (scored,) = self.replica.read([ray.get(video_ref, timeout=TIMEOUT_S)])
        if isinstance(scored, Exception):
            raise scored
        return scored

    def overlap(self, metrics: dict[str, float], report: StepReport) -> dict[str, float]:
        return {}

    def evaluate_interim(self, step: int) -> None:
        self.watch.after_evaluation({"judge/accuracy": step / 10}, self.signs.get(step, {}))

    def activity(self) -> str:
        return ""

    def close(self) -> None:
        self.scoring.shutdown()
        self.learner.thread.shutdown()


def run_in_process(
    config: Config,
    folder: Path,
    make_reward: Callable[[], Reward],
    *,
    sample_s: float = 0.005,
    learn_s: float = 0.005,
    progress: Callable[[str], None] = lambda line: None,
    log: Callable[[InProcessSession, dict[str, float]], None] = lambda session, metrics: None,
    signs: dict[int, dict[str, Sign]] | None = None,
) -> RunState:
    """Train to the limits of `train`, or until `log` sets `session.stop`; save, and return how far the run has come."""
    learner = InProcessLearner(SleepLearner(learn_s))
    session = InProcessSession(config, make_reward, learner, sample_s, progress)
    session.signs = signs or {}
    checkpoints = Checkpoints(folder, config.checkpoint, progress)
    driver = Driver(session, checkpoints, RunState(), functools.partial(log, session))  # type: ignore[arg-type]
    try:
        with contextlib.suppress(Stopped):
            driver.train(config.object_store_budget_bytes)
        driver.save_unsaved()
    finally:
        session.close()
    return driver.state
