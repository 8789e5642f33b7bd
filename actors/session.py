"""The parts of a run: pools, learner, prompts, evaluation and control, started in order and stopped together."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from actors.checkpointing import RunState, check_prompts
from actors.cluster.clock import clock_offsets
from actors.cluster.lifecycle import as_actor, stop_actors
from actors.cluster.placement import node_id, on_node
from actors.cluster.waiting import wait_all
from actors.control.commands import Control
from actors.control.scaling import Scaling
from actors.evaluation.client import EvaluationClient
from actors.learner.command_queue import StepReport
from actors.learner.group import LearnerGroup
from actors.reward.pool import RewardPool
from actors.rollout.pool import RolloutPool
from actors.rollout.prompts import WATCHING, ConfiguredPrompts, PromptActor, PromptSource, PromptWatch
from actors.weights.sync import WeightSync
from rlir_ray.config import Config
from rlir_ray.data.prompts import NUM_ALIGNED
from rlir_ray.evaluation.results import BASE
from rlir_ray.learner.step import Learner
from rlir_ray.rewards.base import Reward
from rlir_ray.run.checkpoint import Checkpoint
from rlir_ray.run.folder import RunFolder, judges_by_reward
from rlir_ray.run.tracing import TraceRecorder, overlap_metrics
from rlir_ray.samplers import Sampler


@dataclass(frozen=True, kw_only=True, slots=True)
class Builders:
    """The user's own parts; None: the configured ones."""

    prompts: PromptSource | None = None
    make_reward: Callable[[], Reward] | None = None
    make_sampler: Callable[[], Sampler] | None = None
    make_learner: Callable[[], Learner] | None = None


class Session:
    """Start all parts with `start`; `close` stops those that were started, the newest first.

    Args:
        config: resolved.
        folder: the run's folder.
        builders: of parts of the user's own.
        recording: gets the clocks' offsets.
        progress: called with a line for each stage.
        stop: gives up waits when it is set.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        builders: Builders,
        recording: TraceRecorder,
        progress: Callable[[str], None],
        stop: threading.Event,
    ) -> None:
        self.config, self.folder, self.builders = config, folder, builders
        self.recording, self.progress, self.stop = recording, progress, stop
        self.learner: LearnerGroup | None = None
        self.scaling: Scaling | None = None
        """While the run trains."""
        self._parts = contextlib.ExitStack()

    def start(self, state: RunState, *, calibrate: bool, evaluate: bool) -> None:
        """Start the pools; they load their models while the prompts are made.

        Raises:
            ValueError: the prompts or the reward are not usable.
            RuntimeError: a pool failed.
            TimeoutError: a pool did not answer within train.wait_timeout_s.
        """
        # First of all: it refuses a run whose name trains in this Ray already, before the folder changes.
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
            # Ranks need the most of a node: actors that are spread first could leave too little on each node.
            learner.wait_placed(self.stop)
        self.rollout = RolloutPool(self.config, self.builders.make_sampler)
        self._parts.callback(self.rollout.stop)
        self.rollout.start()
        self._prepare_prompts(state, calibrate, evaluate)
        self.progress("waiting for the policy in the rollout pool and the learner")
        self.rollout.wait_ready(self.stop)
        self.sync = WeightSync(self.rollout, self.config.train.wait_timeout_s, self.progress)
        self.publish_ready(learner)
        self.recording.offsets = clock_offsets(self.config.train.wait_timeout_s)
        # The ranks end while the pools are stopped.
        self._parts.callback(lambda: self.learner and self.learner.end())
        self.scaling = Scaling(self.rollout, self.reward, self.sync, self.progress)
        self._parts.enter_context(contextlib.closing(self.scaling))

    def start_learner(self, checkpoint: Checkpoint | None) -> LearnerGroup:
        """Start learner ranks where the run has come to."""
        folder = checkpoint.path if checkpoint else None
        storage = self.folder.path / ".ray_train"
        self.learner = LearnerGroup(self.config, storage, self.builders.make_learner, folder)
        self.learner.start()
        return self.learner

    def publish_ready(self, learner: LearnerGroup) -> None:
        """Wait for new learner ranks and publish the weights that they hold."""
        self.sync.publish(learner.wait_ready(self.stop), learner.sender)

    def stop_learner(self) -> None:
        """Stop the ranks, if there are any; `learner` is None from then on."""
        learner, self.learner = self.learner, None
        if learner is not None:
            learner.stop()

    def _prepare_prompts(self, state: RunState, calibrate: bool, evaluate: bool) -> None:
        """Make the prompts; calibrate and start the reward pool as soon as it has what it needs."""
        self.progress("making prompts")
        shell = as_actor(PromptActor, scheduling_strategy=on_node(node_id()), concurrency_groups={WATCHING: 1})
        self.prompts = shell.remote(self.builders.prompts or ConfiguredPrompts(self.config, self.folder.path))
        self._parts.callback(stop_actors, [self.prompts])
        watch = PromptWatch(self.prompts, self.progress)
        if calibrate or evaluate:
            # The evaluation actor loads its models while the prompts are made.
            _ = self.evaluation
        num_clips = {"train": NUM_ALIGNED if calibrate else 0, "heldout": None}
        preparing = [self.prompts.prepare.remote(split, number) for split, number in num_clips.items()]
        needs_shares = self.config.reward.balance == "class"
        if not needs_shares:
            self._start_reward(None)
        self.prompt_ids: list[str] = self._ask(preparing[0], "the training prompts", watch)
        self._ask(preparing[1], "the held-out prompts", watch)
        check_prompts(state, self.config.seed, self.prompt_ids)
        self._show_left_out()
        if calibrate:
            self.evaluation.calibrate()
        if needs_shares:
            shares = self.prompts.class_shares.remote(self.config.world.groups)
            self._start_reward(self._ask(shares, "the class shares"))

    def _start_reward(self, class_shares: dict[str, Any] | None) -> None:
        self.reward = RewardPool(self.config, class_shares, self.builders.make_reward)
        self._parts.callback(self.reward.stop)
        self.reward.start(self.stop)

    def _show_left_out(self) -> None:
        """Show one line for all recordings that were left out; run.log gets a line for each recording."""
        num_recordings, lines = self._ask(self.prompts.left_out.remote(), "the recordings that were left out")
        if lines:
            # Workers' logs stay hidden.
            with (self.folder.path / "run.log").open("a", encoding="utf-8") as log:
                log.writelines(f"left out: {line}\n" for line in lines)
            # Only as many of the known recordings are opened as the prompts need.
            self.progress(f"left out {len(lines)} recordings, {num_recordings} are known: {lines[0]} (all in run.log)")

    def _ask(self, ref: ray.ObjectRef, who: str, meanwhile: Callable[[], None] = lambda: None) -> Any:
        """Wait for a small answer of the prompt actor."""
        return wait_all([ref], self.config.train.wait_timeout_s, who, stop=self.stop, meanwhile=meanwhile)[0]

    @functools.cached_property
    def evaluation(self) -> EvaluationClient:
        """Started at its first use."""
        client = EvaluationClient(self.config, self.folder.path, self.prompts, self.progress, self.stop)
        self._parts.callback(client.stop)
        return client

    def evaluate(self, name: str, temperature: float, *, keep_clips: bool = False) -> dict[str, float]:
        """Judge the latest published weights, or as `base` those before training."""
        # After a resume the base is no longer what is published.
        latest = None if name == BASE else self.latest()
        return self.evaluation.judge(name, temperature, latest, keep_clips=keep_clips)

    def latest(self) -> StepReport:
        """The step whose weights were published last."""
        assert self.sync.latest is not None, "evaluate inside a run: no weights are published yet"
        return self.sync.latest

    def submit(self, group_ids: Sequence[int], seeds: Sequence[int], prompt_indices: Sequence[int]) -> list[Any]:
        """Submit one rollout call, and the scoring of its videos as soon as they exist, by reference alone."""
        refs = self.rollout.sample(group_ids, seeds, self.prompts.prompts.remote(prompt_indices))
        return [(each, self.reward.score(each.video_ref)) for each in refs]

    def overlap(self, metrics: Mapping[str, float], report: StepReport) -> dict[str, float]:
        """Record a step of the learner; return how far the three stages overlapped in it."""
        self.recording.add("learner", f"step {metrics['step']:.0f}", report.span)
        stages = {
            "sample": (metrics["time/sample_s"], self.rollout.num_actors()),
            "score": (metrics["time/score_s"], self.reward.num_replicas()),
            "learn": (report.span.seconds, 1),
        }
        return overlap_metrics(stages, metrics["time/step_s"])

    def activity(self) -> str:
        """What the pools are busy with, for the message of a wait that was too long."""
        found = []
        for pool in (self.rollout, self.reward, self.learner):
            # Fault tolerance: the user must hear of the wait itself.
            with contextlib.suppress(Exception):
                found.append(pool.activity() if pool is not None else "")
        return "; ".join(each for each in found if each)

    def scale(self, pool: str, number: int) -> str:
        """Scale a pool; see `Scaling.scale`."""
        if self.scaling is None:
            raise not_training()
        return self.scaling.scale(pool, number)

    def close(self) -> None:
        """Stop what was started; a second call does nothing."""
        self.scaling = None
        self._parts.close()


def not_training() -> ValueError:
    """Say that there are no pools that could be scaled or evaluated."""
    return ValueError(
        "only a run that trains can be scaled or evaluated, got one that is starting, has ended or was not started; "
        "call it from a callback, or from another thread while train() runs"
    )
