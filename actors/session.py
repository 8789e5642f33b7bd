"""The parts of a run: pools, learner, prompts, evaluation and control. They start in order and stop together."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import ray

from actors.checkpointing import RunState, check_prompts
from actors.cluster.clock import clock_offsets
from actors.cluster.placement import as_actor, node_id, on_node, stop_actors
from actors.cluster.waiting import Value, wait_all
from actors.control.commands import Control
from actors.control.scaling import Scaling
from actors.evaluation.client import EvaluationClient
from actors.evaluation.watch import Watch
from actors.learner.command_queue import StepReport
from actors.learner.group import LearnerGroup
from actors.reward.pool import RewardPool
from actors.reward.replica import ScoreReport
from actors.rollout.pool import GroupRefs, RolloutPool
from actors.rollout.prompt_actor import (
    WATCHING,
    ConfiguredPrompts,
    PromptActor,
    PromptProgress,
    PromptSource,
    real_videos,
)
from actors.weights.sync import WeightSync
from rlir_ray.algorithm.guidance import NO_GUIDANCE
from rlir_ray.data.prompts import NUM_ALIGNED
from rlir_ray.evaluation.results import BASE
from rlir_ray.learner.step import Learner
from rlir_ray.registry import any_declares
from rlir_ray.rewards.base import Reward
from rlir_ray.run.checkpoint import Checkpoint
from rlir_ray.run.folder import RunFolder, judges_by_reward
from rlir_ray.run.resolved import ResolvedRun
from rlir_ray.run.tracing import TraceRecorder, overlap_metrics
from rlir_ray.samplers import Sampler


@dataclass(frozen=True, kw_only=True, slots=True)
class Builders:
    """The user's own parts of a run; None: the configured part."""

    prompts: PromptSource | None = None
    make_reward: Callable[[], Reward] | None = None
    make_sampler: Callable[[], Sampler] | None = None
    make_learner: Callable[[], Learner] | None = None


class Session:
    """The running parts of a run. `start` starts all parts; `close` stops the started parts, newest first.

    Args:
        run: the resolved run.
        folder: the run's folder.
        builders: builders of the user's own parts.
        recording: receives the offsets of the nodes' clocks.
        progress: called with a line for each stage.
        stop: event that ends waits early.
    """

    def __init__(
        self,
        run: ResolvedRun,
        folder: RunFolder,
        builders: Builders,
        recording: TraceRecorder,
        progress: Callable[[str], None],
        stop: threading.Event,
    ) -> None:
        self.run, self.config, self.folder, self.builders = run, run.config, folder, builders
        self.recording, self.progress, self.stop = recording, progress, stop
        self.learner: LearnerGroup | None = None
        self.scaling: Scaling | None = None
        """The scaling of the pools; None: the run does not train."""
        self.watch = Watch(run.config.evaluation, progress)
        self._parts = contextlib.ExitStack()

    def start(self, state: RunState, *, calibrate: bool, evaluate: bool) -> None:
        """Start the pools, which load their models while the prompts are made.

        Args:
            state: the state that the run continues from.
            calibrate: whether to check the reward on real clips.
            evaluate: whether the run judges the policy before and after training.

        Raises:
            ValueError: the prompts or the reward are not usable.
            RuntimeError: a pool failed.
            TimeoutError: a pool did not answer within train.wait_timeout_s.
        """
        # Start the control first: it rejects a run whose name already trains in this Ray, before the folder changes.
        self._parts.enter_context(contextlib.closing(Control(self.folder.path, self.scale)))
        self.folder.begin(state.step)
        if judges_by_reward(self.folder.path):
            self.progress("models.judge_idm is the reward IDM itself: the judge's figures are no second opinion")
        if state.checkpoint:
            self.progress(f"run {self.folder.name} resumes after step {state.step}, from {state.checkpoint.path}")
        self.progress("starting the pools")
        self._parts.callback(self.stop_learner)
        learner = self.start_learner(state.checkpoint)
        if len(ray.nodes()) > 1:
            # Place the ranks first, because they need the most of a node: other actors, spread over the nodes, could
            # leave too little on each node.
            learner.wait_placed(self.stop)
        self.rollout = RolloutPool.from_config(self.config, self.builders.make_sampler)
        self._parts.callback(self.rollout.stop)
        self.rollout.start()
        self._prepare_prompts(state, calibrate, evaluate)
        self.progress("waiting for the policy in the rollout pool and the learner")
        self.rollout.wait_ready(self.stop)
        self.sync = WeightSync.from_config(self.config, self.rollout, self.progress)
        self.publish_ready(learner)
        self.recording.offsets = clock_offsets(self.config.train.wait_timeout_s)
        # Parts stop in reverse order: the ranks end while the pools stop.
        self._parts.callback(self._end_learner)
        self.scaling = Scaling(
            self.rollout,
            self.reward,
            self.sync,
            self.progress,
            # An autoscaler may add nodes to a run that waits for nodes.
            nodes_may_join=self.config.run.wait_for_nodes_s > 0,
        )
        self._parts.enter_context(contextlib.closing(self.scaling))

    def start_learner(self, checkpoint: Checkpoint | None) -> LearnerGroup:
        """Start learner ranks that resume from a checkpoint; None: from the beginning."""
        folder = checkpoint.path if checkpoint else None
        storage = self.folder.path / ".ray_train"
        self.learner = LearnerGroup.from_config(self.config, storage, self.builders.make_learner, folder)
        self.learner.start()
        return self.learner

    def publish_ready(self, learner: LearnerGroup) -> None:
        """Wait for new learner ranks and publish their weights."""
        self.sync.publish(learner.wait_ready(self.stop), learner.sender)

    def _end_learner(self) -> None:
        if self.learner is not None:
            self.learner.end()

    def stop_learner(self) -> None:
        """Stop the ranks, if any are running, and set `learner` to None."""
        learner, self.learner = self.learner, None
        if learner is not None:
            learner.stop()

    def _prepare_prompts(self, state: RunState, calibrate: bool, evaluate: bool) -> None:
        """Make the prompts, calibrate, and start the reward pool as early as its configuration allows."""
        self.progress("making prompts")
        shell = as_actor(PromptActor, scheduling_strategy=on_node(node_id()), concurrency_groups={WATCHING: 1})
        self.prompts = shell.remote(self.builders.prompts or ConfiguredPrompts(self.config, self.folder.path))
        self._parts.callback(stop_actors, [self.prompts])
        report_progress = PromptProgress(self.prompts, self.progress)
        if calibrate or evaluate:
            # Start the evaluation actor now: it loads its models while the prompts are made.
            _ = self.evaluation
        reads_real = self.builders.make_reward is None and any_declares(
            "rewards", self.config.reward.local_names, "reads_real"
        )
        num_clips = {"train": NUM_ALIGNED if calibrate or reads_real else 0, "heldout": None}
        preparing = [self.prompts.prepare.remote(split, number) for split, number in num_clips.items()]
        needs_shares = self.config.reward.balance == "class"
        if not (needs_shares or reads_real):
            self._start_reward(None)
        self.prompt_ids: list[str] = self._wait(preparing[0], "the training prompts", report_progress)
        self._wait(preparing[1], "the held-out prompts", report_progress)
        check_prompts(state, self.config.seed, self.prompt_ids)
        self._show_skipped()
        if reads_real:
            self._wait(self.prompts.encode_real.remote(self.config), "the encoded real clips")
        if calibrate:
            self.evaluation.calibrate()
        if needs_shares or reads_real:
            shares = self.prompts.class_shares.remote(self.config.world.groups)
            self._start_reward(self._wait(shares, "the class shares") if needs_shares else None)

    def _start_reward(self, class_shares: Mapping[str, npt.NDArray[np.floating]] | None) -> None:
        real = functools.partial(real_videos, self.prompts, self.config.train.wait_timeout_s)
        self.reward = RewardPool.from_config(self.config, class_shares, self.builders.make_reward, real)
        self._parts.callback(self.reward.stop)
        self.reward.start(self.stop)

    def _show_skipped(self) -> None:
        """Show one line about all recordings that were left out; write a line for each of them into run.log."""
        num_recordings, lines = self._wait(self.prompts.skipped.remote(), "the recordings that were left out")
        if lines:
            # Write to the file here: the logs of workers are not shown.
            with (self.folder.path / "run.log").open("a", encoding="utf-8") as log:
                log.writelines(f"left out: {line}\n" for line in lines)
            # Name both numbers: a source opens only as many of its recordings as the prompts need.
            self.progress(f"left out {len(lines)} recordings, {num_recordings} are known: {lines[0]} (all in run.log)")

    def _wait(self, ref: ray.ObjectRef[Value], awaited: str, meanwhile: Callable[[], None] = lambda: None) -> Value:
        """Wait for a small answer of the prompt actor."""
        return wait_all([ref], self.config.train.wait_timeout_s, awaited, stop=self.stop, meanwhile=meanwhile)[0]

    @functools.cached_property
    def evaluation(self) -> EvaluationClient:
        """Return the client of the evaluation actor; the first use starts the actor."""
        client = EvaluationClient(
            self.config,
            self.folder.path,
            self.prompts,
            self.progress,
            self.stop,
            audits_reward=self.builders.make_reward is None,
        )
        self._parts.callback(client.stop)
        return client

    def evaluate(
        self, name: str, temperature: float, *, keep_clips: bool = False, guidance: float = NO_GUIDANCE
    ) -> dict[str, float]:
        """Judge the latest version, or its moving average; with the name `base`, judge the weights before training."""
        # The published weights are not the base after a resume: the evaluation actor loads the base itself.
        latest = None if name == BASE else self.latest()
        return self.evaluation.judge(name, temperature, latest, keep_clips=keep_clips, guidance=guidance)

    def evaluate_interim(self, step: int) -> None:
        """Judge the weights of a step on a few prompts, and raise the alarms that follow."""
        self.watch.after_evaluation(*self.evaluation.judge_interim(step, self.latest()))

    def latest(self) -> StepReport:
        """Return the report whose weights were published last."""
        assert self.sync.latest is not None, "evaluate inside a run: no weights are published yet"
        return self.sync.latest

    def submit(
        self, group_ids: Sequence[int], seeds: Sequence[int], prompt_indices: Sequence[int]
    ) -> list[tuple[GroupRefs, Future[ScoreReport]]]:
        """Submit one rollout call and the scoring of its videos; only references pass through the driver."""
        refs = self.rollout.sample(group_ids, seeds, self.prompts.prompts.remote(prompt_indices))
        return [(each, self.reward.score(each.video_ref)) for each in refs]

    def overlap(self, metrics: Mapping[str, float], report: StepReport) -> dict[str, float]:
        """Record the learner's span of a step; return the metrics of the overlap of the three stages."""
        self.recording.add("learner", f"step {metrics['step']:.0f}", report.span)
        stages = {
            "sample": (metrics["time/sample_s"], self.rollout.num_actors()),
            "score": (metrics["time/score_s"], self.reward.num_replicas()),
            "learn": (report.span.seconds, 1),
        }
        return overlap_metrics(stages, metrics["time/step_s"])

    def activity(self) -> str:
        """Describe the current work of the pools, for the message of a timeout."""
        found = []
        for pool in (self.rollout, self.reward, self.learner):
            # Fault tolerance: an error here must not hide the timeout from the user.
            with contextlib.suppress(Exception):
                found.append(pool.activity() if pool is not None else "")
        return "; ".join(each for each in found if each)

    def scale(self, pool: str, number: int) -> str:
        """Scale a pool, as `Scaling.scale` does; raise ValueError if the run does not train."""
        if self.scaling is None:
            raise not_training()
        return self.scaling.scale(pool, number)

    def close(self) -> None:
        """Stop the started parts; a second call does nothing."""
        self.scaling = None
        self._parts.close()


def not_training() -> ValueError:
    """Return the error for a run without running pools."""
    return ValueError(
        "only a run that trains can be scaled or evaluated, got one that is starting, has ended or was not started; "
        "call it from a callback, or from another thread while train() runs"
    )
