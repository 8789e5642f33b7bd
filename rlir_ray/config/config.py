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
from rlir_ray.config.train import TrainConfig
from rlir_ray.config.world import DataConfig, PromptsConfig, WorldConfig

# How often a group is sampled or scored in vain, for the end of its actor, before it fails.
MAX_ATTEMPTS = 4


@section("")
class Config:
    recipe: FolderName = ""
    """Name of the recipe."""
    seed: NonNegativeInt = 0
    """Seed of the run; a group's seed follows from this seed and the group's number, on whatever worker."""
    object_store_budget_bytes: NonNegativeInt = 0
    """Bytes of groups in flight, above which sampling waits; 0: the free object store."""
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
        """`none`, `token` or `sequence`: how stale groups are weighed."""
        return "none" if self.policy.family == "flow" else self.train.importance_level

    @property
    def has_clip(self) -> bool:
        """Whether ratios can leave 1: there is one update for each set of groups, and weights take the ratio out."""
        return self.train.objective == "grpo" and self.train.max_staleness > 0 and self.importance_level == "none"

    @property
    def uses_nccl(self) -> bool:
        """Whether weights can go from GPU to GPU; NCCL takes no GPU that two actors share."""
        return self.learner.use_gpu and self.rollout.num_gpus >= 1

    @property
    def broadcasts_weights(self) -> bool:
        return self.weights.transfer == "broadcast" or (self.weights.transfer == "auto" and self.uses_nccl)

    @property
    def rollout_timeout_s(self) -> float:
        """Of a sampling call. All attempts together end before the wait for them does."""
        return self.rollout.timeout_s or self.train.wait_timeout_s / (MAX_ATTEMPTS + 1)

    @property
    def reward_timeout_s(self) -> float:
        """Of groups that are read together; as `rollout_timeout_s`."""
        return self.reward.timeout_s or self.train.wait_timeout_s / (MAX_ATTEMPTS + 1)

    def to_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)

    @model_validator(mode="after")
    def _check_timeouts(self) -> Self:
        longest = max(self.rollout_timeout_s, self.reward_timeout_s)
        require(
            MAX_ATTEMPTS * longest < self.train.wait_timeout_s,
            "train.wait_timeout_s",
            f"must be above {MAX_ATTEMPTS} attempts of rollout.timeout_s and of reward.timeout_s",
            self.train.wait_timeout_s,
            f"set train.wait_timeout_s={(MAX_ATTEMPTS + 1) * longest:g} or lower those",
        )
        return self

    @model_validator(mode="after")
    def _check_adapter(self) -> Self:
        if self.lora.rank and self.train.kl_coefficient and not self.models.adapter:
            # The reference is the policy without its adapter, which no rank holds whole at stage 3.
            require(
                self.learner.zero_stage < 3,
                "learner.zero_stage",
                "must be < 3 with lora.rank and a KL penalty",
                self.learner.zero_stage,
                "set learner.zero_stage=2",
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
        if family == "flow":
            self._check_flow()
        elif family == "autoregressive":
            self._check_autoregressive()
        return self

    @model_validator(mode="after")
    def _check_reward(self) -> Self:
        if self.reward.name != "inverse":
            require(
                not self.reward.address,
                "reward.address",
                f"must be empty with reward.name={self.reward.name}",
                self.reward.address,
                "leave it out: a service shares the inverse reward",
            )
            return self
        require(
            bool(self.models.reward_idm),
            "models.reward_idm",
            "must name a folder with reward.name=inverse",
            "",
            "set models.reward_idm=PATH, or reward.name=package.module:Class for a reward of your own",
        )
        require(
            not self.reward.args,
            "reward.args",
            "must be empty with reward.name=inverse",
            self.reward.args,
            "use the other reward.* keys",
        )
        return self

    def _check_autoregressive(self) -> None:
        rule = "without policy.family=flow"
        require(
            self.train.objective != "nft",
            "train.objective",
            f"must be grpo {rule}",
            "nft",
            "set train.objective=grpo",
        )
        require(
            self.train.ratio == "plain",
            "train.ratio",
            f"must be plain {rule}",
            self.train.ratio,
            "set train.ratio=plain",
        )

    def _check_flow(self) -> None:
        require(
            self.rollout.temperature == 1,
            "rollout.temperature",
            "must be 1 with policy.family=flow",
            self.rollout.temperature,
            "explore with flow.noise_level",
        )
        require(
            self.train.importance in ("auto", "none"),
            "train.importance",
            "must be none with policy.family=flow, whose log-probabilities are means over a latent's numbers",
            self.train.importance,
            "leave it out",
        )
        require(
            self.evaluation.top_p == 1,
            "evaluation.top_p",
            "must be 1 with policy.family=flow",
            self.evaluation.top_p,
            "vary evaluation.temperatures instead",
        )
        if self.train.objective == "nft":
            self._check_nft()
        elif self.flow.sde == "cps":
            self._check_cps()

    def _check_nft(self) -> None:
        require(
            not self.flow.shared_noise,
            "flow.shared_noise",
            "must be false with train.objective=nft, or the clips of a group are one and the same",
            self.flow.shared_noise,
            "set flow.shared_noise=false",
        )
        require(
            self.train.ratio == "plain",
            "train.ratio",
            "must be plain with train.objective=nft, which has no ratio",
            self.train.ratio,
            "set train.ratio=plain",
        )

    def _check_cps(self) -> None:
        # Its log-probabilities are no densities, and its last step has no noise to divide by.
        require(
            self.train.ratio == "plain",
            "train.ratio",
            "must be plain with flow.sde=cps",
            self.train.ratio,
            "set flow.sde=flow_grpo or train.ratio=plain",
        )
        require(
            self.flow.skip_last or not self.train.kl_coefficient,
            "flow.skip_last",
            "must be true with flow.sde=cps and a KL penalty",
            self.flow.skip_last,
            "set flow.skip_last=true",
        )
