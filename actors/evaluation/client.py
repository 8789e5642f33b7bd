"""The driver's client of the evaluation actor, which checks the reward and judges policies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import ray

from actors.cluster.placement import Handle, as_actor, node_cpus, node_id, on_node, ray_options, stop_actors
from actors.cluster.waiting import Value, wait_all
from actors.evaluation.actor import EvaluationActor
from actors.learner.command_queue import StepReport
from rlir_ray.algorithm.guidance import NO_GUIDANCE
from rlir_ray.config import Config
from rlir_ray.data.prompts import PromptSet
from rlir_ray.evaluation.alarms import Sign
from rlir_ray.evaluation.results import BASE, judged_samplings


class EvaluationClient:
    """A client that starts the evaluation actor, which loads its models in the background.

    Args:
        config: the run's configuration; `evaluation` and the models are read.
        folder: the run's folder, for results and clips.
        prompts: the prompt actor.
        progress: called with a line for each stage.
        stop: event that ends waits early.
        audits_reward: whether the run trains with the configured reward.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        prompts: Handle,
        progress: Callable[[str], None],
        stop: threading.Event,
        *,
        audits_reward: bool = True,
    ) -> None:
        self.config, self.folder, self.prompts, self.progress, self.stopping = config, folder, prompts, progress, stop
        home, evaluation = node_id(), config.evaluation
        # Without a GPU the actor takes no resources: pin it to the driver's node, which an autoscaler keeps.
        strategy = "DEFAULT" if evaluation.num_gpus else on_node(home)
        shell = as_actor(EvaluationActor, **ray_options(evaluation, scheduling_strategy=strategy))
        # The pools are idle during an evaluation, so the actor may use every core of its node.
        self.actor = shell.remote(config, folder, node_cpus(), home, audits_reward=audits_reward)
        self._heldout_ref: ray.ObjectRef[PromptSet] | None = None

    def calibrate(self) -> None:
        """Check the reward on real clips.

        Raises:
            ValueError: the reward is not usable, or actions and frames are not aligned.
        """
        self.progress("checking the reward on real clips")
        train_set = self.prompts.pop_clips.remote("train")
        faults: ray.ObjectRef[list[str]] = self.actor.calibrate.remote(self._heldout(), train_set)
        for fault in self._wait(faults, "the calibration"):
            self.progress(f"warning: {fault}")

    def judge_base(self, *, is_resumed: bool) -> None:
        """Judge real clips and the policy before training; skip this if a resumed run has these results."""
        wanted = set(self.config.evaluation.samplings)
        if is_resumed and not wanted - judged_samplings(self.folder, BASE, 0):
            return
        self.progress("judging real clips and the base policy")
        self._wait(self.actor.ceiling.remote(self._heldout()), "the judgement of real clips")
        self.judge_all(BASE, None)

    def judge_all(self, name: str, latest: StepReport | None) -> None:
        """Judge a policy at every temperature and guidance; the clips of the first go into the report."""
        self.progress(f"judging the {name} policy")
        samplings = self.config.evaluation.samplings
        for temperature, guidance in samplings:
            is_first = (temperature, guidance) == samplings[0]
            self.judge(name, temperature, latest, keep_clips=is_first, guidance=guidance)

    def judge(
        self,
        name: str,
        temperature: float,
        latest: StepReport | None,
        *,
        keep_clips: bool = False,
        num_prompts: int = 0,
        guidance: float = NO_GUIDANCE,
    ) -> dict[str, float]:
        """Judge a policy at one temperature and guidance; return the figures for the log.

        Args:
            name: name of the policy in the results.
            temperature: sampling temperature.
            latest: report of the step whose weights are judged; None: the weights before training.
            keep_clips: whether the clips go into the report.
            num_prompts: number of held-out prompts; 0: all.
            guidance: scale of the action guidance.
        """
        weights, version = (None, 0) if latest is None else (latest.judged_ref, latest.version)
        ref: ray.ObjectRef[dict[str, float]] = self.actor.evaluate.remote(
            self._heldout(), weights, version, name, temperature, keep_clips, num_prompts, guidance
        )
        return self._wait(ref, f"the judgement of the {name} policy")

    def judge_interim(self, step: int, latest: StepReport) -> tuple[dict[str, float], dict[str, Sign]]:
        """Judge a policy in training on a few prompts; return the figures, and the signs of a fooled reward."""
        evaluation, name = self.config.evaluation, f"step {step}"
        self.progress(f"judging the policy of step {step}")
        (temperature, guidance), num_prompts = evaluation.samplings[0], evaluation.num_interim_prompts
        figures = self.judge(name, temperature, latest, num_prompts=num_prompts, guidance=guidance)
        ref: ray.ObjectRef[dict[str, Sign]] = self.actor.signs.remote(name)
        return figures, self._wait(ref, f"the comparison of the policy of step {step}")

    def _heldout(self) -> ray.ObjectRef[PromptSet]:
        """Put the held-out prompts into the object store once, for all evaluations."""
        if self._heldout_ref is None:
            self._heldout_ref = self.prompts.pop_clips.remote("heldout")
        return self._heldout_ref

    def _wait(self, ref: ray.ObjectRef[Value], awaited: str) -> Value:
        return wait_all([ref], self.config.train.wait_timeout_s, awaited, stop=self.stopping)[0]

    def stop(self) -> None:
        stop_actors([self.actor])
