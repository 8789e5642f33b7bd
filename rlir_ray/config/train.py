"""The training: its length, its groups, its objective and its bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlir_ray.config.messages import require
from rlir_ray.config.section import (
    FLOAT,
    INT,
    Arguments,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    ObjectiveName,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    section,
)


@section("train.grpo")
class GrpoConfig:
    """The clipped surrogate; read with train.objective=grpo."""

    ratio: Literal["plain", "guard"] = "plain"
    """`plain`: policy over behavior; `guard`: GRPO-Guard's normalised ratio, for SDE steps."""
    clip_low: OpenFraction = 0.2
    """Lower clip of the ratio, 1 - clip_low, for stale groups without importance weights."""
    clip_high: PositiveFloat = 0.28
    """Upper clip of the ratio, 1 + clip_high (DAPO's separate upper clip)."""


@section("train.nft")
class NftConfig:
    """DiffusionNFT; read with train.objective=nft."""

    beta: PositiveFloat = 1.0
    """Distance of the implicit policies from the sampling policy."""
    num_levels: PositiveInt = 2
    """Noise levels at which each frame is compared in a step."""
    max_decay: FractionBelowOne = 0.5
    """Highest decay of the sampling policy, a moving average of the trained policy; the decay rises by 0.001 a step."""


@section("train.fpo")
class FpoConfig:
    """FPO's ratios of flow-matching errors; read with train.objective=cfm_ratio."""

    num_pairs: PositiveInt = 8
    """Pairs of a noise level and a noise at which each frame's error is measured; each is a decision."""
    error: Literal["velocity", "noise"] = "velocity"
    """Error of the predicted `velocity`, or of the `noise` it implies, which counts pairs near pure noise less."""
    ratio: Literal["frame", "pair"] = "frame"
    """One ratio from the mean difference of a `frame`'s pairs, or one for each `pair`."""
    max_difference: NonNegativeFloat = 3.0
    """Clamp the difference of a pair's errors to ± this value before the mean and the exponential; 0: do not clamp."""
    clip_range: OpenFraction = 0.05
    """Clip the ratio to 1 ± this value; differences of video latents are small: see `ratio/q99`."""


@section("train.dpo")
class DpoConfig:
    """Flow-DPO; read with train.objective=flow_dpo."""

    beta: PositiveFloat = 100.0
    """Strength with which the policy is held near the reference; errors are means over a clip's numbers."""
    num_levels: PositiveInt = 2
    """Noise levels at which each frame of a pair is compared in a step."""


@section("train.regression")
class RegressionConfig:
    """Supervised training on sampled clips; read with train.objective=rwr and best_of_n."""

    num_levels: PositiveInt = 2
    """Noise levels of a flow policy's frame in a step."""
    temperature: PositiveFloat = 1.0
    """With `rwr` the weight of a clip is exp(advantage / temperature)."""
    max_weight: PositiveFloat = 20.0
    """Truncate the weights of `rwr` at this value."""


@section("train.off_policy")
class OffPolicyConfig:
    """Correction of stale groups by importance weights; read with train.objective=grpo."""

    importance: Literal["auto", "none", "token", "sequence"] = "auto"
    """Importance weights of stale groups, by `token` or `sequence`; `none`: clip instead; `auto`: token for tokens."""
    max_weight: Annotated[float, Field(strict=True, ge=1), FLOAT] = 2.0
    """Truncate importance weights at this value."""
    min_ratio: FractionBelowOne = 0.125
    """With importance weights: lowest ratio of a decision (or clip) that trains."""
    max_ratio: Annotated[float, Field(strict=True, gt=1), FLOAT] = 8.0
    """With importance weights: highest ratio of a decision (or clip) that trains."""


@section("train")
class TrainConfig:
    num_steps: PositiveInt = 40
    """Optimiser steps."""
    max_minutes: NonNegativeFloat = 0.0
    """Stop after the step that passes this many minutes; 0: no limit."""
    group_size: Annotated[int, Field(strict=True, ge=2), INT] = 8
    """G, trajectories of a prompt."""
    prompts_per_step: PositiveInt = 8
    """Groups of one optimiser step."""
    max_staleness: NonNegativeInt = 1
    """Versions that a group may lag behind the learner when it is consumed; 0: synchronous."""
    stale_policy: Literal["wait", "drop"] = "wait"
    """`wait`: train groups in the order of admission, so none grows too old; `drop`: as scored; drop old ones."""
    learning_rate: PositiveFloat = 1e-4
    """Learning rate of AdamW."""
    warmup_steps: NonNegativeInt = 3
    """Steps over which the learning rate rises from 0."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradient clipping."""
    objective: ObjectiveName = "grpo"
    """`grpo`, `rwr`, `best_of_n`; for flow policies `nft`, `cfm_ratio`, `flow_dpo`; or package.module:Class."""
    objective_args: Arguments = field(default_factory=dict)
    """Arguments of your own objective: {NAME: VALUE}."""
    kl_coefficient: NonNegativeFloat = 0.0
    """Weight of KL(policy || reference): k3 for tokens, means for SDE steps, else velocities; 0: no reference."""
    advantage: Literal["grpo", "batch_std", "dr_grpo"] = "grpo"
    """Group mean subtracted; divided by the group's deviation (`grpo`), the step's (`batch_std`) or 1 (`dr_grpo`)."""
    max_advantage: NonNegativeFloat = 0.0
    """Clamp advantages to ± this value; 0: do not clamp. `nft` needs it."""
    best_and_worst: NonNegativeInt = 0
    """Train only this many best and as many worst clips of each group (DanceGRPO); 0: all clips."""
    max_failed_fraction: FractionBelowOne = 0.1
    """End the run when more than this share of a hundred groups failed; fewer failed groups are replaced."""
    max_skipped_updates: PositiveInt = 3
    """End the run after this many skipped updates in a row (their loss or gradient was not finite)."""
    min_reward_std: NonNegativeFloat = 1e-6
    """Drop and replace a group whose rewards vary less: it carries no signal."""
    wait_timeout_s: PositiveFloat = 600.0
    """Bound of every wait for a pool."""
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    nft: NftConfig = field(default_factory=NftConfig)
    fpo: FpoConfig = field(default_factory=FpoConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    off_policy: OffPolicyConfig = field(default_factory=OffPolicyConfig)

    @property
    def explores(self) -> bool:
        """Whether rollouts of a flow policy take SDE steps; if not, they follow the ODE and store clean latents."""
        return self.objective not in LEVELS

    @property
    def num_levels(self) -> int:
        """Noise levels at which an objective on clean latents compares each frame."""
        return LEVELS[self.objective](self)

    @property
    def needs_reference(self) -> bool:
        """Whether the objective compares the policy with a frozen reference."""
        return self.kl_coefficient > 0 or self.objective == "flow_dpo"

    @property
    def chosen_clips(self) -> tuple[int, int]:
        """How many of the best and of the worst clips of each group train; both 0: all clips."""
        own = (self.best_and_worst, self.best_and_worst)
        return {"flow_dpo": (1, 1), "best_of_n": (1, 0)}.get(self.objective, own)

    @property
    def rows_together(self) -> int:
        """Clips of a group that a micro-batch must hold together, because the objective compares them."""
        return 2 if self.objective == "flow_dpo" else 1

    @property
    def importance_level(self) -> str:
        """`none`, `token` or `sequence`: what `auto` means here."""
        if self.off_policy.importance != "auto":
            return self.off_policy.importance
        return "token" if self.max_staleness and self.objective == "grpo" and self.grpo.ratio == "plain" else "none"

    @model_validator(mode="after")
    def _check_advantages(self) -> Self:
        require(
            2 * self.best_and_worst <= self.group_size,
            "train.best_and_worst",
            f"must be at most half of train.group_size={self.group_size}",
            self.best_and_worst,
            f"set train.best_and_worst={self.group_size // 2}",
        )
        require(
            self.objective != "nft" or self.max_advantage > 0,
            "train.max_advantage",
            "must be > 0 with train.objective=nft, whose weights are shares of it",
            self.max_advantage,
            "use 5.0",
        )
        return self

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        require(
            self.objective not in CHOOSING or not self.best_and_worst,
            "train.best_and_worst",
            f"must be 0 with train.objective={self.objective}, which chooses the clips itself",
            self.best_and_worst,
            "leave it out",
        )
        require(
            self.objective != "flow_dpo" or not self.kl_coefficient,
            "train.kl_coefficient",
            "must be 0 with train.objective=flow_dpo, whose loss holds the policy near the reference",
            self.kl_coefficient,
            "set train.kl_coefficient=0 and choose train.dpo.beta",
        )
        return self

    @model_validator(mode="after")
    def _check_importance(self) -> Self:
        if self.off_policy.importance in ("auto", "none"):
            return self
        for key, value, usual in (("objective", self.objective, "grpo"), ("grpo.ratio", self.grpo.ratio, "plain")):
            require(
                value == usual,
                f"train.{key}",
                f"must be {usual} with train.off_policy.importance, which weighs ratios of log-probabilities",
                value,
                f"set train.{key}={usual} or leave train.off_policy.importance out",
            )
        return self


LEVELS: dict[str, Callable[[TrainConfig], int]] = {
    "nft": lambda train: train.nft.num_levels,
    "cfm_ratio": lambda train: train.fpo.num_pairs,
    "flow_dpo": lambda train: train.dpo.num_levels,
    "rwr": lambda train: train.regression.num_levels,
    "best_of_n": lambda train: train.regression.num_levels,
}
"""Objectives on clean latents -> the number of noise levels at which they compare each frame."""
REGRESSION = ("rwr", "best_of_n")
"""Objectives of `train.regression`, which train token policies too."""
CHOOSING = ("flow_dpo", "best_of_n")
"""Objectives that choose the clips of a group by their order alone, whatever the size of the advantages."""
