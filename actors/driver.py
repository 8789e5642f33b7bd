"""The driver: the one process that runs the loop. It holds references, floats and the ledger, never a frame or a token.

One path for all staleness: rollout calls are admitted while there are slots, a group's video goes on to the reward pool
as a reference, and the learner trains a step's groups while the other pools work on those that come next.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from actors.checkpointing import Checkpoints, RunState, check_prompts, ready_groups
from actors.cluster.clock import clock_offsets
from actors.cluster.lifecycle import as_actor, stop_actors
from actors.cluster.placement import node_id, on_node
from actors.cluster.plan import absolute_paths, check_disk, check_plan, ray_session, stop_notice
from actors.cluster.waiting import Stopped, stop_on_signals, wait_all
from actors.collector import Collector
from actors.control.commands import Control
from actors.control.scaling import Scaling
from actors.evaluation.client import Judging
from actors.learner.command_queue import StepReport
from actors.learner.group import LearnerGroup, LearnerLost
from actors.learner.in_flight import OrderedStep, UnderWay
from actors.prompts import WATCHING, ConfiguredPrompts, PromptActor, PromptSource, PromptWatch
from actors.reward.pool import RewardPool
from actors.rollout.pool import RolloutPool
from actors.weights.sync import WeightSync
from rlir_ray.algorithm.admission import Admission
from rlir_ray.algorithm.ledger import FILE as LEDGER
from rlir_ray.algorithm.ledger import SkippedUpdates
from rlir_ray.config.sections import Config, TrainConfig
from rlir_ray.data.files import write_json
from rlir_ray.data.prompts import NUM_ALIGNED
from rlir_ray.evaluation.results import BASE, POST_TRAINED, judged_temperatures
from rlir_ray.families import family_of
from rlir_ray.learner.step import Learner
from rlir_ray.local import Reward, check_logprobs, normalised_advantages
from rlir_ray.run.folder import RunFolder, judges_by_reward
from rlir_ray.run.preflight import check_checkpoints, check_engine, check_world
from rlir_ray.run.tracing import TraceRecorder, overlap_metrics, span_since
from rlir_ray.samplers import Sampler

Callback = Callable[[dict[str, float]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    folder: Path
    """The run's folder: policy/, checkpoints/, ledger.json, metrics.jsonl, evaluation.json."""
    num_steps: int
    """Of the whole run, those before a resume included."""
    interrupted: bool
    was_finished: bool
    """Nothing was left to do."""
    metrics: list[dict[str, float]]
    """Of each step, those before a resume included."""
    groups: dict[str, int]
    """Groups in each state of the ledger."""


class Pipeline:
    """Post-trains a policy with three Ray pools.

    Example: ``Pipeline(load_config("doom_tiny_ar"), callbacks=[print]).train()``, in a program of your own or in one
    that has called `ray.init`.

    Args:
        config: resolved.
        callbacks: called with the metrics of each step.
        progress: called with a line for each stage.
        prompts: your own source of prompt sets, called with `train` and `heldout`; None: the configured one.
        make_reward: builds your own reward (`score(videos) -> list[RewardScores]`) in each replica of the reward pool;
            None: the configured inverse reward.
        make_sampler, make_learner: build your own sampler in each rollout actor and your own learner in each rank;
            None: the configured engines.
        trace: file for a Chrome trace of all pools, in a folder that exists; None: none is kept.

    Raises:
        ValueError: a model is missing or of another world, the run's name is taken by a run of another config, or the
            trace's folder is missing.
    """

    def __init__(
        self,
        config: Config,
        callbacks: Sequence[Callback] = (),
        progress: Callable[[str], None] | None = None,
        prompts: PromptSource | None = None,
        make_reward: Callable[[], Reward] | None = None,
        make_sampler: Callable[[], Sampler] | None = None,
        make_learner: Callable[[], Learner] | None = None,
        trace: Path | None = None,
    ) -> None:
        given, config = config, absolute_paths(config)
        self.config = config
        self.frame_shape = check_world(config)
        check_checkpoints(config)
        check_engine(config)
        if trace is not None and not trace.absolute().parent.is_dir():
            raise ValueError(f"a trace must go into an existing folder, got {trace}; make it, or choose another file")
        # It keeps the paths as they were given: a project that is moved finds its files again.
        self.folder = RunFolder(given)
        self.callbacks = [self.folder.log_step, *callbacks]
        self.progress = progress or (lambda stage: None)
        self.make_reward, self.make_sampler, self.make_learner = make_reward, make_sampler, make_learner
        self.prompt_source = prompts or ConfiguredPrompts(config, self.folder.path)
        self.trace, self.recording = trace, TraceRecorder(is_kept=trace is not None)
        self.checkpoints = Checkpoints(self.folder.path, config.checkpoint, self.progress)
        self.run = RunState()
        self.metrics: list[dict[str, float]] = []
        self._stop = threading.Event()
        self._num_restarts, self._saved_step = 0, 0
        self.skipped = SkippedUpdates(config.train.max_skipped_updates)
        self._last_step_at = 0.0
        self.collector: Collector | None = None

    def train(self, *, calibrate: bool = True, evaluate: bool = True) -> TrainResult:
        """The whole run: prompts, calibration, evaluation, the loop, evaluation, saving.

        A run of this name goes on from its newest checkpoint. Ctrl-C, SIGTERM or SIGHUP ends it after the step under
        way; a checkpoint, the policy and the ledger are saved all the same.

        Args:
            calibrate: check the reward on real clips first.
            evaluate: judge the policy before and after.

        Raises:
            ValueError: the plan does not fit, or the prompts or the reward are not usable.
            RuntimeError: a pool failed, with the cause.
            TimeoutError: a pool did not answer within train.wait_timeout_s.
        """
        with self.folder.locked():
            self._go_back(self.checkpoints.read())
            if not self._is_finished(evaluate):
                return self._train(calibrate, evaluate)
        self.progress(
            f"run {self.folder.name} is finished: {self.run.step} steps are trained; to go on raise "
            f"{' and '.join(self.run.limits(self.config.train))} (train.max_minutes=0: no limit), or choose another "
            "run.name"
        )
        return self._result(was_finished=True)

    def _train(self, calibrate: bool, evaluate: bool) -> TrainResult:
        interrupted = False
        # Ray sets a SIGTERM handler of its own when it starts: ours comes after it.
        with ray_session(), stop_on_signals(self._stop):
            if notice := stop_notice():
                self.progress(notice)
            check_disk(self.config, self.folder.path)
            try:
                self.budget_bytes = check_plan(self.config, self.frame_shape, self.progress, self._stop)
                self._start(calibrate, evaluate)
                if evaluate:
                    self._judging().judge_base(is_resumed=self.run.checkpoint is not None)
                self._loop()
                if evaluate:
                    self._judging().judge_all(POST_TRAINED, self._latest())
            except Stopped:
                interrupted = True
            except KeyboardInterrupt:
                self._stop_pools()
                raise
            finally:
                self._leave()
        return self._result(interrupted=interrupted)

    def _is_finished(self, evaluate: bool) -> bool:
        """Whether the same command has nothing left to do."""
        missing = set(self.config.evaluation.temperatures) if evaluate else set()
        missing -= judged_temperatures(self.folder.path, POST_TRAINED, self.run.step)
        has_policy = (self.folder.path / "policy").is_dir()
        return self.run.is_complete(self.config.train) and has_policy and not missing

    def _result(self, *, interrupted: bool = False, was_finished: bool = False) -> TrainResult:
        return TrainResult(
            folder=self.folder.path, num_steps=self.run.step, interrupted=interrupted, was_finished=was_finished,
            metrics=self.metrics, groups=self.run.ledger.counts(),
        )  # fmt: skip

    def stop(self) -> None:
        """Ends the run after the step under way, as Ctrl-C does; for callbacks and other threads."""
        self._stop.set()

    def scale_reward(self, num_replicas: int) -> str:
        """Grows or shrinks the reward pool while `train` runs; for callbacks and other threads. Returns at once.

        The number holds from then on: a pool that scaled by itself no longer does. Replicas that go finish what they
        hold; no group is lost, none counts twice.

        Raises:
            ValueError: fewer than one, more than the cluster can hold, a shared service, or `train` does not run.
        """
        return self._scaling().scale("reward", num_replicas)

    def scale_rollout(self, num_actors: int) -> str:
        """The same for the rollout pool; a new actor serves when it holds the current weights.

        Raises:
            ValueError: fewer than one, more than the cluster can hold, or `train` does not run.
        """
        return self._scaling().scale("rollout", num_actors)

    def _scaling(self) -> Scaling:
        if not hasattr(self, "scaling"):
            raise ValueError(
                "only a run that trains can be scaled, got one that is starting, has ended or was not started; call "
                "it from a callback, or from another thread while train() runs"
            )
        return self.scaling

    def _start(self, calibrate: bool, evaluate: bool) -> None:
        """Starts the pools; they load their models while the prompts are made."""
        config, timeout_s = self.config, self.config.train.wait_timeout_s
        self.control = Control(self.folder.path, lambda pool, number: self._scaling().scale(pool, number))
        self.folder.begin(self.run.step)
        if judges_by_reward(self.folder.path):
            self.progress("models.judge_idm is the reward IDM itself: the judge's figures are no second opinion")
        if self.run.checkpoint:
            self.progress(f"run {self.folder.name} goes on after step {self.run.step}, from {self.run.checkpoint.path}")
        self.progress("starting the pools")
        self._start_learner()
        if len(ray.nodes()) > 1:
            # Ranks ask for the most of a node: actors that are spread first could leave too little on each.
            self.learner.wait_placed(self._stop)
        self.rollout = RolloutPool(config, self.make_sampler)
        self.rollout.start()
        self.progress("making prompts")
        shell = as_actor(PromptActor, scheduling_strategy=on_node(node_id()), concurrency_groups={WATCHING: 1})
        self.prompts = shell.remote(self.prompt_source)
        watch = PromptWatch(self.prompts, self.progress)
        if calibrate or evaluate:
            # It loads its models while the prompts are made.
            self._judging()
        num_clips = {"train": NUM_ALIGNED if calibrate else 0, "heldout": None}
        preparing = [self.prompts.prepare.remote(split, number) for split, number in num_clips.items()]
        needs_shares = config.reward.balance == "class"
        if not needs_shares:
            self._start_reward(None)
        self.prompt_ids = self._ask(preparing[0], "the training prompts", watch)
        self._ask(preparing[1], "the held-out prompts", watch)
        check_prompts(self.run, config.seed, self.prompt_ids)
        self._show_left_out()
        if calibrate:
            self._judging().calibrate()
        if needs_shares:
            self._start_reward(self._ask(self.prompts.class_shares.remote(config.world.groups), "the class shares"))
        self.progress("waiting for the policy in the rollout pool and the learner")
        self.rollout.wait_ready(self._stop)
        self.sync = WeightSync(self.rollout, timeout_s, self.progress)
        self.sync.publish(self.learner.wait_ready(self._stop), self.learner.sender)
        self.recording.offsets = clock_offsets(timeout_s)
        self.scaling = Scaling(self.rollout, self.reward, self.sync, self.progress)

    def _start_learner(self) -> None:
        """Where the run has come to."""
        folder = self.run.checkpoint.path if self.run.checkpoint else None
        self.learner = LearnerGroup(self.config, self.folder.path / ".ray_train", self.make_learner, folder)
        self.learner.start()

    def _show_left_out(self) -> None:
        """One line for all recordings that were left out, and a line for each in run.log: workers' logs stay hidden."""
        num_recordings, lines = self._ask(self.prompts.left_out.remote(), "the recordings that were left out")
        if lines:
            with (self.folder.path / "run.log").open("a", encoding="utf-8") as log:
                log.writelines(f"left out: {line}\n" for line in lines)
            # Of the known ones only as many are opened as the prompts need.
            self.progress(f"left out {len(lines)} recordings, {num_recordings} are known: {lines[0]} (all in run.log)")

    def _start_reward(self, class_shares: dict[str, Any] | None) -> None:
        self.reward = RewardPool(self.config, class_shares, self.make_reward, self.progress)
        self.reward.start(self._stop)

    def _loop(self) -> None:
        """The algorithm. `rlir_ray/local.py` is the same in one process."""
        if self.run.is_complete(self.config.train):
            return  # it went on for the evaluation alone
        collector = self._collector()
        self.progress(f"training: {describe_limits(self.config.train)}")
        while not self.run.is_complete(self.config.train):
            try:
                self._step(collector)
                if self.run.is_complete(self.config.train):
                    # Before the evaluation: what ends the run there costs no step.
                    self.under_way.drain()
                    self._save()
                elif len(self.under_way):
                    continue
                elif self.checkpoints.is_due(self.run.step) and not self.skipped.num_in_a_row:
                    # While updates are skipped the older checkpoints stay: the newest policy may be what spoils them.
                    self._save_checkpoint()
            except LearnerLost as loss:
                collector = self._recover(loss)
                continue
            except Stopped:
                # What the learner has begun is trained to its end, and saved.
                self.under_way.drain()
                raise
            self._evaluate_between(self.run.step)
            if not len(self.under_way):
                # A checkpoint and an evaluation are no part of the next step.
                self._count_time()
            if self._stop.is_set():
                raise Stopped
        self.progress(f"trained {self.run.step} steps: {' and '.join(self.run.limits(self.config.train))} is reached")

    def _step(self, collector: Collector) -> None:
        """Collects the groups of a step and orders it; ends when the learner has enough to do."""
        train, started = self.config.train, time.time()
        ordered = self.run.step + len(self.under_way)
        groups = collector.collect(version=ordered, num_steps_left=train.num_steps - ordered)
        wait = self.recording.add("driver", f"wait for the groups of step {ordered + 1}", span_since(started))
        check_logprobs(self.config, [group.report.difference for group in groups])
        # Sampling and scoring of the groups that were admitted ahead go on meanwhile.
        advantages = normalised_advantages(self.config, [group.advantages for group in groups])
        self.under_way.order(OrderedStep(groups, wait), advantages)
        del groups
        # The next order waits at the learner, which so need not wait for us; but nothing may follow what ends here.
        self.under_way.drain(most=0 if self._is_rest(ordered + 1) else 1)

    def _is_rest(self, step: int) -> bool:
        """Whether the loop waits for the end of this step, because something is done between it and the next."""
        train, every = self.config.train, self.config.evaluation.every
        is_evaluated = bool(every) and step % every == 0
        is_last = step == train.num_steps or self._stop.is_set()
        return not train.max_staleness or is_last or is_evaluated or self.checkpoints.is_due(step)

    def _finished(self, step: OrderedStep, report: StepReport) -> None:
        """The learner has done a step: its weights go to the rollout pool, its groups' slots come free."""
        assert self.collector is not None
        self.sync.publish(report, self.learner.sender)
        self.collector.trained(step.groups, report.skipped)
        self.run.step += 1
        seconds = self._count_time()
        if len(self.under_way) and not (self.run.is_complete(self.config.train) or self._stop.is_set()):
            # The loop may wait for the step that follows: the slots that came free are used meanwhile.
            self.collector.admit(self.config.train.num_steps - self.run.step - len(self.under_way))
        metrics = self.collector.metrics(step.groups, report.version - 1, step.wait)
        metrics |= _times(self.run.step, report, step.wait.seconds, seconds)
        self._log(metrics | self._overlap(metrics, report))
        self.skipped.add(self.run.step, report.skipped)

    def _count_time(self) -> float:
        """Seconds since the last step, or since the rest after it; they count as training time."""
        now = time.monotonic()
        seconds, self._last_step_at = now - self._last_step_at, now
        self.run.trained_s += seconds
        return seconds

    def _collector(self) -> Collector:
        """Where the run has come to: groups of its checkpoint that were not trained are ready, or sampled again."""
        train = self.config.train
        self.under_way = UnderWay(self.learner, self._finished)
        collector = Collector(
            self.config, self.run.ledger,
            Admission(train.max_staleness, train.prompts_per_step, self.budget_bytes), self._submit,
            prompt_ids=self.prompt_ids, stop=self._stop,
            group_bytes=family_of(self.config).group_bytes(self.config, self.frame_shape),
            recording=self.recording, progress=self.progress, doing=self._doing, learner=self.under_way,
        )  # fmt: skip
        collector.restore(ready_groups(self.run, train.wait_timeout_s))
        self.collector, self._last_step_at = collector, time.monotonic()
        return collector

    def _doing(self) -> str:
        """What the pools are busy with, for the message of a wait that was too long."""
        found = []
        for pool in (self.rollout, self.reward, self.learner):
            # Fault tolerance: the wait itself is what the user must hear of.
            with contextlib.suppress(Exception):
                found.append(pool.doing())
        return "; ".join(each for each in found if each)

    def _overlap(self, metrics: Mapping[str, float], report: StepReport) -> dict[str, float]:
        self.recording.add("learner", f"step {metrics['step']:.0f}", report.span)
        stages = {
            "sample": (metrics["time/sample_s"], self.rollout.num_actors()),
            "score": (metrics["time/score_s"], self.reward.num_replicas()),
            "learn": (report.span.seconds, 1),
        }
        return overlap_metrics(stages, metrics["time/step_s"])

    def _submit(self, group_ids: Sequence[int], seeds: Sequence[int], prompt_indices: Sequence[int]) -> list[Any]:
        """One rollout call, and the scoring of its videos as soon as they exist: the driver passes references on."""
        refs = self.rollout.sample(group_ids, seeds, self.prompts.prompts.remote(prompt_indices))
        return [(each, self.reward.score(each.video_ref)) for each in refs]

    def _log(self, metrics: dict[str, float]) -> None:
        self.metrics.append(metrics)
        for callback in self.callbacks:
            callback(metrics)

    # -----------------------------------------------------------------------------------------------------------------
    # Going on from a checkpoint

    def _save(self) -> None:
        """The policy first: where the run's last checkpoint is, its policy is as well."""
        self.progress("saving the policy and a checkpoint")
        self.learner.save(self.folder.path / "policy")
        self._save_checkpoint()
        self._saved_step = self.run.step

    def _save_checkpoint(self) -> None:
        self.checkpoints.write(self.run, self.learner, self.collector.ready() if self.collector else [])
        write_json(self.folder.path / LEDGER, json.loads(self.run.ledger.to_json()))

    def _go_back(self, run: RunState) -> None:
        """To the start or to a checkpoint: ledger, step and metrics are those of then."""
        self.run, self.metrics = run, self.folder.metrics(run.step)

    def _recover(self, loss: LearnerLost) -> Collector:
        """New learner ranks where the newest checkpoint is; the other pools stay.

        Raises:
            LearnerLost: it has happened too often.
        """
        most, lost_at = self.config.learner.max_restarts, self.run.step + 1
        assert self.collector is not None
        while True:
            if self._num_restarts >= most:
                raise loss
            self._num_restarts += 1
            self.learner.stop()
            self._go_back(self.checkpoints.read())
            self.folder.cut(self.run.step)
            self.progress(
                f"the learner was lost in step {lost_at} ({loss}); new ranks go on after step {self.run.step} (restart "
                f"{self._num_restarts} of learner.max_restarts={most})"
            )
            self._start_learner()
            self.collector.wind_up()
            self.sync.forget()
            try:
                self.sync.publish(self.learner.wait_ready(self._stop), self.learner.sender)
            except LearnerLost as again:
                loss = again
                continue
            return self._collector()

    # -----------------------------------------------------------------------------------------------------------------
    # Evaluation

    def evaluate(self, name: str, temperature: float, *, keep_clips: bool = False) -> dict[str, float]:
        """Judges the latest published weights, or as `base` those before training; the results go to the run's folder.

        Returns:
            `reward/accuracy`, `reward/macro_f1`, `judge/accuracy` and `judge/macro_f1`.
        """
        # Of a run that goes on, the base is no longer what is published.
        return self._judging().judge(name, temperature, None if name == BASE else self._latest(), keep_clips=keep_clips)

    def _judging(self) -> Judging:
        """From its first use on."""
        if not hasattr(self, "judging"):
            self.judging = Judging(self.config, self.folder.path, self.prompts, self.progress, self._stop)
        return self.judging

    def _latest(self) -> StepReport:
        assert self.sync.latest is not None, "evaluate inside a run: no weights are published yet"
        return self.sync.latest

    def _evaluate_between(self, step: int) -> None:
        every = self.config.evaluation.every
        if every and step % every == 0 and step < self.config.train.num_steps:
            self.evaluate(f"step {step}", self.config.evaluation.temperatures[0])

    def _ask(self, ref: ray.ObjectRef, who: str, meanwhile: Callable[[], None] = lambda: None) -> Any:
        """A small answer of the prompt actor, bounded, and given up when the user stops the run."""
        return wait_all([ref], self.config.train.wait_timeout_s, who, stop=self._stop, meanwhile=meanwhile)[0]

    # -----------------------------------------------------------------------------------------------------------------
    # Leaving

    def _leave(self) -> None:
        """Saves what there is, whatever ended the run, and stops the pools."""
        try:
            self._save_rest()
            self.run.ledger.fail_in_flight("the run ended before it was trained")
            if self.folder.has_begun:
                write_json(self.folder.path / LEDGER, json.loads(self.run.ledger.to_json()))
            if self.trace is not None:
                write_json(self.trace, self.recording.events())
        finally:
            self._stop_pools()
            self.folder.close()

    def _save_rest(self) -> None:
        """What was trained since the last saving, where the learner is well; the steps that it has begun included.

        A run that ends because updates were skipped keeps the checkpoints of before.
        """
        if not hasattr(self, "learner") or self.learner.has_failed or self.skipped.is_too_many:
            return
        for _ in range(len(self.under_way) if hasattr(self, "under_way") else 0):
            # Fault tolerance: a callback that raises ends the run once, and it must hear of that.
            with contextlib.suppress(Exception):
                self.under_way.drain()
        # A step that was cut off between its update and the ledger is none to go on from.
        if self.run.step not in (0, self._saved_step) and self.learner.holds(self.run.step):
            self._save()

    def _stop_pools(self) -> None:
        for name in ("control", "scaling"):
            if hasattr(self, name):
                getattr(self, name).close()
                delattr(self, name)
        for name in ("rollout", "reward", "learner", "judging"):
            if hasattr(self, name):
                getattr(self, name).stop()
                delattr(self, name)
        if hasattr(self, "prompts"):
            stop_actors([self.prompts])
            del self.prompts


def describe_limits(train: TrainConfig) -> str:
    """What ends the training, said when it starts."""
    steps = f"at most {train.num_steps} steps (train.num_steps)"
    return f"{steps}, at most {train.max_minutes:g} minutes (train.max_minutes)" if train.max_minutes else steps


def _times(step: int, report: StepReport, waited_s: float, seconds: float) -> dict[str, float]:
    return {
        "step": step, "policy_version": report.version, **report.metrics,
        "time/wait_s": waited_s, "time/learn_s": report.span.seconds, "time/step_s": seconds,
    }  # fmt: skip
