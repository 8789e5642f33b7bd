"""The public interface of a distributed run: checks, the run's folder, and one call that trains."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.checkpointing import Checkpoints, RunState
from actors.cluster.plan import check_disk, check_plan
from actors.cluster.start import ray_session, stop_notice
from actors.cluster.waiting import Stopped, stop_on_signals
from actors.driver import Driver
from actors.rollout.prompt_actor import PromptSource
from actors.session import Builders, Session, not_training
from rlir_ray.algorithm.guidance import NO_GUIDANCE
from rlir_ray.config import Config
from rlir_ray.data.files import write_json
from rlir_ray.evaluation.results import POST_TRAINED, judged_samplings
from rlir_ray.learner.step import Learner
from rlir_ray.rewards.base import Reward
from rlir_ray.run.folder import RunFolder
from rlir_ray.run.preflight import check_checkpoints, check_engine, check_libraries
from rlir_ray.run.resolved import check_reward_idm, resolve
from rlir_ray.run.tracing import TraceRecorder
from rlir_ray.samplers import Sampler

Callback = Callable[[dict[str, float]], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """The result of `Pipeline.train`."""

    folder: Path
    """The run's folder: policy/, checkpoints/, ledger.json, metrics.jsonl, evaluation.json."""
    num_steps: int
    """Number of steps of the whole run, including steps before a resume."""
    interrupted: bool
    """Whether the user ended the run before its limits."""
    was_finished: bool
    """Whether the run was complete before this call, so that the call did nothing."""
    metrics: list[dict[str, float]]
    """The metrics of each step, including steps before a resume."""
    groups: dict[str, int]
    """Number of groups in each state of the ledger."""


class Pipeline:
    """The post-training of a policy with three Ray pools.

    Example: ``Pipeline(load_config("doom_tiny_ar"), callbacks=[print]).train()``. The program may have called
    `ray.init` before; otherwise the pipeline starts Ray.

    Args:
        config: the configuration, as `load_config` returns it.
        callbacks: called with the metrics of each step.
        progress: called with a line for each stage.
        prompts: your own source of prompt sets, called with `train` and `heldout`; None: the configured one.
        make_reward: builds your own reward (`score(videos) -> list[RewardScores]`) in each replica of the reward pool;
            `reward.name` and `models.reward_idm` are not read then. None: the configured reward.
        make_sampler: builds your own sampler in each rollout actor; None: the configured engine.
        make_learner: builds your own learner in each learner rank; None: the configured engine.
        trace: file for a Chrome trace of all pools, in an existing folder; None: no trace is kept.

    Raises:
        ValueError: a model is missing or belongs to another world, a run with another configuration has the same name,
            or the trace's folder is missing.
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
        if make_reward is None:
            check_reward_idm(config)
        else:
            # The configured reward is not built, and nothing reads its inverse dynamics model.
            config = replace(config, models=replace(config.models, reward_idm=""))
        self.run = resolve(config)
        self.config = self.run.config
        check_checkpoints(self.run.models)
        check_engine(self.config)
        check_libraries(self.config, own_prompts=prompts is not None)
        if trace is not None and not trace.absolute().parent.is_dir():
            raise ValueError(f"a trace must go into an existing folder, got {trace}; make it, or choose another file")
        # Keep the paths in the folder as the user gave them: relative paths still work after a project is moved.
        self.folder = RunFolder(config)
        self.callbacks = [self.folder.log_step, *callbacks]
        self.progress = progress or (lambda stage: None)
        self.builders = Builders(
            prompts=prompts, make_reward=make_reward, make_sampler=make_sampler, make_learner=make_learner
        )
        self.trace = trace
        self.driver: Driver | None = None
        """The driver of the last `train`; None before the first."""
        self._stop = threading.Event()

    def train(self, *, calibrate: bool = True, evaluate: bool = True) -> TrainResult:
        """Run all stages: prompts, calibration, evaluation, the training loop, saving, evaluation.

        If the run exists, resume it from its newest checkpoint. Ctrl-C, SIGTERM or SIGHUP ends the run after the step
        in flight; the run still saves a checkpoint, the policy and the ledger.

        Args:
            calibrate: whether to check the reward on real clips before training.
            evaluate: whether to judge the policy before and after training.

        Raises:
            ValueError: the plan does not fit, or the prompts or the reward are not usable.
            RuntimeError: a pool failed, with the cause.
            TimeoutError: a pool did not answer within train.wait_timeout_s.
        """
        with self.folder.locked():
            checkpoints = Checkpoints(self.folder.path, self.config.checkpoint, self.progress)
            state = checkpoints.read()
            if not self._is_finished(state, evaluate):
                return self._train(checkpoints, state, calibrate, evaluate)
        self.progress(
            f"run {self.folder.name} is finished: {state.step} steps are trained; to go on raise "
            f"{' and '.join(state.limits(self.config.train))} (train.max_minutes=0: no limit), or choose another "
            "run.name"
        )
        return self._result(state, was_finished=True)

    def _train(self, checkpoints: Checkpoints, state: RunState, calibrate: bool, evaluate: bool) -> TrainResult:
        interrupted = False
        recording = TraceRecorder(is_kept=self.trace is not None)
        session = Session(self.run, self.folder, self.builders, recording, self.progress, self._stop)
        self.driver = driver = Driver(session, checkpoints, state, self._log)
        with contextlib.ExitStack() as exit_stack:
            # Ray sets its own SIGTERM handler when it starts: set our handlers after that.
            exit_stack.enter_context(ray_session())
            exit_stack.enter_context(stop_on_signals(self._stop))
            if notice := stop_notice():
                self.progress(notice)
            check_disk(self.run, self.folder.path)
            exit_stack.callback(self.folder.close)
            exit_stack.callback(session.close)
            exit_stack.callback(self._save_on_exit, driver, recording)
            try:
                budget_bytes = check_plan(self.run, self.progress, self._stop)
                session.start(state, calibrate=calibrate, evaluate=evaluate)
                if evaluate:
                    session.evaluation.judge_base(is_resumed=state.checkpoint is not None)
                driver.train(budget_bytes)
                if evaluate:
                    session.evaluation.judge_all(POST_TRAINED, session.latest())
            except Stopped:
                interrupted = True
            except KeyboardInterrupt:
                # This is the second Ctrl-C: end at once.
                session.close()
                raise
        return self._result(driver.state, interrupted=interrupted)

    def _save_on_exit(self, driver: Driver, recording: TraceRecorder) -> None:
        """Save the unsaved steps, the ledger and the trace, whatever ended the run."""
        driver.save_unsaved()
        driver.state.ledger.fail_in_flight("the run ended before it was trained")
        if self.folder.has_begun:
            driver.checkpoints.write_ledger(driver.state)
        if self.trace is not None:
            write_json(self.trace, recording.events())

    def _is_finished(self, state: RunState, evaluate: bool) -> bool:
        """Return whether training and evaluation are complete, so that `train` has nothing left to do."""
        missing = set(self.config.evaluation.samplings) if evaluate else set()
        missing -= judged_samplings(self.folder.path, POST_TRAINED, state.step)
        has_policy = (self.folder.path / "policy").is_dir()
        return state.is_complete(self.config.train) and has_policy and not missing

    def _result(self, state: RunState, *, interrupted: bool = False, was_finished: bool = False) -> TrainResult:
        return TrainResult(
            folder=self.folder.path,
            num_steps=state.step,
            interrupted=interrupted,
            was_finished=was_finished,
            metrics=state.metrics,
            groups=state.ledger.counts(),
        )

    def _log(self, metrics: dict[str, float]) -> None:
        for callback in self.callbacks:
            callback(metrics)

    def stop(self) -> None:
        """End the run after the step in flight, as Ctrl-C does. Call this from a callback or another thread."""
        self._stop.set()

    def scale_reward(self, num_replicas: int) -> str:
        """Grow or shrink the reward pool while `train` runs. Call this from a callback or another thread.

        The call returns at once, with a line that describes the change. The number stays fixed from then on: a pool
        that scaled by its queue no longer does. Removed replicas first finish their groups; no group is lost or counted
        twice.

        Raises:
            ValueError: the number is below 1 or more than the cluster can hold, the reward is a shared service, or
                `train` does not run.
        """
        return self._session().scale("reward", num_replicas)

    def scale_rollout(self, num_actors: int) -> str:
        """Grow or shrink the rollout pool while `train` runs; see `scale_reward`.

        A new actor serves as soon as it holds the current weights.

        Raises:
            ValueError: the number is below 1 or more than the cluster can hold, or `train` does not run.
        """
        return self._session().scale("rollout", num_actors)

    def evaluate(
        self, name: str, temperature: float, *, keep_clips: bool = False, guidance: float = NO_GUIDANCE
    ) -> dict[str, float]:
        """Judge the latest version, or its moving average if there is one; write the results into the run's folder.

        Args:
            name: name of the policy in the results; `base` judges the weights before training instead.
            temperature: sampling temperature.
            keep_clips: whether the clips go into the report.
            guidance: scale of the action guidance; 1: none.

        Returns:
            `reward/FIGURE` and `judge/FIGURE` of each headline figure: `accuracy` and `macro_f1` of classes,
            `axis_error` and `r2` of graded axes.
        """
        return self._session().evaluate(name, temperature, keep_clips=keep_clips, guidance=guidance)

    def _session(self) -> Session:
        if self.driver is None:
            raise not_training()
        return self.driver.session
