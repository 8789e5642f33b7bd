"""The embedded worlds whose checkpoints are shipped: how each is recorded, and how its models are trained."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

from rlir_ray.data.files import Json, write_json
from rlir_ray.pretrain.settings import SPLITS
from rlir_ray.spaces.doom import DOOM_FIELDS

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

    record: Callable[[Path, AssetsPlan], None]
    """Records into a work folder, and writes oracle.json: the scores of actions read from true positions."""
    summary_file: str
    """File of each folder of recordings that describes them."""
    architectures: dict[str, str]
    """Inverse dynamics model -> its architecture."""
    groups: tuple[str, ...] = ()
    """Fields that the world uses; empty: all fields of its space."""
    plan: AssetsPlan = field(default_factory=AssetsPlan)

    def summary(self, folder: Path) -> Json:
        """Return what describes a folder of recordings, without the paths of this machine."""
        content = json.loads((folder / self.summary_file).read_text(encoding="utf-8"))
        return {key: value for key, value in content.items() if key not in ("basedir", "relpaths")}


def _record_doom(work: Path, plan: AssetsPlan) -> None:
    from rlir_ray.data.vpt.index import list_recordings
    from rlir_ray.data.vpt.pairs import read_events
    from rlir_ray.pretrain.doom_oracle import oracle_macro_f1
    from rlir_ray.worlds.doom import WORLD_MAPS, collect

    many = {"train": plan.train_frames, "validation": plan.validation_frames}
    few = {"train": plan.world_frames, "validation": plan.world_frames // 10}
    for folder, sizes, maps in ((RECORDINGS, many, None), (WORLD_RECORDINGS, few, WORLD_MAPS)):
        for split in SPLITS:
            logger.info("%s: %d frames for %s", folder, sizes[split], split)
            collect(
                work / folder / split,
                num_frames=sizes[split],
                split=split,
                seed=plan.seed,
                maps=maps,
                num_workers=plan.threads,
            )
    if not (work / ORACLE).is_file():
        events = {
            split: [read_events(path.with_suffix(".jsonl")) for path in list_recordings(work / RECORDINGS / split)]
            for split in SPLITS
        }
        write_json(work / ORACLE, oracle_macro_f1(events["train"], events["validation"], seed=plan.seed))


def _record_pusht(work: Path, plan: AssetsPlan) -> None:
    from rlir_ray.pretrain.pusht_oracle import oracle_r2
    from rlir_ray.worlds.pusht import collect_pusht

    few = {"train": plan.train_frames, "validation": plan.validation_frames}
    many = {"train": plan.world_frames, "validation": plan.world_frames // 10}
    for folder, sizes in ((RECORDINGS, few), (WORLD_RECORDINGS, many)):
        for split in SPLITS:
            logger.info("%s: %d frames for %s", folder, sizes[split], split)
            collect_pusht(
                work / folder / split,
                num_frames=sizes[split],
                split=split,
                seed=plan.seed,
                num_workers=plan.threads,
            )
    if not (work / ORACLE).is_file():
        write_json(work / ORACLE, oracle_r2(*(work / RECORDINGS / split for split in SPLITS)))


WORLDS = {
    "doom": AssetWorld(
        record=_record_doom,
        summary_file="index.json",
        architectures={"reward_idm": "vpt", "judge_idm": "correlation"},
        groups=DOOM_FIELDS,
    ),
    "pusht": AssetWorld(
        record=_record_pusht,
        summary_file="settings.json",
        architectures={"reward_idm": "keypoints", "judge_idm": "difference"},
        plan=AssetsPlan(
            train_frames=48_000,
            validation_frames=6_000,
            # With 48,000 frames the world models learned them by heart.
            world_frames=200_000,
            tokenizer_minutes=12.0,
            reward_idm_minutes=8.0,
            judge_idm_minutes=12.0,
            world_model_minutes=60.0,
            autoencoder_minutes=8.0,
            flow_model_minutes=60.0,
        ),
    ),
}
