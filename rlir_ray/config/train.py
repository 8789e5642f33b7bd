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
    step_weights: Literal["uniform", "noise"] = "uniform"
    """Weights of a frame's SDE steps: all alike, or in proportion to the `noise` of the step (TempFlow-GRPO)."""
    loss: Literal["clip", "gspo", "cispo"] = "clip"
    """`clip`: PPO's clipped ratio; `gspo`: one clipped ratio a trajectory; `cispo`: ratios as capped weights."""
    clip_low: OpenFraction = 0.2
    """Lower clip of the ratio, 1 - clip_low, where ratios differ from 1."""
    clip_high: PositiveFloat = 0.28
    """Upper clip of the ratio, 1 + clip_high (DAPO's separate upper clip)."""
    dual_clip: NonNegativeFloat = 0.0
    """Where an advantage is negative, the ratio counts at most this much (dual clip, usually 3); 0: no bound."""
    gspo_clip_low: OpenFraction = 3e-4
    """Lower clip of a trajectory's mean ratio with loss=gspo, 1 - gspo_clip_low."""
    gspo_clip_high: PositiveFloat = 4e-4
    """Upper clip of a trajectory's mean ratio with loss=gspo, 1 + gspo_clip_high."""
    cispo_clip_high: PositiveFloat = 4.0
    """Cap of a decision's weight with loss=cispo, 1 + cispo_clip_high."""

    @model_validator(mode="after")
    def _check_dual_clip(self) -> Self:
        require(
            not 0 < self.dual_clip <= 1,
            "train.grpo.dual_clip",
            "must be 0 or > 1, where no ratio of 1 reaches it",
            self.dual_clip,
            "use 3.0",
        )
        return self


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
    """Steps; each trains a set of groups and publishes new weights."""
    max_minutes: NonNegativeFloat = 0.0
    """Stop after the step that passes this many minutes; 0: no limit."""
    group_size: Annotated[int, Field(strict=True, ge=2), INT] = 8
    """G, trajectories of a prompt."""
    prompts_per_step: PositiveInt = 8
    """Groups of one step."""
    updates_per_step: PositiveInt = 1
    """Passes over the groups of a step; each pass makes one optimiser update for each minibatch."""
    num_minibatches: PositiveInt = 1
    """Parts into which the groups of a step are split, with one optimiser update each."""
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
    """Weight of KL(policy || reference): estimated for tokens, exact for SDE steps, else velocities; 0: off."""
    kl_estimator: Literal["k1", "k2", "k3", "unbiased"] = "k3"
    """Estimate of that KL from a token's log-probabilities; `unbiased`: the value of k3 with the gradient of k2."""
    entropy_coefficient: NonNegativeFloat = 0.0
    """Weight of a bonus for the entropy of a token policy's draws; 0: none."""
    supervised_coefficient: NonNegativeFloat = 0.0
    """Weight of the pretraining loss on the recorded clips of a step's prompts; 0: reinforcement learning alone."""
    reference_every: NonNegativeInt = 0
    """Move the reference of the KL penalty towards the policy after every so many steps; 0: it stays the base."""
    reference_decay: FractionBelowOne = 0.0
    """Share of the old reference in the moved one; 0: the reference becomes the policy."""
    advantage: Literal["grpo", "batch_std", "dr_grpo", "rloo"] = "grpo"
    """Group mean subtracted; over the group's deviation (`grpo`), the step's (`batch_std`), 1 (`dr_grpo`); `rloo`."""
    max_advantage: NonNegativeFloat = 0.0
    """Clamp advantages to ± this value; 0: do not clamp. `nft` needs it."""
    best_and_worst: NonNegativeInt = 0
    """Train only this many best and as many worst clips of each group (DanceGRPO); 0: all clips."""
    ema_decay: FractionBelowOne = 0.0
    """Decay of a moving average of the policy, which is judged and saved in its place, not sampled from; 0: none."""
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

    @property
    def num_updates(self) -> int:
        """Optimiser updates of a step."""
        return self.updates_per_step * self.num_minibatches

    def has_clip(self, importance_level: str) -> bool:
        """Return whether the clip can act: whether ratios of policy to the centre of the clip can differ from 1.

        After the first update of a step all groups have such ratios. At the first update only stale groups without
        importance weights have them: importance weights replace the clipped ratio there, and fresh groups have the
        ratio 1.
        """
        return self.num_updates > 1 or (self.max_staleness > 0 and importance_level == "none")

    @model_validator(mode="after")
    def _check_minibatches(self) -> Self:
        require(
            self.num_minibatches <= self.prompts_per_step,
            "train.num_minibatches",
            f"must be at most train.prompts_per_step={self.prompts_per_step}, because a minibatch needs a group",
            self.num_minibatches,
            f"set train.num_minibatches={self.prompts_per_step} or less",
        )
        return self

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
    def _check_average(self) -> Self:
        require(
            self.objective != "nft" or not self.ema_decay,
            "train.ema_decay",
            "must be 0 with train.objective=nft, whose sampling policy is a moving average already",
            self.ema_decay,
            "set train.nft.max_decay instead",
        )
        return self

    @model_validator(mode="after")
    def _check_reference(self) -> Self:
        require(
            not self.reference_every or self.kl_coefficient > 0,
            "train.reference_every",
            "must be 0 without train.kl_coefficient, because there is no reference",
            self.reference_every,
            "set train.kl_coefficient too or leave train.reference_every out",
        )
        require(
            not self.reference_decay or self.reference_every > 0,
            "train.reference_decay",
            "must be 0 without train.reference_every, because the reference does not move",
            self.reference_decay,
            "set train.reference_every=1 or leave train.reference_decay out",
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
