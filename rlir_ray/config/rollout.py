"""The rollout pool and the settings of its engines."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rlir_ray.config.messages import require
from rlir_ray.config.section import (
    INT,
    Fraction,
    FractionBelowOne,
    GuidanceScale,
    NonNegativeFloat,
    NonNegativeInt,
    OpenFraction,
    PositiveFloat,
    PositiveInt,
    Resources,
    section,
)


def _reject_flow(engine: object) -> object:
    if engine == "flow":
        raise ValueError("rollout.engine=flow is now policy.family=flow; set that key and leave rollout.engine out")
    return engine


@section("rollout")
class RolloutConfig:
    """The rollout pool and its sampling."""

    engine: Annotated[Literal["torch", "vllm"], BeforeValidator(_reject_flow)] = "torch"
    """Sampler of an autoregressive policy: `torch`: the sampler of this project; `vllm`: vLLM."""
    num_actors: PositiveInt = 1
    """Number of rollout actors."""
    num_cpus: NonNegativeFloat = 0.5
    """Logical CPUs that Ray reserves for an actor."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs that Ray reserves for an actor."""
    resources: Resources = field(default_factory=dict)
    """Custom resources that place an actor on a node with these resources: {rollout_node: 0.01}."""
    num_threads: PositiveInt = 1
    """Number of torch threads of an actor."""
    prompts_per_call: PositiveInt = 8
    """Groups sampled in one call; the number of actors does not change which groups share a call."""
    temperature: PositiveFloat = 1.0
    """Temperature of sampling and rescoring tokens; must be 1 with policy.family=flow."""
    guidance: GuidanceScale = 1.0
    """Scale of the action guidance of rollouts and rescoring; 1: none. The policy needs pretraining with dropout."""
    restrict: bool = True
    """Draw image tokens from the image ids only; false: from all ids of the vocabulary, as RLVR-World does."""
    timeout_s: NonNegativeFloat = 0.0
    """Bound of a call in seconds; a longer call ends its actor and is retried. 0: train.wait_timeout_s / 5."""
    max_logprob_difference: NonNegativeFloat = 0.05
    """Most mean |engine - learner| log-probability of a step; a larger one ends the run. 0: do not compare."""


@section("vllm")
class VllmConfig:
    """The settings of vLLM; read with rollout.engine=vllm."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of weights and cache; with `bfloat16` log-probabilities differ from the learner's by rounding."""
    max_num_seqs: PositiveInt = 256
    """Most clips decoded at the same time; the other clips wait."""
    kv_cache_bytes: PositiveInt = 1 << 30
    """Bytes of the key-value cache on a CPU."""
    gpu_memory_utilization: OpenFraction = 0.7
    """Share of a GPU's memory for vLLM; the policy's float32 weights take additional memory."""
    enforce_eager: bool = False
    """Decode without CUDA graphs on a GPU; no effect on a CPU."""


@section("flow")
class FlowConfig:
    """The sampling and rescoring of a flow world model; read with policy.family=flow."""

    num_steps: Annotated[int, Field(strict=True, ge=2), INT] = 10
    """Number of denoising steps of a frame."""
    shift: PositiveFloat = 1.0
    """Shift of the noise levels; above 1, more steps lie at high levels (Stable Diffusion 3)."""
    sde: Literal["flow_grpo", "dance_grpo", "cps"] = "flow_grpo"
    """Form of the exploring (SDE) steps: `flow_grpo`, `dance_grpo`, or `cps` (coefficients-preserving)."""
    noise_level: PositiveFloat = 0.7
    """Noise of the exploring steps: Flow-GRPO's a, DanceGRPO's eta (0.3), or CPS's share of a right angle."""
    window: PositiveInt = 3
    """Number of steps of each frame that explore and train (MixGRPO); the other steps follow the ODE."""
    window_moves: Literal["random", "sliding", "first"] = "random"
    """Place of the window: `random`: drawn for each group; `sliding`: noisy to clean over versions; `first`: fixed."""
    window_end: NonNegativeInt = 0
    """A random or sliding window stays in the first so many steps (Flow-GRPO-Fast); 0: all steps that may explore."""
    window_interval: PositiveInt = 5
    """Number of versions between two moves of a sliding window."""
    skip_last: bool = True
    """Do not explore in the last step, because its noise would stay in the picture."""
    shared_noise: bool = True
    """Start all clips of a group from the same noise, with the same history noise (DanceGRPO)."""
    history_noise: FractionBelowOne = 0.05
    """Noise level of finished frames when later frames attend to them; this noise reduces drift."""
    guidance_rescale: Fraction = 0.0
    """Share of a guided velocity that is rescaled to the deviation without guidance; Vid2World uses 0.7."""

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
        require(
            not self.window_end or self.window <= self.window_end <= self.num_sde_steps,
            "flow.window_end",
            f"must be 0, or from flow.window={self.window} to the {self.num_sde_steps} steps that may explore",
            self.window_end,
            f"set flow.window_end={self.num_sde_steps}",
        )
        return self

    @property
    def num_sde_steps(self) -> int:
        """Number of steps of a frame that may explore."""
        return self.num_steps - self.skip_last
