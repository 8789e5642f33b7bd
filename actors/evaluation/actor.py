"""The evaluation actor: judges policies, checks the reward, and writes the results into the run's folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from actors.cluster.files import send_folder
from actors.cluster.placement import node_id
from actors.reward.external import ExternalTerm
from rlir_ray.algorithm.guidance import NO_GUIDANCE
from rlir_ray.config import Config
from rlir_ray.data.digests import used_models
from rlir_ray.data.files import write_json
from rlir_ray.data.prompts import PromptSet
from rlir_ray.evaluation.alarms import Sign, signs
from rlir_ray.evaluation.audit import audit_on, reward_on, write_audit
from rlir_ray.evaluation.evaluate import evaluate_policy, evaluate_real
from rlir_ray.evaluation.results import BASE, REAL, Results, record_ceiling, record_evaluation
from rlir_ray.families import evaluation_sampler, open_codec, open_policy
from rlir_ray.idm.base import InverseDynamics, load_inverse_dynamics
from rlir_ray.rewards.calibration import audit_model
from rlir_ray.rewards.combined import CombinedReward

CALIBRATION_FILE = "calibration.json"
# All runs use the same seed, so that their results are comparable.
EVALUATION_SEED = 20_250_928
# Clips of each kind in the audit before a run; the command `audit` takes more.
NUM_AUDITED = 48


class EvaluationActor:
    """The Ray actor with the policy, the codec and the inverse dynamics models of an evaluation.

    Args:
        config: the run's configuration; checkpoints, world and engine are read.
        run_dir: folder for evaluation.json, calibration.json and the videos.
        num_threads: number of torch threads.
        home: id of the node of `run_dir`; empty: this node.
        audits_reward: whether the run trains with the configured reward, which `calibrate` audits.
    """

    def __init__(
        self, config: Config, run_dir: Path, num_threads: int, home: str = "", *, audits_reward: bool = True
    ) -> None:
        torch.set_num_threads(num_threads)
        self.audits_reward = audits_reward
        self.config, self.run_dir, self.target = config, run_dir, run_dir
        self.home = home if home and home != node_id() else ""
        if self.home:
            # Keep the results on this node as well: a new evaluation is compared with earlier ones.
            self._own = tempfile.TemporaryDirectory(prefix="rlir_evaluation_")
            self.run_dir = Path(self._own.name)
        device = "cuda" if config.evaluation.num_gpus else "cpu"
        self.policy, self._has_loaded = open_policy(config, device).eval(), False
        self.tokenizer = open_codec(config).to(device)
        models = used_models(config)
        self.idms: dict[str, InverseDynamics] = {
            name: load_inverse_dynamics(models[key]).to(device)
            for name, key in (("reward", "reward_idm"), ("judge", "judge_idm"))
            if key in models
        }

    def calibrate(self, prompt_set: PromptSet, train_set: PromptSet) -> list[str]:
        """Check the run's inverse dynamics models on real clips.

        Args:
            prompt_set: held-out prompts, for all checks.
            train_set: training prompts, for the check that actions and frames are aligned.

        Returns:
            One line for each model that failed, with reward.audit=warn, and each fault of the reward.

        Raises:
            ValueError: actions and frames are not aligned, a model reads corrupted clips as well as real clips, or a
                policy could fool the reward.
        """
        clips = {
            "the training recordings": (train_set.frames, train_set.recorded),
            "the held-out recordings": (prompt_set.frames, prompt_set.recorded),
        }
        found, faults = {}, []
        for name, idm in self.idms.items():
            audit = audit_model(idm, f"models.{name}_idm", clips, self.config.world.groups)
            if audit.fault and self.config.reward.audit == "refuse":
                raise ValueError(audit.fault)
            faults += [audit.fault] if audit.fault else []
            found[name] = {"macro_f1": audit.shifts, "gate": audit.kinds, "fault": audit.fault}
        write_json(self.run_dir / CALIBRATION_FILE, found)
        faults += self._audit_reward(train_set)
        self._send()
        return faults

    def _audit_reward(self, train_set: PromptSet) -> list[str]:
        """Audit the configured reward in short; return its faults, or raise the first of them.

        A whole reward of the user's own is only warned of: its goal may not be that clips obey their actions.
        """
        config = self.config
        if not self.audits_reward:
            return []
        open_external = partial(ExternalTerm, timeout_s=config.train.wait_timeout_s / 2)
        reward = reward_on(config, train_set, self.tokenizer, open_external)
        audit = audit_on(config, reward, self.tokenizer, train_set[:NUM_AUDITED])
        write_audit(audit, self.run_dir, config.recipe or "the reward")
        if audit.faults and config.reward.audit == "refuse" and isinstance(reward, CombinedReward):
            raise ValueError(f"{audit.faults[0]}; reward.audit=warn trains all the same")
        return list(audit.faults)

    def ceiling(self, prompt_set: PromptSet) -> None:
        """Judge real clips, and real clips that the tokenizer has encoded and decoded."""
        ceiling, clips = evaluate_real(
            prompt_set,
            self.tokenizer,
            self.idms,
            self.config.world,
            EVALUATION_SEED,
            num_videos=self.config.evaluation.num_videos,
            judge_context=self.config.evaluation.judge_context,
        )
        record_ceiling(self.run_dir, ceiling, clips)
        self._send()

    def evaluate(
        self,
        prompt_set: PromptSet,
        weights: Mapping[str, npt.NDArray[np.generic]] | None,
        version: int,
        name: str,
        temperature: float,
        keep_clips: bool,
        num_prompts: int = 0,
        guidance: float = NO_GUIDANCE,
    ) -> dict[str, float]:
        """Judge one policy at one temperature and guidance; return each inverse dynamics model's figures for the log.

        Args:
            prompt_set: held-out prompts.
            weights: the policy's weights; None: the weights before training, allowed only before any other weights.
            version: version of the weights.
            name: name of the policy in the results.
            temperature: sampling temperature.
            keep_clips: whether the clips go into the report.
            num_prompts: number of prompts; 0: all.
            guidance: scale of the action guidance.
        """
        settings = self.config.evaluation
        prompt_set = prompt_set[: num_prompts or len(prompt_set)]
        sampler = evaluation_sampler(self.config, self.policy, temperature, guidance)
        if weights is not None:
            sampler.load_weights(weights, version)
            self._has_loaded = True
        assert weights is not None or not self._has_loaded, "the base policy is judged before any other"
        evaluation, clips = evaluate_policy(
            sampler,
            prompt_set,
            self.tokenizer,
            self.idms,
            self.config.world,
            temperature,
            EVALUATION_SEED,
            name=name,
            num_videos=settings.num_videos,
            judge_context=settings.judge_context,
            guidance=guidance,
        )
        record_evaluation(self.run_dir, evaluation, clips if keep_clips else None)
        self._send()
        return {
            f"{idm}/{figure}": float(getattr(following, figure))
            for idm, following in evaluation.following.items()
            for figure in following.headline
        }

    def signs(self, name: str) -> dict[str, Sign]:
        """Compare a judged policy with the base and with real clips; empty: these were not judged."""
        results = Results.load(self.run_dir)
        base, now, real = results.find(BASE), results.find(name), results.ceiling.get(REAL)
        if base is None or now is None or real is None:
            return {}
        return signs(base, now, real)

    def _send(self) -> None:
        """Copy the results into the run's folder if it is on another node."""
        if self.home:
            send_folder(self.run_dir, self.home, self.target)
