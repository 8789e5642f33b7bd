"""A run: its folder, its checkpoints and its evaluation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rlir_ray.config.section import (
    FLOAT,
    LIST,
    FolderName,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    section,
)


@section("run")
class RunConfig:
    name: FolderName = ""
    """Name of the run's folder in `run.dir`; empty: recipe and time."""
    dir: str = "runs"
    """Folder of all runs, on the driver's node; for a submitted job a relative path starts at ~/rlir_ray."""
    wait_for_nodes_s: NonNegativeFloat = 0.0
    """Seconds to wait for missing nodes on a cluster that grows, before the run is refused."""


@section("checkpoint")
class CheckpointConfig:
    every: NonNegativeInt = 10
    """Steps between two checkpoints; 0: write one only when the run ends or is stopped."""
    keep: PositiveInt = 2
    """Checkpoints to keep; each holds the trained weights in float32 three times (train.objective=nft: four times)."""


@section("evaluation")
class EvaluationConfig:
    temperatures: Annotated[tuple[PositiveFloat, ...], Field(min_length=1), LIST] = (1.0,)
    """Temperatures of the evaluation; the headline uses the first one. For a flow model it scales the first noise."""
    top_p: Annotated[float, Field(strict=True, gt=0, le=1), FLOAT] = 1.0
    """Sample only the likeliest tokens that hold this share of the probability; MineWorld reports 0.8."""
    judge_context: bool = True
    """Show the context frames to the inverse dynamics models; false: generated frames alone, as MineWorld does."""
    every: NonNegativeInt = 0
    """Steps between two evaluations on the held-out prompts; 0: evaluate only before and after the training."""
    num_videos: NonNegativeInt = 6
    """Side-by-side videos in the report."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs for the evaluation, which holds the policy, the tokenizer and both inverse dynamics models."""
