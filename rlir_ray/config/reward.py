"""The reward: its plug-in, the comparison of actions, and the pool of replicas."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from rlir_ray.config.messages import require
from rlir_ray.config.section import (
    FLOAT,
    Arguments,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Resources,
    RewardName,
    section,
)

# `rlir_ray.rewards.agreement` defines these rules.
Rule = Literal["groups", "joint", "fields"]
AxisMatch = Literal["exact", "within", "cell", "smooth", "ignore"]
RULES: tuple[str, ...] = get_args(Rule)
AXIS_MATCHES: tuple[str, ...] = get_args(AxisMatch)


@section("reward")
class RewardConfig:
    """The reward and the pool of its replicas."""

    name: RewardName = "inverse"
    """`inverse`: agreement of commanded actions with those that an IDM recovers; or package.module:Class."""
    args: Arguments = field(default_factory=dict)
    """Arguments of your own reward: {NAME: VALUE}."""
    address: str = ""
    """`serve://NAME`: a reward service that several runs share; empty: the run starts its own pool."""
    num_replicas: PositiveInt = 1
    """Number of replicas at the start."""
    min_replicas: NonNegativeInt = 0
    """Fewest replicas under automatic scaling; 0: num_replicas."""
    max_replicas: NonNegativeInt = 0
    """Most replicas under automatic scaling; 0: num_replicas. If equal to min_replicas, the pool does not scale."""
    target_queue: PositiveFloat = 8.0
    """Running and queued groups per replica at which automatic scaling aims."""
    num_cpus: NonNegativeFloat = 0.25
    """Logical CPUs that Ray reserves for a replica."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs that Ray reserves for a replica."""
    resources: Resources = field(default_factory=dict)
    """Custom resources that place a replica on a node with these resources: {reward_node: 0.01}."""
    num_threads: PositiveInt = 1
    """Number of torch threads of a replica."""
    rule: Rule = "groups"
    """Agreement: `groups`: mean over the fields; `joint`: all must agree; `fields`: mean over alternatives and axes."""
    axis: AxisMatch = "exact"
    """Axes agree: `exact` bin; `within` axis_tolerance; one `cell` of the policy; `smooth` by error; or `ignore`."""
    axis_tolerance: NonNegativeFloat = 1.0
    """Largest distance that agrees, with axis=within."""
    axis_tolerance_in: Literal["bins", "unit"] = "bins"
    """axis_tolerance counts `bins`, or has the `unit` of the axis."""
    axis_scale: PositiveFloat = 0.1
    """Error at which the agreement falls to 1/e, as a share of the axis's range, with axis=smooth."""
    match: Literal["exact", "soft"] = "soft"
    """`exact`: 1 if the IDM recovers the commanded class, else 0; `soft`: the IDM's probability of that class."""
    balance: Literal["none", "class"] = "none"
    """`class`: weigh each field by the inverse frequency of the commanded class; `none`: equal weights."""
    audit: Literal["refuse", "warn"] = "refuse"
    """An inverse dynamics model that reads spoilt clips as well as real ones: `refuse` the run, or `warn`."""
    credit: Literal["clip", "frame"] = "frame"
    """`clip`: each decision gets the clip's mean reward; `frame`: the discounted rewards from its frame on."""
    discount: Annotated[float, Field(strict=True, ge=0, le=1), FLOAT] = 0.5
    """Discount of the rewards of other frames, for each frame of distance, with credit=frame."""
    lookback: NonNegativeInt = 0
    """Number of earlier frames whose rewards a frame also earns: how many later frames the IDM reads for a frame."""
    max_frames: PositiveInt = 576
    """Most frames that a replica decodes and reads at once; a replica batches waiting groups up to this number."""
    timeout_s: NonNegativeFloat = 0.0
    """Bound of a batch in seconds; its groups are retried one at a time. 0: train.wait_timeout_s / 5."""

    @property
    def bounds(self) -> tuple[int, int]:
        """Fewest and most replicas; both are equal if automatic scaling is off."""
        return self.min_replicas or self.num_replicas, self.max_replicas or self.num_replicas

    @model_validator(mode="after")
    def _check_scaling(self) -> Self:
        fewest, most = self.bounds
        require(
            fewest <= self.num_replicas <= most,
            "reward.num_replicas",
            f"must lie between reward.min_replicas={fewest} and reward.max_replicas={most}",
            self.num_replicas,
            f"set reward.num_replicas={max(self.min_replicas, min(self.num_replicas, most))} or move the bounds",
        )
        return self

    @model_validator(mode="after")
    def _check_lookback(self) -> Self:
        if not self.lookback:
            return self
        require(
            self.credit == "frame",
            "reward.credit",
            "must be frame with reward.lookback, because credit by clip already counts every frame",
            self.credit,
            "set reward.credit=frame or reward.lookback=0",
        )
        require(
            self.discount > 0,
            "reward.discount",
            "must be > 0 with reward.lookback, because it weighs the rewards of other frames",
            self.discount,
            "set reward.discount=0.5 or reward.lookback=0",
        )
        return self

    @model_validator(mode="after")
    def _check_address(self) -> Self:
        if not self.address:
            return self
        require(
            self.address.startswith("serve://") and len(self.address) > 8,
            "reward.address",
            "must be serve://NAME, the name of a Serve application",
            self.address,
            "use serve://rlir_reward",
        )
        require(
            self.balance == "none",
            "reward.balance",
            "must be none with reward.address, because a service knows no run's prompts",
            self.balance,
            "set reward.balance=none or leave out reward.address",
        )
        return self
