"""The `assets` command: record the game, train all shipped models, and publish the models with their training reports.

Every stage resumes where an earlier call stopped. Only `publish` writes into the package.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rlir_ray.data.files import Json, give_usual_mode, replace_folder, write_json
from rlir_ray.pretrain.arguments import add_settings, build_parser, take_settings
from rlir_ray.pretrain.asset_worlds import ORACLE, RECORDINGS, WORLD_RECORDINGS, WORLDS, AssetsPlan, AssetWorld
from rlir_ray.pretrain.settings import SPLITS
from rlir_ray.run.environment import versions
from rlir_ray.run.progress import log_to_stderr

if TYPE_CHECKING:
    from rlir_ray.models.clip_codec import ClipCodec

logger = logging.getLogger(__name__)

MODELS = ("tokenizer", "world_model", "autoencoder", "flow_model", "reward_idm", "judge_idm")
# Files beside the weights that are needed to open a model or that report its training.
PUBLISHED = ("config.json", "generation_config.json", "tokenizer.json", "training.json", "curve.jsonl")


def make_assets(work: Path, out: Path, plan: AssetsPlan, world: AssetWorld) -> Json:
    """Run all stages in order.

    Args:
        work: folder of recordings, tokens and checkpoints; needs gigabytes.
        out: folder that receives the shipped files.
        plan: sizes and training times.
        world: the world to record.

    Returns:
        The content of `made.json` in `out`.
    """
    import torch

    torch.set_num_threads(plan.threads)
    world.record(work, plan)
    _train_tokenizer(work, plan)
    _train_inverse_dynamics(work, plan, world)
    _train_world_model(work, plan)
    _train_autoencoder(work, plan)
    _train_flow_model(work, plan, world)
    return publish(work, out, asdict(plan), world)


def _train_tokenizer(work: Path, plan: AssetsPlan) -> None:
    import numpy as np

    from rlir_ray.data.recordings import read_splits
    from rlir_ray.models.tokenizer import FrameTokenizer
    from rlir_ray.pretrain.settings import TokenizerTraining
    from rlir_ray.pretrain.tokenizer import train_tokenizer

    if not (work / "tokenizer" / "training.json").is_file():
        settings = TokenizerTraining(minutes=plan.tokenizer_minutes, seed=plan.seed)
        clips = {split: [one.frames for one in recorded] for split, recorded in read_splits(work / RECORDINGS).items()}
        # A quarter of the held-out frames is enough, because neighbouring frames look alike.
        train_tokenizer(clips["train"], np.concatenate(clips["validation"])[::4], work / "tokenizer", settings)
    _encode_world(FrameTokenizer.from_pretrained(work / "tokenizer"), work / WORLD_RECORDINGS, work / "tokens")


def _encode_world(codec: ClipCodec, recorded: Path, out: Path) -> None:
    """Encode the recordings on which world models are trained."""
    from rlir_ray.data.recordings import open_recordings, read_all
    from rlir_ray.pretrain.encode import encode_recordings

    for split in SPLITS:
        if not (out / f"{split}.npz").is_file():
            logger.info("encoding %s", split)
            recordings = read_all(open_recordings(recorded / split))
            encode_recordings(codec, recordings, out / f"{split}.npz")


def _train_inverse_dynamics(work: Path, plan: AssetsPlan, world: AssetWorld) -> None:
    from rlir_ray.data.recordings import read_splits
    from rlir_ray.pretrain.idm import reconstruction, train_inverse_dynamics
    from rlir_ray.pretrain.settings import InverseDynamicsTraining

    todo = [name for name in ("reward_idm", "judge_idm") if not (work / name / "training.json").is_file()]
    if not todo:
        return
    train, validation = read_splits(work / RECORDINGS).values()
    minutes = {"reward_idm": plan.reward_idm_minutes, "judge_idm": plan.judge_idm_minutes}
    settings = {
        name: InverseDynamicsTraining(
            architecture=architecture,
            groups=world.groups,
            seed=plan.seed + number,
            minutes=minutes[name],
            threads=plan.threads,
        )
        for number, (name, architecture) in enumerate(world.architectures.items(), start=1)
    }
    height, width = train[0].frames.shape[1:3]
    reconstruct = reconstruction(work / "tokenizer", (height, width))
    for name in todo:
        logger.info("training the %s", name)
        train_inverse_dynamics(train, validation, work / name, settings[name], reconstruct)


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
        clips = {split: [one.frames for one in recorded] for split, recorded in read_splits(work / RECORDINGS).items()}
        train_autoencoder(clips["train"], np.concatenate(clips["validation"]), work / "autoencoder", settings)
    _encode_world(FrameAutoencoder.from_pretrained(work / "autoencoder"), work / WORLD_RECORDINGS, work / "latents")


def _train_flow_model(work: Path, plan: AssetsPlan, world: AssetWorld) -> None:
    from rlir_ray.pretrain.flow import load_latents, train_flow
    from rlir_ray.pretrain.settings import FlowTraining

    if (work / "flow_model" / "training.json").is_file():
        return
    logger.info("training the flow model")
    settings = FlowTraining(hidden_size=world.flow_hidden_size, minutes=plan.flow_model_minutes, seed=plan.seed)
    train, validation = (load_latents(work / "latents" / f"{split}.npz") for split in SPLITS)
    train_flow(train, validation, work / "flow_model", settings)


def publish(work: Path, out: Path, plan: Json, world: AssetWorld) -> Json:
    """Copy the models with their settings, curves and held-out metrics, and write made.json.

    Raises:
        ValueError: a model is missing, or all files together exceed the world's `max_bytes`.
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
            f"{folder}/{split}": world.summary(work / folder / split)
            for folder in (RECORDINGS, WORLD_RECORDINGS)
            for split in SPLITS
        },
        "oracle": json.loads((work / ORACLE).read_text(encoding="utf-8")),
        "models": {name: json.loads((work / name / "training.json").read_text(encoding="utf-8")) for name in MODELS},
    }
    write_json(temporary / "made.json", made)
    size = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
    if size > world.max_bytes:
        raise ValueError(
            f"shipped checkpoints must stay under {world.max_bytes} bytes, got {size}; train smaller models"
        )
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


def main(argv: Sequence[str] | None = None) -> None:
    """Run `python -m rlir_ray assets`."""
    parser = build_parser(
        "assets",
        "Makes the shipped checkpoints from scratch: records the game, trains tokenizer, autoencoder, inverse "
        "dynamics models and both world models, and publishes them with made.json. Takes hours on two cores; resumes "
        "a stopped run.",
        "--out rlir_ray/assets/doom --work work/assets",
    )
    parser.add_argument("--world", choices=tuple(WORLDS), default="doom", help="embedded world")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder that receives the checkpoints; an existing folder is replaced"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("work/assets"), help="folder of recordings and unfinished trainings"
    )
    add_settings(parser, AssetsPlan)
    world = WORLDS[parser.parse_known_args(argv)[0].world]
    parser.set_defaults(**asdict(world.plan))
    chosen = vars(parser.parse_args(argv))
    plan = take_settings(chosen, AssetsPlan)
    log_to_stderr()
    make_assets(chosen["work"], chosen["out"], plan, world)
