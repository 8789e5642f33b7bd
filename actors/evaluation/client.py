"""Ask the evaluation actor to check the reward and to judge policies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import ray

from actors.cluster.lifecycle import Handle, as_actor, stop_actors
from actors.cluster.placement import node_cpus, node_id, on_node, ray_options
from actors.cluster.waiting import Value, wait_all
from actors.evaluation.actor import EvaluationActor
from actors.learner.command_queue import StepReport
from rlir_ray.config import Config
from rlir_ray.data.prompts import PromptSet
from rlir_ray.evaluation.results import BASE, judged_temperatures


class EvaluationClient:
    """Start the evaluation actor, which loads its models in the background.

    Args:
        config: `evaluation` and the models are read.
        folder: of the run; results and clips go there.
        prompts: the prompt actor.
        progress: called with a line for each stage.
        stop: gives up waits when it is set.
    """

    def __init__(
        self, config: Config, folder: Path, prompts: Handle, progress: Callable[[str], None], stop: threading.Event
    ) -> None:
        self.config, self.folder, self.prompts, self.progress, self.stopping = config, folder, prompts, progress, stop
        home, evaluation = node_id(), config.evaluation
        # On the run's own node, or where a GPU is free.
        strategy = "DEFAULT" if evaluation.num_gpus else on_node(home)
        shell = as_actor(EvaluationActor, **ray_options(evaluation, scheduling_strategy=strategy))
        # The pools are idle during an evaluation: the actor may use every core of its node.
        self.actor = shell.remote(config, folder, node_cpus(), home)
        self._heldout_ref: ray.ObjectRef[PromptSet] | None = None

    def calibrate(self) -> None:
        """Check the reward on real clips.

        Raises:
            ValueError: the reward is not usable, or actions and frames do not fit.
        """
        self.progress("checking the reward on real clips")
        train_set = self.prompts.hand_over.remote("train")
        self._ask(self.actor.calibrate.remote(self._heldout(), train_set), "the calibration")

    def judge_base(self, *, is_resumed: bool) -> None:
        """Judge real clips and the policy before training; skip this where a resumed run has done so."""
        temperatures = self.config.evaluation.temperatures
        if is_resumed and not set(temperatures) - judged_temperatures(self.folder, BASE, 0):
            return
        self.progress("judging real clips and the base policy")
        self._ask(self.actor.ceiling.remote(self._heldout()), "the judgement of real clips")
        self.judge_all(BASE, None)

    def judge_all(self, name: str, latest: StepReport | None) -> None:
        """Judge a policy at every temperature; the clips of the first temperature go into the report."""
        self.progress(f"judging the {name} policy")
        temperatures = self.config.evaluation.temperatures
        for temperature in temperatures:
            self.judge(name, temperature, latest, keep_clips=temperature == temperatures[0])

    def judge(
        self, name: str, temperature: float, latest: StepReport | None, *, keep_clips: bool = False
    ) -> dict[str, float]:
        """Judge published weights; None: the weights before training."""
        weights, version = (None, 0) if latest is None else (latest.weights_refs[0], latest.version)
        ref: ray.ObjectRef[dict[str, float]] = self.actor.evaluate.remote(
            self._heldout(), weights, version, name, temperature, keep_clips
        )
        return self._ask(ref, f"the judgement of the {name} policy")

    def _heldout(self) -> ray.ObjectRef[PromptSet]:
        """Put the held-out prompts into the object store once, for all evaluations."""
        if self._heldout_ref is None:
            self._heldout_ref = self.prompts.hand_over.remote("heldout")
        return self._heldout_ref

    def _ask(self, ref: ray.ObjectRef[Value], who: str) -> Value:
        return wait_all([ref], self.config.train.wait_timeout_s, who, stop=self.stopping)[0]

    def stop(self) -> None:
        stop_actors([self.actor])
