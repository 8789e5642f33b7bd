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
    """Folder of the run below `run.dir`; empty: recipe and time."""
    dir: str = "runs"
    """Where runs are kept, on the driver's node; a relative one of a submitted job is below ~/rlir_ray there."""
    wait_for_nodes_s: NonNegativeFloat = 0.0
    """On a cluster that grows: seconds to wait for nodes that the pools lack, before the run is refused."""


@section("checkpoint")
class CheckpointConfig:
    every: NonNegativeInt = 10
    """Steps between two checkpoints; 0: only at the end of the run, or when it is stopped."""
    keep: PositiveInt = 2
    """Checkpoints that stay; each holds the trained weights in float32 three times, four for train.objective=nft."""


@section("evaluation")
class EvaluationConfig:
    temperatures: Annotated[tuple[PositiveFloat, ...], Field(min_length=1), LIST] = (1.0,)
    """Both models are sampled at each of these, the first is the headline; it scales a flow model's first noise."""
    top_p: Annotated[float, Field(strict=True, gt=0, le=1), FLOAT] = 1.0
    """Sample from the likeliest tokens that hold this share of the probability; MineWorld reports 0.8."""
    judge_context: bool = True
    """The inverse dynamics models see the context frames too; false: generated ones alone, as MineWorld's evaluator."""
    every: NonNegativeInt = 0
    """Judge the policy on the held-out prompts every so many steps; 0: before and after only."""
    num_videos: NonNegativeInt = 6
    """Side-by-side videos in the report."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs for the evaluation, which holds the policy, the tokenizer and both inverse dynamics models."""
