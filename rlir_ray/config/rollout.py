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
    """What samples tokens, with policy.family=autoregressive: `torch`: our sampler, batched; `vllm`: vLLM's."""
    num_actors: PositiveInt = 1
    """Rollout actors."""
    num_cpus: NonNegativeFloat = 0.5
    """Logical CPUs that Ray sets aside for an actor."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs for an actor."""
    resources: Resources = field(default_factory=dict)
    """Custom resources that an actor takes of its node, which say where it runs: {rollout_node: 0.01}."""
    num_threads: PositiveInt = 1
    """Torch threads of an actor."""
    prompts_per_call: PositiveInt = 8
    """Groups sampled together; always the same ones together, whatever the number of actors."""
    temperature: PositiveFloat = 1.0
    """Of sampling tokens, and of rescoring them; 1 with policy.family=flow."""
    timeout_s: NonNegativeFloat = 0.0
    """A call that takes longer ends its actor; another one repeats it. 0: train.wait_timeout_s / 5."""
    max_logprob_difference: NonNegativeFloat = 0.05
    """A step whose mean |engine - learner's model| log-probability is larger ends the run; 0: it is not compared."""


@section("vllm")
class VllmConfig:
    """How vLLM samples an autoregressive world model; read with rollout.engine=vllm."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of its weights and cache: `float32`, or `bfloat16`, whose log-probabilities are off the learner's by rounding."""
    max_num_seqs: PositiveInt = 256
    """Clips that it decodes at a time; the rest wait for a place."""
    kv_cache_bytes: PositiveInt = 1 << 30
    """Of its key-value cache on a CPU."""
    gpu_memory_utilization: OpenFraction = 0.7
    """Share of a GPU's memory that it takes; the policy's weights in float32 are there besides."""
    enforce_eager: bool = False
    """On a GPU: decode without CUDA graphs; a CPU always does."""


@section("flow")
class FlowConfig:
    """How a flow world model is sampled and rescored; read with policy.family=flow."""

    num_steps: Annotated[int, Field(strict=True, ge=2), INT] = 10
    """Denoising steps of a frame."""
    shift: PositiveFloat = 1.0
    """Above 1 more of them are at high noise levels (Stable Diffusion 3)."""
    sde: Literal["flow_grpo", "dance_grpo", "cps"] = "flow_grpo"
    """Form of the exploring steps: `flow_grpo`, `dance_grpo`, or `cps` (coefficients-preserving)."""
    noise_level: PositiveFloat = 0.7
    """Strength of their noise: Flow-GRPO's a, DanceGRPO's eta (0.3), or CPS's share of a right angle."""
    window: PositiveInt = 3
    """Steps of each frame that explore and train (MixGRPO); the others follow the ODE."""
    window_moves: Literal["random", "sliding", "first"] = "random"
    """`random`: drawn for each group; `sliding`: from noisy to clean with the policy's version; `first`: never."""
    window_interval: PositiveInt = 5
    """Versions between two moves of a sliding window."""
    skip_last: bool = True
    """The last step, whose noise stays in the picture, never explores."""
    shared_noise: bool = True
    """The clips of a group start from the same noise (DanceGRPO), and their history gets the same."""
    history_noise: FractionBelowOne = 0.05
    """Noise level of finished frames as later ones see them, against drift."""

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
