"""The `assets` command: record the game, train all shipped models, and publish the models with their training reports.

Every stage resumes where an earlier call stopped. Only `publish` writes into the package.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from rlir_ray.data.files import Json, give_usual_mode, replace_folder, write_json
from rlir_ray.pretrain.arguments import add_settings, build_parser, take_settings
from rlir_ray.pretrain.settings import SPLITS
from rlir_ray.run.environment import versions
from rlir_ray.run.progress import log_to_stderr

if TYPE_CHECKING:
    from rlir_ray.models.frame_codec import FrameCodec

logger = logging.getLogger(__name__)

MODELS = ("tokenizer", "world_model", "autoencoder", "flow_model", "reward_idm", "judge_idm")
# Files beside the weights that are needed to open a model or that report its training.
PUBLISHED = ("config.json", "generation_config.json", "tokenizer.json", "training.json", "curve.jsonl")
MAX_BYTES = 32_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class AssetsPlan:
    """Sizes and training times of the shipped checkpoints."""

    train_frames: int = 150_000
    """Training frames from many maps, for tokenizer, autoencoder and inverse dynamics models."""
    validation_frames: int = 16_000
    """Held-out frames from other maps, for the evaluation of these models."""
    world_frames: int = 96_000
    """Training frames from the world's maps, for the world models; a tenth more is held out."""
    tokenizer_minutes: float = 20.0
    """Minutes of the tokenizer's training."""
    reward_idm_minutes: float = 56.0
    """Minutes for the reward's inverse dynamics model, in VPT's form."""
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


def make_assets(work: Path, out: Path, plan: AssetsPlan) -> Json:
    """Run all stages in order.

    Args:
        work: folder of recordings, tokens and checkpoints; needs gigabytes.
        out: folder that receives the shipped files.
        plan: sizes and training times.

    Returns:
        The content of `made.json` in `out`.
    """
    import torch

    torch.set_num_threads(plan.threads)
    _record(work, plan)
    _train_tokenizer(work, plan)
    _train_inverse_dynamics(work, plan)
    _train_world_model(work, plan)
    _train_autoencoder(work, plan)
    _train_flow_model(work, plan)
    return publish(work, out, asdict(plan))


def _record(work: Path, plan: AssetsPlan) -> None:
    from rlir_ray.data.vpt.index import list_recordings
    from rlir_ray.data.vpt.pairs import read_events
    from rlir_ray.pretrain.doom_oracle import oracle_macro_f1
    from rlir_ray.worlds.doom import WORLD_MAPS, collect

    many = {"train": plan.train_frames, "validation": plan.validation_frames}
    few = {"train": plan.world_frames, "validation": plan.world_frames // 10}
    for folder, sizes, maps in (("recordings", many, None), ("recordings_world", few, WORLD_MAPS)):
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
    if not (work / "oracle.json").is_file():
        events = {
            split: [read_events(path.with_suffix(".jsonl")) for path in list_recordings(work / "recordings" / split)]
            for split in SPLITS
        }
        write_json(work / "oracle.json", oracle_macro_f1(events["train"], events["validation"], seed=plan.seed))


def _train_tokenizer(work: Path, plan: AssetsPlan) -> None:
    import numpy as np

    from rlir_ray.data.recordings import read_splits
    from rlir_ray.models.tokenizer import FrameTokenizer
    from rlir_ray.pretrain.settings import TokenizerTraining
    from rlir_ray.pretrain.tokenizer import train_tokenizer

    if not (work / "tokenizer" / "training.json").is_file():
        settings = TokenizerTraining(minutes=plan.tokenizer_minutes, seed=plan.seed)
        clips = {
            split: [one.frames for one in recorded] for split, recorded in read_splits(work / "recordings").items()
        }
        # A quarter of the held-out frames is enough, because neighbouring frames look alike.
        train_tokenizer(clips["train"], np.concatenate(clips["validation"])[::4], work / "tokenizer", settings)
    _encode_world(FrameTokenizer.from_pretrained(work / "tokenizer"), work, work / "tokens")


def _encode_world(codec: FrameCodec, work: Path, out: Path) -> None:
    """Encode the recordings on which world models are trained."""
    from rlir_ray.data.recordings import open_recordings, read_all
    from rlir_ray.pretrain.encode import encode_recordings

    for split in SPLITS:
        if not (out / f"{split}.npz").is_file():
            logger.info("encoding %s", split)
            recordings = read_all(open_recordings(work / "recordings_world" / split))
            encode_recordings(codec, recordings, out / f"{split}.npz")


def _train_inverse_dynamics(work: Path, plan: AssetsPlan) -> None:
    from rlir_ray.data.recordings import read_splits
    from rlir_ray.pretrain.idm import reconstruction, train_inverse_dynamics
    from rlir_ray.pretrain.settings import InverseDynamicsTraining
    from rlir_ray.worlds.doom import GROUPS_IN_USE

    todo = [name for name in ("reward_idm", "judge_idm") if not (work / name / "training.json").is_file()]
    if not todo:
        return
    train, validation = read_splits(work / "recordings").values()
    settings = {
        "reward_idm": InverseDynamicsTraining(
            architecture="vpt",
            groups=GROUPS_IN_USE,
            seed=plan.seed + 1,
            minutes=plan.reward_idm_minutes,
            threads=plan.threads,
        ),
        "judge_idm": InverseDynamicsTraining(
            architecture="correlation",
            groups=GROUPS_IN_USE,
            seed=plan.seed + 2,
            minutes=plan.judge_idm_minutes,
            threads=plan.threads,
        ),
    }
    for name in todo:
        logger.info("training the %s", name)
        train_inverse_dynamics(train, validation, work / name, settings[name], reconstruction(work / "tokenizer"))


def _train_world_model(work: Path, plan: AssetsPlan) -> None:
    from rlir_ray.pretrain.settings import WorldModelTraining
    from rlir_ray.pretrain.world_model import load_tokens, train_world_model

    if (work / "world_model" / "training.json").is_file():
        return
    logger.info("training the world model")
    settings = WorldModelTraining(minutes=plan.world_model_minutes, seed=plan.seed)
    train, validation = (load_tokens(work / "tokens" / f"{split}.npz") for split in SPLITS)
    train_world_model(train, validation, work / "world_model", settings)


def _train_autoencoder(work: Path, plan: AssetsPlan) -> None:
    import numpy as np

    from rlir_ray.data.recordings import read_splits
    from rlir_ray.models.autoencoder import FrameAutoencoder
    from rlir_ray.pretrain.autoencoder import train_autoencoder
    from rlir_ray.pretrain.settings import AutoencoderTraining

    if not (work / "autoencoder" / "training.json").is_file():
        logger.info("training the autoencoder")
        settings = AutoencoderTraining(minutes=plan.autoencoder_minutes, seed=plan.seed)
        clips = {
            split: [one.frames for one in recorded] for split, recorded in read_splits(work / "recordings").items()
        }
        train_autoencoder(clips["train"], np.concatenate(clips["validation"]), work / "autoencoder", settings)
    _encode_world(FrameAutoencoder.from_pretrained(work / "autoencoder"), work, work / "latents")


def _train_flow_model(work: Path, plan: AssetsPlan) -> None:
    from rlir_ray.pretrain.flow import load_latents, train_flow
    from rlir_ray.pretrain.settings import FlowTraining

    if (work / "flow_model" / "training.json").is_file():
        return
    logger.info("training the flow model")
    settings = FlowTraining(minutes=plan.flow_model_minutes, seed=plan.seed)
    train, validation = (load_latents(work / "latents" / f"{split}.npz") for split in SPLITS)
    train_flow(train, validation, work / "flow_model", settings)


def publish(work: Path, out: Path, plan: Json) -> Json:
    """Copy the models with their settings, curves and held-out metrics, and write made.json.

    Raises:
        ValueError: a model is missing, or all files together exceed `MAX_BYTES`.
    """
    temporary = out.with_name(out.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    for name in MODELS:
        if not (work / name / "training.json").is_file():
            raise ValueError(f"{name} must be trained before it is published, found no {work / name / 'training.json'}")
        copy_model(work / name, temporary / name)
    made = {
        "plan": plan,
        "versions": versions(),
        "recordings": {
            f"{folder}/{split}": _summary(work / folder / split)
            for folder in ("recordings", "recordings_world")
            for split in SPLITS
        },
        "oracle_macro_f1": json.loads((work / "oracle.json").read_text(encoding="utf-8")),
        "models": {name: json.loads((work / name / "training.json").read_text(encoding="utf-8")) for name in MODELS},
    }
    write_json(temporary / "made.json", made)
    size = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        raise ValueError(f"shipped checkpoints must stay under {MAX_BYTES} bytes, got {size}; train smaller models")
    replace_folder(temporary, out)
    logger.info("%s: %.1f MB", out, size / 1e6)
    return made


def copy_model(source: Path, target: Path) -> None:
    """Copy the shipped files of a training's folder."""
    target.mkdir(parents=True)
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors":
            _copy_half(path, target / path.name)
        elif path.name in PUBLISHED:
            shutil.copyfile(path, target / path.name)


def _copy_half(source: Path, target: Path) -> None:
    """Copy weights as float16, which halves the file; all loaders convert to float32."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = {
        name: value.half() if value.dtype == torch.float32 else value for name, value in load_file(source).items()
    }
    save_file(weights, target, metadata={"format": "pt"})
    give_usual_mode(target.parent)


def _summary(folder: Path) -> object:
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    return {key: value for key, value in index.items() if key not in ("basedir", "relpaths")}


def main(argv: Sequence[str] | None = None) -> None:
    """Run `python -m rlir_ray assets`."""
    parser = build_parser(
        "assets",
        "Makes the shipped checkpoints from scratch: records the game, trains tokenizer, autoencoder, inverse "
        "dynamics models and both world models, and publishes them with made.json. Takes hours on two cores; resumes "
        "a stopped run.",
        "--out rlir_ray/assets/doom --work work/assets",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder that receives the checkpoints; an existing folder is replaced"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("work/assets"), help="folder of recordings and unfinished trainings"
    )
    add_settings(parser, AssetsPlan)
    chosen = vars(parser.parse_args(argv))
    plan = take_settings(chosen, AssetsPlan)
    log_to_stderr()
    make_assets(chosen["work"], chosen["out"], plan)
