"""The rollout pool, and how its engines sample."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rlir_ray.config.messages import require
from rlir_ray.config.section import (
    INT,
    FractionBelowOne,
    NonNegativeFloat,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    Resources,
    section,
)


def _refuse_flow(engine: object) -> object:
    if engine == "flow":
        raise ValueError("rollout.engine=flow is policy.family=flow now; set that and leave rollout.engine out")
    return engine


@section("rollout")
class RolloutConfig:
    engine: Annotated[Literal["torch", "vllm"], BeforeValidator(_refuse_flow)] = "torch"
    """Sampler of an autoregressive policy: `torch`: our batched sampler; `vllm`: vLLM."""
    num_actors: PositiveInt = 1
    """Rollout actors."""
    num_cpus: NonNegativeFloat = 0.5
    """Logical CPUs that Ray reserves for an actor."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs for an actor."""
    resources: Resources = field(default_factory=dict)
    """Custom resources that place an actor on a node that has them: {rollout_node: 0.01}."""
    num_threads: PositiveInt = 1
    """Torch threads of an actor."""
    prompts_per_call: PositiveInt = 8
    """Groups sampled in one call; the number of actors does not change which groups share a call."""
    temperature: PositiveFloat = 1.0
    """Temperature of sampling and rescoring tokens; must be 1 with policy.family=flow."""
    timeout_s: NonNegativeFloat = 0.0
    """A call that takes longer ends its actor and is repeated. 0: train.wait_timeout_s / 5."""
    max_logprob_difference: NonNegativeFloat = 0.05
    """Bound of a step's mean |engine - learner| log-probability; above it the run ends. 0: do not compare."""


@section("vllm")
class VllmConfig:
    """How vLLM samples an autoregressive world model; read with rollout.engine=vllm."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of weights and cache; with `bfloat16` log-probabilities differ from the learner's by rounding."""
    max_num_seqs: PositiveInt = 256
    """Most clips decoded at a time; the others wait."""
    kv_cache_bytes: PositiveInt = 1 << 30
    """Bytes of the key-value cache on a CPU."""
    gpu_memory_utilization: OpenFraction = 0.7
    """Share of a GPU's memory for vLLM; the policy's weights in float32 come on top."""
    enforce_eager: bool = False
    """Decode without CUDA graphs on a GPU; a CPU has none."""


@section("flow")
class FlowConfig:
    """How a flow world model is sampled and rescored; read with policy.family=flow."""

    num_steps: Annotated[int, Field(strict=True, ge=2), INT] = 10
    """Denoising steps of a frame."""
    shift: PositiveFloat = 1.0
    """Above 1 more steps are at high noise levels (Stable Diffusion 3)."""
    sde: Literal["flow_grpo", "dance_grpo", "cps"] = "flow_grpo"
    """Form of the exploring (SDE) steps: `flow_grpo`, `dance_grpo`, or `cps` (coefficients-preserving)."""
    noise_level: PositiveFloat = 0.7
    """Noise of the exploring steps: Flow-GRPO's a, DanceGRPO's eta (0.3), or CPS's share of a right angle."""
    window: PositiveInt = 3
    """Steps of each frame that explore and train (MixGRPO); the other steps follow the ODE."""
    window_moves: Literal["random", "sliding", "first"] = "random"
    """Place of the window: `random`: drawn for each group; `sliding`: noisy to clean over versions; `first`: fixed."""
    window_interval: PositiveInt = 5
    """Versions between two moves of a sliding window."""
    skip_last: bool = True
    """Do not explore in the last step, whose noise would stay in the picture."""
    shared_noise: bool = True
    """Start the clips of a group from the same noise (DanceGRPO), with the same history noise."""
    history_noise: FractionBelowOne = 0.05
    """Noise level of finished frames when later frames attend to them; it reduces drift."""

    @model_validator(mode="after")
    def _check_exploration(self) -> Self:
        require(
            self.sde != "cps" or self.noise_level < 1,
            "flow.noise_level",
            "must be < 1 with flow.sde=cps",
            self.noise_level,
            "use 0.7",
        )
        require(
            self.window <= self.num_sde_steps,
            "flow.window",
            f"must be at most the {self.num_sde_steps} steps that may explore",
            self.window,
            f"set flow.window={self.num_sde_steps}, raise flow.num_steps or set flow.skip_last=false",
        )
        return self

    @property
    def num_sde_steps(self) -> int:
        """Steps that may explore."""
        return self.num_steps - self.skip_last
