"""What is shown to the model: the world, its prompts and the recordings that they come from."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlir_ray.config.messages import require
from rlir_ray.config.section import FLOAT, INT, LIST, Arguments, PositiveInt, SourceName, section

MAX_ACTION_SHIFT = 8
# The names in `rlir_ray.spaces.actions.GROUPS`.
GroupName = Literal[
    "forward_back", "left_right", "sprint_sneak", "use_attack", "jump", "drop", "inventory", "hotbar", "pitch", "yaw"
]


@section("world")
class WorldConfig:
    """What the checkpoints, the prompts and the judge must agree on."""

    height: PositiveInt = 48
    """Pixels."""
    width: PositiveInt = 64
    """Pixels."""
    num_context: PositiveInt = 1
    """Frames that are given."""
    num_frames: PositiveInt = 8
    """Frames that are generated."""
    groups: Annotated[tuple[GroupName, ...], Field(min_length=1), LIST] = ("forward_back", "use_attack", "jump", "yaw")
    """Exclusive action groups in use: those that rewards and metrics compare."""


@section("prompts")
class PromptsConfig:
    source: SourceName = "doom"
    """`doom`: recorded from the game at the start; `recordings`: VPT pairs of your own; or package.module:Class."""
    args: Arguments = field(default_factory=dict)
    """Arguments of a source of your own, beside the configuration: {NAME: VALUE}."""
    path: str = ""
    """Recordings for training prompts, with source=recordings: a folder, or a published index (JSON)."""
    heldout_path: str = ""
    """The same for evaluation prompts."""
    actions: Literal["recorded", "sampled"] = "recorded"
    """Commanded actions: `recorded` ones, or `sampled`: the scripted player's, with recordings another clip's."""
    num_train: PositiveInt = 1024
    """Training prompts; they are used again, in another order, when they run out."""
    num_heldout: PositiveInt = 128
    """Evaluation prompts, from recordings that training never shows."""
    min_wall_distance: Annotated[float, Field(strict=True), FLOAT] = 96.0
    """Leave out clips whose first frame faces a wall nearer than this (map units): they carry no cue of motion."""

    @model_validator(mode="after")
    def _check_paths(self) -> Self:
        if self.source == "recordings":
            require(
                bool(self.path),
                "prompts.path",
                "must name a folder of recordings or an index",
                self.path,
                "set prompts.path=PATH",
            )
            require(
                self.heldout_path not in ("", self.path),
                "prompts.heldout_path",
                "must name another folder than prompts.path",
                self.heldout_path,
                "set prompts.heldout_path=DIR",
            )
        if self.source != "doom":
            return self
        for key, value in (("path", self.path), ("heldout_path", self.heldout_path)):
            require(
                not value,
                f"prompts.{key}",
                f"must be empty with prompts.source={self.source}",
                value,
                f"set prompts.source=recordings, or prompts.{key}= for the embedded world",
            )
        return self


@section("data")
class DataConfig:
    """How recordings are read."""

    strict: bool = False
    """A broken recording is an error; otherwise it is left out, counted and named."""
    resize: Literal["area", "bilinear"] = "area"
    """To the world's size: `area`: the average; `bilinear`: without antialiasing, as MineWorld's and VPT's loaders."""
    action_shift: Annotated[int, Field(strict=True, ge=-MAX_ACTION_SHIFT, le=MAX_ACTION_SHIFT), INT] = 0
    """Event k + action_shift leads INTO frame k; -1: the order of a Gymnasium loop (observation, then its action)."""
