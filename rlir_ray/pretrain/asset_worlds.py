"""The embedded worlds whose checkpoints are shipped: how each is recorded, and how its models are trained."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from rlir_ray.data.files import Json, write_json
from rlir_ray.pretrain.settings import SPLITS
from rlir_ray.spaces.doom import DOOM_FIELDS

if TYPE_CHECKING:
    from rlir_ray.data.recordings import Split

logger = logging.getLogger(__name__)

RECORDINGS = "recordings"
"""Folder of the recordings that tokenizer, autoencoder and inverse dynamics models are trained on."""
WORLD_RECORDINGS = "recordings_world"
"""Folder of the recordings that the world models are trained on."""
ORACLE = "oracle.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class AssetsPlan:
    """Sizes and training times of the shipped checkpoints."""

    train_frames: int = 150_000
    """Training frames for tokenizer, autoencoder and inverse dynamics models; of Doom, from many maps."""
    validation_frames: int = 16_000
    """Held-out frames for the evaluation of these models; of Doom, from other maps."""
    world_frames: int = 96_000
    """Training frames for the world models; a tenth more is held out."""
    tokenizer_minutes: float = 20.0
    """Minutes of the tokenizer's training."""
    reward_idm_minutes: float = 56.0
    """Minutes for the reward's inverse dynamics model."""
    judge_idm_minutes: float = 26.0
    """Minutes for the evaluation's inverse dynamics model, which learns faster."""
    world_model_minutes: float = 110.0
    """Minutes for the autoregressive world model; its validation loss is flat then."""
    autoencoder_minutes: float = 12.0
    """Minutes for the autoencoder."""
    flow_model_minutes: float = 115.0
    """Minutes for the flow world model."""
    threads: int = 2
    """Torch threads."""
    seed: int = 0
    """Seed; the inverse dynamics models of reward and evaluation use seed + 1 and seed + 2."""

    def __post_init__(self) -> None:
        if min(self.train_frames, self.validation_frames) < 1:
            fewest = min(self.train_frames, self.validation_frames)
            raise ValueError(f"train_frames and validation_frames must be >= 1, got {fewest}; set 1 or more")
        minutes = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name.endswith("_minutes")}
        if wrong := [name for name, value in minutes.items() if not 0 < value < math.inf]:
            option = f"--{wrong[0].replace('_', '-')}"
            raise ValueError(f"{option} must be a finite number above 0, got {minutes[wrong[0]]}; set a number above 0")
        if self.world_frames < 10:
            raise ValueError(
                f"world_frames must be >= 10 because a tenth is held out, got {self.world_frames}; set 10 or more"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AssetWorld:
    """What differs between the embedded worlds."""

    collect: Callable[[Path, int, Split, AssetsPlan], None]
    """Records a number of frames of a split into a folder."""
    oracle: Callable[[Path, AssetsPlan], Json]
    """Returns the scores of actions that are read from true positions, in a folder of recordings."""
    max_bytes: int
    """Most bytes of all shipped files."""
    summary_file: str
    """File of each folder of recordings that describes them."""
    architectures: dict[str, str]
    """Inverse dynamics model -> its architecture."""
    flow_hidden_size: int = 224
    """Width of the flow model."""
    groups: tuple[str, ...] = ()
    """Fields that the world uses; empty: all fields of its space."""
    plan: AssetsPlan = field(default_factory=AssetsPlan)

    def record(self, work: Path, plan: AssetsPlan) -> None:
        """Record all splits into a work folder, and write oracle.json."""
        sizes = {
            RECORDINGS: (plan.train_frames, plan.validation_frames),
            WORLD_RECORDINGS: (plan.world_frames, plan.world_frames // 10),
        }
        for folder, numbers in sizes.items():
            for split, num_frames in zip(SPLITS, numbers, strict=True):
                logger.info("%s: %d frames for %s", folder, num_frames, split)
                self.collect(work / folder / split, num_frames, split, plan)
        if not (work / ORACLE).is_file():
            write_json(work / ORACLE, self.oracle(work / RECORDINGS, plan))

    def summary(self, folder: Path) -> Json:
        """Return what describes a folder of recordings, without the paths of this machine."""
        content = json.loads((folder / self.summary_file).read_text(encoding="utf-8"))
        return {key: value for key, value in content.items() if key not in ("basedir", "relpaths")}


def _collect_doom(folder: Path, num_frames: int, split: Split, plan: AssetsPlan) -> None:
    from rlir_ray.worlds.doom import WORLD_MAPS, collect

    # The world models see few maps, and learn them well.
    maps = WORLD_MAPS if folder.parent.name == WORLD_RECORDINGS else None
    collect(folder, num_frames=num_frames, split=split, seed=plan.seed, maps=maps, num_workers=plan.threads)


def _oracle_doom(recordings: Path, plan: AssetsPlan) -> Json:
    from rlir_ray.data.vpt.index import list_recordings
    from rlir_ray.data.vpt.pairs import read_events
    from rlir_ray.pretrain.doom_oracle import oracle_macro_f1

    train, validation = (
        [read_events(path.with_suffix(".jsonl")) for path in list_recordings(recordings / split)] for split in SPLITS
    )
    return dict(oracle_macro_f1(train, validation, seed=plan.seed))


def _collect_pusht(folder: Path, num_frames: int, split: Split, plan: AssetsPlan) -> None:
    from rlir_ray.worlds.pusht import collect_pusht

    collect_pusht(folder, num_frames=num_frames, split=split, seed=plan.seed, num_workers=plan.threads)


def _oracle_pusht(recordings: Path, plan: AssetsPlan) -> Json:
    from rlir_ray.pretrain.pusht_oracle import oracle_r2

    return dict(oracle_r2(*(recordings / split for split in SPLITS)))


WORLDS = {
    "doom": AssetWorld(
        collect=_collect_doom,
        oracle=_oracle_doom,
        max_bytes=32_000_000,
        summary_file="index.json",
        architectures={"reward_idm": "vpt", "judge_idm": "correlation"},
        groups=DOOM_FIELDS,
    ),
    "pusht": AssetWorld(
        collect=_collect_pusht,
        oracle=_oracle_pusht,
        max_bytes=20_000_000,
        summary_file="settings.json",
        architectures={"reward_idm": "keypoints", "judge_idm": "difference"},
        flow_hidden_size=160,
        plan=AssetsPlan(
            train_frames=48_000,
            validation_frames=6_000,
            # With 48,000 frames the world models learned them by heart.
            world_frames=200_000,
            tokenizer_minutes=12.0,
            reward_idm_minutes=8.0,
            judge_idm_minutes=12.0,
            world_model_minutes=45.0,
            autoencoder_minutes=8.0,
            flow_model_minutes=80.0,
        ),
    ),
}
