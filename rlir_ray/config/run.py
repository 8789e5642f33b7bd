"""A run: its folder, its checkpoints and its evaluation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlir_ray.config.section import (
    FLOAT,
    LIST,
    FolderName,
    GuidanceScale,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    section,
)

Alarm = Literal["judge_gap", "brightness", "sharpness", "motion", "repeated", "entropy"]


@section("run")
class RunConfig:
    """The run's name and folder."""

    name: FolderName = ""
    """Name of the run and of its folder in `run.dir`; empty: recipe and time."""
    dir: str = "runs"
    """Folder of all runs, on the driver's node; in a submitted job a relative path starts at ~/rlir_ray."""
    wait_for_nodes_s: NonNegativeFloat = 0.0
    """Seconds that the run waits for missing nodes of a growing cluster before it ends with an error."""


@section("checkpoint")
class CheckpointConfig:
    """The checkpoints from which a run resumes."""

    every: NonNegativeInt = 10
    """Steps between two checkpoints; 0: write a checkpoint only when the run ends or is stopped."""
    keep: PositiveInt = 2
    """Number of checkpoints to keep; each takes three times the trained float32 weights (train.objective=nft: four)."""


@section("evaluation")
class EvaluationConfig:
    """The evaluation of policies on the held-out prompts."""

    temperatures: Annotated[tuple[PositiveFloat, ...], Field(min_length=1), LIST] = (1.0,)
    """Temperatures of the evaluation; the first gives the headline. A flow model scales its first noise by them."""
    guidance: Annotated[tuple[GuidanceScale, ...], Field(min_length=1), LIST] = (1.0,)
    """Scales of the action guidance, each evaluated at every temperature; the first gives the headline. 1: none."""
    top_p: Annotated[float, Field(strict=True, gt=0, le=1), FLOAT] = 1.0
    """Sample only the most probable tokens that together have this probability; MineWorld reports 0.8."""
    judge_context: bool = True
    """Show the context frames to the inverse dynamics models; false: only generated frames, as in MineWorld."""
    every: NonNegativeInt = 0
    """Steps between two evaluations on the held-out prompts; 0: evaluate only before and after training."""
    num_interim_prompts: NonNegativeInt = 0
    """Held-out prompts of an evaluation during training (evaluation.every); 0: all of them."""
    stop_on: Annotated[tuple[Alarm, ...], LIST] = ()
    """Alarms that end the run: judge_gap, brightness, sharpness, motion, repeated (with evaluation.every), entropy."""
    num_videos: NonNegativeInt = 6
    """Number of side-by-side videos in the report."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs for the evaluation actor, which holds the policy, the tokenizer and both inverse dynamics models."""

    @property
    def samplings(self) -> list[tuple[float, float]]:
        """Temperature and guidance of each evaluation of a policy; the first gives the headline."""
        return [(temperature, scale) for temperature in self.temperatures for scale in self.guidance]
