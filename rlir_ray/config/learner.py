"""The learner group, and how its weights reach the rollout pool."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlir_ray.config.messages import require
from rlir_ray.config.section import INT, NonNegativeFloat, NonNegativeInt, PositiveInt, Resources, section


@section("learner")
class LearnerConfig:
    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """`deepspeed`: ZeRO in a Ray Train worker group; `torch`: plain AdamW in the same group (one worker)."""
    num_workers: PositiveInt = 1
    """Learner ranks."""
    num_cpus: NonNegativeFloat = 0.5
    """Logical CPUs that Ray reserves for a rank."""
    use_gpu: bool = False
    """One GPU a rank, NCCL; otherwise gloo."""
    resources: Resources = field(default_factory=dict)
    """Custom resources that place a rank on a node that has them: {learner_node: 0.01}."""
    num_threads: PositiveInt = 1
    """Torch threads of a rank."""
    zero_stage: Annotated[int, Field(strict=True, ge=0, le=3), INT] = 1
    """DeepSpeed ZeRO stage."""
    offload_optimizer: bool = False
    """Keep optimiser states in host memory (GPU learners)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`fp32` or `bf16`; with bf16 the ratio is 1 only within rounding."""
    decision_budget: PositiveInt = 12288
    """Most decisions in one forward and backward pass; a larger step accumulates gradients."""
    gradient_checkpointing: bool = False
    """Recompute the activations inside a layer in the backward pass: less memory, a third slower."""
    max_restarts: NonNegativeInt = 3
    """How often lost ranks are restarted from the latest checkpoint."""

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        require(
            self.zero_stage > 0 or self.precision == "fp32" or self.engine == "torch",
            "learner.zero_stage",
            "must be 1..3 with learner.precision=bf16: without ZeRO DeepSpeed adds up gradients in bfloat16",
            self.zero_stage,
            "use 1",
        )
        require(
            self.engine != "torch" or self.num_workers == 1,
            "learner.num_workers",
            "must be 1 with learner.engine=torch",
            self.num_workers,
            "use learner.engine=deepspeed",
        )
        return self


@section("weights")
class WeightsConfig:
    """How published weights reach the rollout pool."""

    transfer: Literal["auto", "broadcast", "store"] = "auto"
    """`store`: Ray's object store; `broadcast`: NCCL or gloo, else the store; `auto`: NCCL where both have GPUs."""
    bucket_bytes: PositiveInt = 256 << 20
    """Bytes of one broadcast; sender and receivers each hold a buffer of this size."""
