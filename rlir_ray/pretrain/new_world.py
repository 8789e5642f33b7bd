"""The `new` command: the recipe of a world of one's own, and all commands from its recordings to a trained model."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlir_ray.data.files import Json, write_text
from rlir_ray.data.recordings import Recordings, open_recordings, split_paths
from rlir_ray.run.environment import python_command
from rlir_ray.spaces.space import SPACE_FILE, ActionSpace

RECIPE, COMMANDS = "recipe.yaml", "commands.sh"
# Frames are halved this many times by the default tokenizer: height and width must be multiples of the cell.
CELL = 8
# Longest side of a world's frame, unless the user gives a size: minutes on a CPU, not hours.
MAX_SIDE = 64
# Minutes of each training for a world of 48x64 pixels on two CPU cores, as the embedded world was made.
MINUTES = {"tokenizer": 20.0, "autoencoder": 12.0, "reward_idm": 40.0, "judge_idm": 25.0, "world_model": 90.0}
QUICK_MINUTES = {"tokenizer": 0.1, "autoencoder": 0.1, "reward_idm": 0.1, "judge_idm": 0.1, "world_model": 0.2}
NUM_CONTEXT, NUM_FRAMES = 1, 8


@dataclass(frozen=True, kw_only=True)
class NewWorld:
    """Options of the command."""

    folder: Path
    """Receives recipe and models."""
    data: str
    """Recordings of any format."""
    family: str = "autoregressive"
    camera: str = ""
    size: tuple[int, int] | None = None
    """Height and width of the world's frames; None: from the recordings."""
    quick: bool = False
    """Tiny models and minutes, to try all commands."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of the list."""

    title: str
    minutes: float
    arguments: tuple[str, ...]
    """What follows `python -m rlir_ray`."""

    @property
    def line(self) -> str:
        return f"{python_command()} -m rlir_ray {shlex.join(self.arguments)}"


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What the recordings say of their world."""

    height: int
    width: int
    space: ActionSpace
    train: str
    validation: str
    num_train: int
    """Prompts that the recordings hold, at most those of the recipe."""
    num_heldout: int


def write_world(new: NewWorld) -> list[Command]:
    """Write recipe.yaml, commands.sh and action_space.json into a new folder, and print the commands.

    Raises:
        ValueError: the folder holds a recipe already, or the recordings cannot be used.
    """
    if (new.folder / RECIPE).exists():
        raise ValueError(f"a new world needs a new folder, got {new.folder} with a {RECIPE}; choose another folder")
    facts = _read_facts(new)
    commands = _commands(new, facts)
    new.folder.mkdir(parents=True, exist_ok=True)
    write_text(new.folder / SPACE_FILE, facts.space.to_json())
    write_text(new.folder / COMMANDS, _script(new, commands))
    # The recipe comes last: a folder with a recipe is complete.
    write_text(new.folder / RECIPE, _recipe_text(_recipe(new, facts), new))
    print(f"{facts.height}x{facts.width} pixels; actions: {', '.join(facts.space.names)}")
    minutes = sum(each.minutes for each in commands)
    print(f"{new.folder / RECIPE} and {new.folder / COMMANDS}, about {minutes:.0f} minutes:")
    for each in commands:
        print(f"  {each.line}   # {each.title}, about {each.minutes:.3g} min")
    return commands


def run_commands(commands: Sequence[Command]) -> None:
    """Run the commands in order; a failed audit does not end a quick trial.

    Raises:
        ValueError: another command fails.
    """
    for each in commands:
        print(f"\n$ {each.line}", flush=True)
        # Far above the estimate: the bound only ends a command that hangs.
        bound_s = 60 * (30 + 10 * each.minutes)
        done = subprocess.run([sys.executable, "-m", "rlir_ray", *each.arguments], check=False, timeout=bound_s)
        if done.returncode and each.arguments[0] == "audit":
            print(
                "the audit failed, as it may after so short a training; --quick goes on, and its reward means nothing"
            )
        elif done.returncode:
            raise ValueError(
                f"every command of a new world must succeed, got exit code {done.returncode} of: {each.line}; correct "
                "the cause and run the rest of commands.sh"
            )


def _read_facts(new: NewWorld) -> _Facts:
    paths = split_paths(new.data)
    train, validation = (open_recordings(paths[split], new.camera) for split in ("train", "validation"))
    first = train.recording(train.names[0])
    height, width = new.size or _world_size(*first.read(0, 1).shape[1:3])
    if height % CELL or width % CELL:
        raise ValueError(
            f"height and width must be multiples of {CELL}, got {height}x{width}; use --size "
            f"{max(CELL, height // CELL * CELL)}x{max(CELL, width // CELL * CELL)}"
        )
    most = (16, 8) if new.quick else (768, 128)
    return _Facts(
        height=height,
        width=width,
        space=train.space,
        train=paths["train"],
        validation=paths["validation"],
        num_train=min(most[0], _count_clips(train, most[0])),
        num_heldout=min(most[1], _count_clips(validation, most[1])),
    )


def _world_size(height: int, width: int) -> tuple[int, int]:
    """Return the size of the frames, reduced to at most `MAX_SIDE` pixels and to whole cells."""
    scale = min(1.0, MAX_SIDE / max(height, width))
    rows, columns = (max(1, round(side * scale / CELL)) * CELL for side in (height, width))
    return rows, columns


def _count_clips(source: Recordings, enough: int) -> int:
    """Count clips until there are enough.

    Raises:
        ValueError: the recordings hold no clip.
    """
    length, found = NUM_CONTEXT + NUM_FRAMES, 0
    for name in source.names:
        try:
            found += len(source.recording(name)) // length
        except ValueError:
            continue
        if found >= enough:
            break
    if not found:
        raise ValueError(
            f"recordings must hold clips of {length} frames, got none in {source.path}; record longer episodes"
        )
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The commands


def _commands(new: NewWorld, facts: _Facts) -> list[Command]:
    folder, minutes = new.folder, _minutes(new, facts)
    is_flow = new.family == "flow"
    codec, codes = ("autoencoder", "latents") if is_flow else ("tokenizer", "tokens")
    reading: tuple[str, ...] = ("--data", new.data, "--size", f"{facts.height}x{facts.width}")
    reading += ("--camera", new.camera) if new.camera else ()

    def train_for(name: str) -> tuple[str, ...]:
        return ("--out", str(folder / name), "--minutes", f"{minutes[name]:.3g}")

    def idm(name: str, architecture: str) -> Command:
        decoded = () if is_flow else ("--tokenizer", str(folder / codec))
        arguments = ("pretrain", "idm", *reading, *train_for(name), "--architecture", architecture, *decoded)
        return Command(title=f"the {name.replace('_', ' ')}", minutes=minutes[name], arguments=arguments)

    model = ("pretrain", "flow" if is_flow else "world-model", "--data", str(folder / codes))
    audit = ("audit", *reading, "--idm", str(folder / "reward_idm"), "--idm", str(folder / "judge_idm"))
    run = f"runs/{folder.name}"
    return [
        Command(
            title=f"the {codec}, and the recordings encoded by it",
            minutes=minutes[codec],
            arguments=("pretrain", codec, *reading, *train_for(codec), f"--{codes}", str(folder / codes)),
        ),
        idm("reward_idm", "difference"),
        idm("judge_idm", "keypoints"),
        Command(title="can the reward be believed?", minutes=1, arguments=audit),
        Command(
            title="the base world model",
            minutes=minutes["world_model"],
            arguments=(*model, *train_for("world_model")),
        ),
        Command(
            title=f"post-training, and the report {run}/report.html",
            minutes=1 if new.quick else 10,
            arguments=("train", "--recipe", str(folder / RECIPE), f"run.name={folder.name}"),
        ),
        Command(
            title="figures of the post-trained model on held-out recordings",
            minutes=1,
            arguments=("eval", "--policy", f"{run}/policy", "--data", facts.validation),
        ),
    ]


def _minutes(new: NewWorld, facts: _Facts) -> dict[str, float]:
    """Return the length of each training: more pixels take longer, more cores less; a GPU counts as eight cores."""
    if new.quick:
        return QUICK_MINUTES
    import torch

    cores = 8 if torch.cuda.is_available() else len(os.sched_getaffinity(0))
    share = min(4.0, max(0.5, facts.height * facts.width / (48 * 64))) * min(1.0, 2 / cores)
    return {name: round(share * value, 1) for name, value in MINUTES.items()}


def _script(new: NewWorld, commands: Sequence[Command]) -> str:
    lines = ["#!/bin/sh", "# From the recordings to a post-trained world model; each command resumes where it stopped."]
    lines += ["set -e"]
    for each in commands:
        lines += ["", f"# {each.title}: about {each.minutes:.3g} min", each.line]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------------------------------------------------------------
# The recipe


def _recipe(new: NewWorld, facts: _Facts) -> Json:
    folder, is_flow = new.folder, new.family == "flow"
    num_tokens = (facts.height // CELL) * (facts.width // CELL)
    has_axes = any(field.is_graded for field in facts.space.fields)
    recipe: Json = {
        "seed": 0,
        "world": {
            "height": facts.height,
            "width": facts.width,
            "num_context": NUM_CONTEXT,
            "num_frames": NUM_FRAMES,
            "groups": list(facts.space.names),
        },
        "policy": {"family": new.family},
        "models": {
            "policy": str(folder / "world_model"),
            "tokenizer": str(folder / ("autoencoder" if is_flow else "tokenizer")),
            "reward_idm": str(folder / "reward_idm"),
            "judge_idm": str(folder / "judge_idm"),
        },
        "prompts": {
            "source": "recordings",
            "path": facts.train,
            "heldout_path": facts.validation,
            "num_train": facts.num_train,
            "num_heldout": facts.num_heldout,
        },
        "data": {"camera": new.camera},
        "rollout": {"prompts_per_call": 4 if new.quick else 8},
        "reward": {
            "match": "soft",
            "axis": "smooth" if has_axes else "exact",
            "audit": "warn" if new.quick else "refuse",
        },
        # Eight clips at once.
        "learner": {"decision_budget": 8 * NUM_FRAMES * (2 if is_flow else num_tokens)},
        "train": {
            "num_steps": 2 if new.quick else 40,
            "max_minutes": 2 if new.quick else 8,
            "group_size": 4 if new.quick else 8,
            "prompts_per_step": 4 if new.quick else 8,
            "max_staleness": 1,
            "learning_rate": 1.0e-4 if is_flow else 7.5e-5,
            # Of tokens, a few miss by far: groups in which all miss by little must not count the same.
            "advantage": "batch_std" if has_axes and not is_flow else "grpo",
        },
    }
    if is_flow:
        recipe["flow"] = {"num_steps": 8, "sde": "flow_grpo", "noise_level": 0.7, "window": 2, "window_moves": "first"}
        grpo = {"clip_low": 1.0e-3, "clip_high": 1.0e-3}
        recipe["train"] |= {"kl_coefficient": 0.1, "max_advantage": 5.0, "grpo": grpo}
    return recipe


def _recipe_text(recipe: Json, new: NewWorld) -> str:
    from omegaconf import OmegaConf

    head = f"# A world model of the recordings in {json.dumps(new.data)}; train --keys explains all keys.\n"
    return head + OmegaConf.to_yaml(OmegaConf.create(recipe))
