"""The world, the prompts, and the recordings that the prompts come from."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rlir_ray.config.messages import require
from rlir_ray.config.section import FLOAT, INT, LIST, Arguments, PositiveInt, SourceName, section
from rlir_ray.extras import SOURCE_LIBRARIES
from rlir_ray.spaces.doom import DOOM_FIELDS

MAX_ACTION_SHIFT = 8


@section("world")
class WorldConfig:
    """The sizes and action fields that the checkpoints, the prompts and the judge share."""

    height: PositiveInt = 48
    """Height of a frame in pixels."""
    width: PositiveInt = 64
    """Width of a frame in pixels."""
    num_context: PositiveInt = 1
    """Number of context frames: real frames that the model gets."""
    num_frames: PositiveInt = 8
    """Number of frames that the model generates."""
    groups: Annotated[tuple[str, ...], LIST] = DOOM_FIELDS
    """Fields of the action space that rewards and metrics compare; empty: all fields."""


@section("prompts")
class PromptsConfig:
    """The prompts: context frames and commanded actions."""

    source: SourceName = "doom"
    """`doom`, `pusht`: record that world at the start; `recordings`: your own recordings; or package.module:Class."""
    args: Arguments = field(default_factory=dict)
    """Arguments of your own source: {NAME: VALUE}."""
    path: str = ""
    """Recordings for training prompts, with source=recordings: a folder, or a published index (JSON)."""
    heldout_path: str = ""
    """Recordings for evaluation prompts, with source=recordings: a folder, or a published index (JSON)."""
    actions: Literal["recorded", "sampled"] = "recorded"
    """Commanded actions: `recorded`: the clip's own; `sampled`: the scripted player's (recordings: another clip's)."""
    num_train: PositiveInt = 1024
    """Number of training prompts; each epoch uses all of them in a new order."""
    num_heldout: PositiveInt = 128
    """Number of evaluation prompts, from recordings that training never uses."""
    min_wall_distance: Annotated[float, Field(strict=True), FLOAT] = 96.0
    """Least distance (map units) to the wall in a clip's first frame: a nearer wall shows no motion."""

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
        if self.source not in SOURCE_LIBRARIES:
            return self
        for key, value in (("path", self.path), ("heldout_path", self.heldout_path)):
            require(
                not value,
                f"prompts.{key}",
                f"must be empty with prompts.source={self.source}",
                value,
                f"set prompts.source=recordings, or prompts.{key}= for the world {self.source}",
            )
        return self


@section("data")
class DataConfig:
    """The reading of recordings."""

    camera: str = ""
    """Camera of a LeRobot dataset, by its feature; empty: the only camera."""
    strict: bool = False
    """true: a broken recording is an error; false: skip broken recordings and report them."""
    resize: Literal["area", "bilinear"] = "area"
    """Resizing to the world's size: `area`: average; `bilinear`: no antialiasing, as MineWorld's and VPT's loaders."""
    action_shift: Annotated[int, Field(strict=True, ge=-MAX_ACTION_SHIFT, le=MAX_ACTION_SHIFT), INT] = 0
    """Event k + action_shift leads INTO frame k; -1 is the order of a Gymnasium loop (observation, then action)."""
