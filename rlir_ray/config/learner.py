"""The learner group and the transfer of its weights to the rollout pool."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlir_ray.config.messages import require
from rlir_ray.config.section import FLOAT, INT, NonNegativeFloat, NonNegativeInt, PositiveInt, Resources, section


@section("learner")
class LearnerConfig:
    """The learner group: its engine, ranks and resources."""

    engine: Literal["deepspeed", "torch"] = "deepspeed"
    """`deepspeed`: DeepSpeed ZeRO on any number of ranks; `torch`: torch's AdamW on one rank."""
    num_workers: PositiveInt = 1
    """Number of learner ranks."""
    num_cpus: NonNegativeFloat = 0.5
    """Logical CPUs that Ray reserves for a rank."""
    use_gpu: bool = False
    """true: one GPU per rank, with NCCL; false: CPUs, with gloo."""
    gpu_share: Annotated[float, Field(strict=True, gt=0, le=1), FLOAT] = 1.0
    """Share of its GPU that Ray reserves for a single rank; below 1, the pools can share one GPU."""
    resources: Resources = field(default_factory=dict)
    """Custom resources that place a rank on a node with these resources: {learner_node: 0.01}."""
    num_threads: PositiveInt = 1
    """Number of torch threads of a rank."""
    zero_stage: Annotated[int, Field(strict=True, ge=0, le=3), INT] = 1
    """DeepSpeed ZeRO stage."""
    offload_optimizer: bool = False
    """Keep optimiser states in host memory (GPU learners)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the learner's computation; with `bf16` the first ratio is 1 only within rounding."""
    decision_budget: PositiveInt = 12288
    """Most decisions in one forward and backward pass; a larger step accumulates gradients."""
    gradient_checkpointing: bool = False
    """Recompute the activations of each layer in the backward pass: this saves memory and is a third slower."""
    max_restarts: NonNegativeInt = 3
    """Most restarts of lost ranks from the latest checkpoint, in one run."""

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        require(
            self.zero_stage > 0 or self.precision == "fp32" or self.engine == "torch",
            "learner.zero_stage",
            "must be 1..3 with learner.precision=bf16, because DeepSpeed without ZeRO sums gradients in bfloat16",
            self.zero_stage,
            "use 1",
        )
        require(
            self.gpu_share == 1 or self.num_workers == 1,
            "learner.gpu_share",
            "must be 1 with several ranks, because NCCL allows one rank on a GPU",
            self.gpu_share,
            "leave it out or set learner.num_workers=1",
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
    """The transfer of published weights to the rollout pool."""

    transfer: Literal["auto", "broadcast", "store"] = "auto"
    """`store`: Ray's object store; `broadcast`: NCCL or gloo; `auto`: NCCL if both pools have GPUs, else the store."""
    bucket_bytes: PositiveInt = 256 << 20
    """Bytes of one broadcast message; the sender and each receiver hold a buffer of this size."""
