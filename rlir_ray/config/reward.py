"""The reward: its plug-in, the comparison of actions, and the pool of replicas."""

from __future__ import annotations

from dataclasses import field, replace
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
# Keys of `reward` that a stage of its schedule may change.
STAGED = ("rule", "axis", "axis_tolerance", "axis_scale", "match")
Stage = Annotated[
    Arguments,
    Field(
        json_schema_extra={
            "rule": f"from_step and one or more of {', '.join(STAGED)}",
            "way_out": "write {key}={{from_step: 20, axis_tolerance: 1}}",
        }
    ),
]


@section("reward.terms[]")
class TermConfig:
    """One term of the reward."""

    name: RewardName
    """A term that ships with the package, or package.module:Class."""
    weight: Annotated[float, Field(strict=True), FLOAT] = 1.0
    """Factor of the term; a negative weight makes a reward a penalty."""
    normalize: Literal["auto", "group", "none"] = "auto"
    """`group`: subtract the group's mean, divide by its deviation; `none`: keep; `auto`: depends on reward.combine."""
    args: Arguments = field(default_factory=dict)
    """Arguments of the term: {NAME: VALUE}."""
    runtime_env: Arguments = field(default_factory=dict)
    """Ray's runtime_env of a process of the term's own, for a term in another Python environment; empty: none."""

    @model_validator(mode="after")
    def _check_weight(self) -> Self:
        require(
            self.weight != 0,
            "reward.terms",
            "must have weights other than 0",
            f"{self.name} with weight 0",
            "leave that term out",
        )
        return self


@section("reward")
class RewardConfig:
    """The reward and the pool of its replicas."""

    name: RewardName = "inverse"
    """The only term, if reward.terms is empty; or a whole reward of your own, package.module:Class."""
    args: Arguments = field(default_factory=dict)
    """Arguments of reward.name: {NAME: VALUE}."""
    terms: tuple[TermConfig, ...] = ()
    """Terms of the reward: [{name: inverse}, {name: motion, weight: 0.2}]; empty: the one term reward.name."""
    combine: Literal["rewards", "advantages", "losses"] = "rewards"
    """Sum the terms' `rewards`; their `advantages`, each normalised within its group; or their clipped `losses`."""
    schedule: tuple[Stage, ...] = ()
    """Stages that change the comparison of `inverse`: [{from_step: 20, axis_tolerance: 1, rule: joint}]."""
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
    """A reward that corrupted clips can fool, or a model that reads them as well as real ones: `refuse` or `warn`."""
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
    def all_terms(self) -> tuple[TermConfig, ...]:
        """The terms of the reward, also if `name` alone names the only one."""
        return self.terms or (TermConfig(name=self.name, args=self.args),)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each term."""
        return tuple(term.name for term in self.all_terms)

    @property
    def described(self) -> str:
        """The keys that name the reward, for messages."""
        return f"reward.terms of {', '.join(self.names)}" if self.terms else f"reward.name={self.name}"

    @property
    def local_names(self) -> tuple[str, ...]:
        """Name of each term that the run's own Python environment can import."""
        return tuple(term.name for term in self.all_terms if not term.runtime_env)

    @property
    def labelled_terms(self) -> dict[str, TermConfig]:
        """Label -> term: its short name, with a number from the second term of the same name on."""
        names = [term.name.rpartition(":")[2] for term in self.all_terms]
        seen = [names[:place].count(name) for place, name in enumerate(names)]
        labels = [f"{name}_{number + 1}" if number else name for name, number in zip(names, seen, strict=True)]
        return dict(zip(labels, self.all_terms, strict=True))

    @property
    def weights(self) -> tuple[float, ...]:
        """Factor of each term."""
        return tuple(term.weight for term in self.all_terms)

    @property
    def by_group(self) -> tuple[bool, ...]:
        """Whether each term is normalised within its group: `auto` does so where advantages or losses are summed."""
        usual = "none" if self.combine == "rewards" else "group"
        kinds = (usual if term.normalize == "auto" else term.normalize for term in self.all_terms)
        return tuple(kind == "group" for kind in kinds)

    @property
    def has_inverse(self) -> bool:
        """Whether a term is the inverse reward, which the keys of the comparison belong to."""
        return "inverse" in self.names

    def at_version(self, policy_version: int) -> RewardConfig:
        """Return the comparison of actions for clips of a policy version: the stages of `schedule` that have begun."""
        begun = [stage for stage in self.schedule if policy_version >= stage["from_step"]]
        changes = {key: value for stage in begun for key, value in stage.items() if key != "from_step"}
        return replace(self, schedule=(), **changes) if changes else self

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
    def _check_terms(self) -> Self:
        if self.terms:
            require(
                self.name == "inverse" and not self.args,
                "reward.name",
                "must be left out with reward.terms",
                self.name if self.name != "inverse" else f"reward.args={self.args}",
                "name all terms in reward.terms",
            )
        require(
            len(self.terms) > 1 or self.combine == "rewards",
            "reward.combine",
            "must be rewards with one term",
            self.combine,
            "leave it out, or name more terms in reward.terms",
        )
        require(
            not any(term.args for term in self.all_terms if term.name == "inverse"),
            "reward.args",
            "must be empty for the term inverse",
            "; ".join(str(term.args) for term in self.all_terms if term.name == "inverse"),
            "use the other reward.* keys",
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
    def _check_schedule(self) -> Self:
        require(
            not self.schedule or self.has_inverse,
            "reward.schedule",
            "must be empty without the term inverse, whose comparison it changes",
            list(self.schedule),
            "add {name: inverse} to reward.terms or leave reward.schedule out",
        )
        for stage in self.schedule:
            start = stage.get("from_step")
            require(
                isinstance(start, int) and start >= 1 and set(STAGED) >= stage.keys() - {"from_step"} != set(),
                "reward.schedule",
                f"must hold stages of from_step (1 or more) and one or more of {', '.join(STAGED)}",
                stage,
                "write reward.schedule=[{from_step: 20, axis_tolerance: 1}]",
            )
        starts = [stage["from_step"] for stage in self.schedule]
        require(
            starts == sorted(set(starts)),
            "reward.schedule",
            "must have stages in the order of their from_step",
            starts,
            "sort the stages, and give each step one",
        )
        for stage in self.schedule:
            self._check_stage(stage)
        return self

    def _check_stage(self, stage: Stage) -> None:
        # Building the configuration of the stage checks its values.
        begun = self.at_version(stage["from_step"])
        for key, kind in (("axis_tolerance", "within"), ("axis_scale", "smooth")):
            require(
                key not in stage or begun.axis == kind,
                "reward.schedule",
                f"must set {key} only where axis={kind}",
                stage,
                f"set axis: {kind} in that stage or in reward",
            )
        require(
            begun.rule == "groups" or self.balance == "none",
            "reward.balance",
            "must be none with another rule than groups in reward.schedule",
            self.balance,
            "set reward.balance=none",
        )

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
        require(
            self.names == ("inverse",) and self.weights == (1.0,),
            "reward.address",
            "must be empty with another reward than the term inverse alone",
            self.address,
            "leave it out: a service shares the inverse reward",
        )
        return self
