"""The whole configuration. Defaults run the embedded Doom world on two CPU cores."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Self

from pydantic import model_validator

from rlir_ray.config.learner import LearnerConfig, WeightsConfig
from rlir_ray.config.messages import require
from rlir_ray.config.models import ArchitectureConfig, LoraConfig, ModelsConfig, PolicyConfig
from rlir_ray.config.reward import RewardConfig
from rlir_ray.config.rollout import FlowConfig, RolloutConfig, VllmConfig
from rlir_ray.config.run import CheckpointConfig, EvaluationConfig, RunConfig
from rlir_ray.config.section import FolderName, NonNegativeInt, section
from rlir_ray.config.train import REGRESSION, TrainConfig
from rlir_ray.config.world import DataConfig, PromptsConfig, WorldConfig

# Most attempts to sample or to score a group whose actor or replica dies each time; then the group fails, because it
# probably crashes them itself.
MAX_ATTEMPTS = 4


@section("")
class Config:
    """The whole configuration of a run."""

    recipe: FolderName = ""
    """Name of the recipe."""
    seed: NonNegativeInt = 0
    """Seed of the run; a group's seed depends on this seed and the group's number, not on the worker."""
    object_store_budget_bytes: NonNegativeInt = 0
    """Most bytes of the groups in flight; above this bound sampling waits. 0: the free object store."""
    run: RunConfig = field(default_factory=RunConfig)
    world: WorldConfig = field(default_factory=WorldConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def importance_level(self) -> str:
        """Level of the importance weights of stale groups: `none`, `token` or `sequence`."""
        return "none" if self.policy.family == "flow" else self.train.importance_level

    @property
    def stores_logprobs(self) -> bool:
        """Whether rollouts store log-probabilities, or for `cfm_ratio` flow-matching errors in their place."""
        train = self.train
        return self.policy.family != "flow" or train.explores or train.objective == "cfm_ratio"

    @property
    def has_clip(self) -> bool:
        """Whether the clip of the ratio can act."""
        return self.train.objective == "grpo" and self.train.has_clip(self.importance_level)

    @property
    def uses_nccl(self) -> bool:
        """Whether weights can go from GPU to GPU; NCCL does not work on a GPU that two actors share."""
        return self.learner.use_gpu and self.rollout.num_gpus >= 1

    @property
    def broadcasts_weights(self) -> bool:
        """Whether published weights are broadcast to the rollout actors."""
        return self.weights.transfer == "broadcast" or (self.weights.transfer == "auto" and self.uses_nccl)

    @property
    def guidance_scales(self) -> dict[str, float]:
        """The largest scale of the action guidance by its key; 1: no guidance."""
        return {"rollout.guidance": self.rollout.guidance, "evaluation.guidance": max(self.evaluation.guidance)}

    @property
    def rollout_timeout_s(self) -> float:
        """Bound of a sampling call. By default all attempts together end before the driver's wait for them."""
        return self.rollout.timeout_s or self.train.wait_timeout_s / (MAX_ATTEMPTS + 1)

    @property
    def reward_timeout_s(self) -> float:
        """Bound of a batch of groups in a reward replica. The default is that of `rollout_timeout_s`."""
        return self.reward.timeout_s or self.train.wait_timeout_s / (MAX_ATTEMPTS + 1)

    def to_dict(self) -> dict[str, object]:
        """Return the configuration as nested dictionaries."""
        return dataclasses.asdict(self)

    @model_validator(mode="after")
    def _check_timeouts(self) -> Self:
        longest = max(self.rollout_timeout_s, self.reward_timeout_s)
        require(
            MAX_ATTEMPTS * longest < self.train.wait_timeout_s,
            "train.wait_timeout_s",
            f"must be above {MAX_ATTEMPTS} attempts of rollout.timeout_s and of reward.timeout_s",
            self.train.wait_timeout_s,
            f"set train.wait_timeout_s={(MAX_ATTEMPTS + 1) * longest:g} or lower the other two",
        )
        return self

    @model_validator(mode="after")
    def _check_adapter(self) -> Self:
        require(
            not self.train.reference_every or not (self.lora.rank or self.models.adapter),
            "train.reference_every",
            "must be 0 with an adapter, whose reference is the policy that it started from",
            self.train.reference_every,
            "leave it out or train all weights (lora.rank=0, no models.adapter)",
        )
        if self.lora.rank and self.train.needs_reference and not self.models.adapter:
            # The reference policy is the policy without its adapter, and at stage 3 no rank holds all its weights.
            require(
                self.learner.zero_stage < 3,
                "learner.zero_stage",
                "must be < 3 with lora.rank and a reference (a KL penalty, or train.objective=flow_dpo)",
                self.learner.zero_stage,
                "set learner.zero_stage=2",
            )
        return self

    @model_validator(mode="after")
    def _check_supervised(self) -> Self:
        require(
            not self.train.supervised_coefficient or self.prompts.actions == "recorded",
            "prompts.actions",
            "must be recorded with train.supervised_coefficient, because only recorded actions have a recorded future",
            self.prompts.actions,
            "set prompts.actions=recorded or train.supervised_coefficient=0",
        )
        return self

    @model_validator(mode="after")
    def _check_guidance(self) -> Self:
        for key, scale in self.guidance_scales.items():
            require(
                scale == 1 or self.policy.family in ("flow", "autoregressive"),
                key,
                f"must be 1 with policy.family={self.policy.family}",
                scale,
                "leave it out",
            )
        require(
            self.rollout.guidance == 1 or self.rollout.engine == "torch",
            "rollout.guidance",
            "must be 1 with rollout.engine=vllm",
            self.rollout.guidance,
            "set rollout.engine=torch",
        )
        require(
            self.rollout.guidance == 1 or self.policy.family != "flow" or self.train.explores,
            "rollout.guidance",
            f"must be 1 with train.objective={self.train.objective}, which trains the velocity with the action alone",
            self.rollout.guidance,
            "set train.objective=grpo",
        )
        require(
            self.flow.guidance_rescale == 0 or max(self.guidance_scales.values()) > 1,
            "flow.guidance_rescale",
            "must be 0 without guidance",
            self.flow.guidance_rescale,
            "set rollout.guidance or evaluation.guidance above 1",
        )
        return self

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        family = self.policy.family
        require(
            family == "autoregressive" or self.rollout.engine == "torch",
            "rollout.engine",
            f"must be torch with policy.family={family}",
            self.rollout.engine,
            "leave it out, or set policy.family=autoregressive",
        )
        require(
            family == "autoregressive" or self.rollout.restrict,
            "rollout.restrict",
            f"must be true with policy.family={family}",
            False,
            "leave it out, or set policy.family=autoregressive",
        )
        if family == "flow":
            self._check_flow()
        elif family == "autoregressive":
            self._check_autoregressive()
        return self

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        combine, train = self.reward.combine, self.train
        if combine == "rewards":
            return self
        require(
            train.advantage == "grpo",
            "train.advantage",
            f"must be grpo with reward.combine={combine}, where reward.terms[].normalize says how each term is scaled",
            train.advantage,
            "leave it out",
        )
        if combine == "losses":
            require(
                train.objective == "grpo" and (self.has_clip or train.max_advantage > 0),
                "reward.combine",
                "must be advantages where no loss is clipped (train.objective=grpo with stale groups and no importance "
                "weights, or train.max_advantage > 0): summed losses then equal the loss of summed advantages",
                combine,
                "set reward.combine=advantages",
            )
        return self

    def _check_autoregressive(self) -> None:
        rule = "without policy.family=flow"
        require(
            self.train.explores or self.train.objective in REGRESSION,
            "train.objective",
            f"must be grpo, {' or '.join(REGRESSION)} {rule}",
            self.train.objective,
            "set train.objective=grpo",
        )
        require(
            self.train.grpo.ratio == "plain",
            "train.grpo.ratio",
            f"must be plain {rule}",
            self.train.grpo.ratio,
            "set train.grpo.ratio=plain",
        )

    def _check_flow(self) -> None:
        require(
            not self.train.entropy_coefficient,
            "train.entropy_coefficient",
            "must be 0 with policy.family=flow, whose noise is set",
            self.train.entropy_coefficient,
            "explore with flow.noise_level",
        )
        require(
            "entropy" not in self.evaluation.stop_on,
            "evaluation.stop_on",
            "must not name entropy with policy.family=flow, whose noise is set",
            ",".join(self.evaluation.stop_on),
            "leave entropy out",
        )
        require(
            self.train.grpo.loss == "clip",
            "train.grpo.loss",
            "must be clip with policy.family=flow, whose ratios are no likelihood ratios",
            self.train.grpo.loss,
            "leave it out",
        )
        require(
            self.train.kl_estimator == "k3",
            "train.kl_estimator",
            "must be k3 with policy.family=flow, whose KL is computed exactly",
            self.train.kl_estimator,
            "leave it out",
        )
        require(
            self.rollout.temperature == 1,
            "rollout.temperature",
            "must be 1 with policy.family=flow",
            self.rollout.temperature,
            "explore with flow.noise_level",
        )
        require(
            self.train.off_policy.importance in ("auto", "none"),
            "train.off_policy.importance",
            "must be none with policy.family=flow, whose log-probabilities are means over a latent's numbers",
            self.train.off_policy.importance,
            "leave it out",
        )
        require(
            self.evaluation.top_p == 1,
            "evaluation.top_p",
            "must be 1 with policy.family=flow",
            self.evaluation.top_p,
            "vary evaluation.temperatures instead",
        )
        if not self.train.explores:
            self._check_clean_latents()
        elif self.flow.sde == "cps":
            self._check_cps()

    def _check_clean_latents(self) -> None:
        rule = f"with train.objective={self.train.objective}"
        require(
            not self.flow.shared_noise,
            "flow.shared_noise",
            f"must be false {rule}, or all clips of a group are equal",
            self.flow.shared_noise,
            "set flow.shared_noise=false",
        )
        require(
            self.train.grpo.ratio == "plain",
            "train.grpo.ratio",
            f"must be plain {rule}, which has no ratio of SDE steps",
            self.train.grpo.ratio,
            "set train.grpo.ratio=plain",
        )

    def _check_cps(self) -> None:
        # CPS log-probabilities are no densities, which `guard` needs. The last step of CPS has a standard deviation of
        # zero, by which the KL would divide.
        require(
            self.train.grpo.ratio == "plain",
            "train.grpo.ratio",
            "must be plain with flow.sde=cps",
            self.train.grpo.ratio,
            "set flow.sde=flow_grpo or train.grpo.ratio=plain",
        )
        require(
            self.flow.skip_last or not self.train.kl_coefficient,
            "flow.skip_last",
            "must be true with flow.sde=cps and a KL penalty",
            self.flow.skip_last,
            "set flow.skip_last=true",
        )
