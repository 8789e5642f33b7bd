"""The command `convert`: its arguments, and the call of a format's converter, which imports heavy libraries."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rlir_ray.cli.world_parser import WIDE, Commands


@dataclass(frozen=True, kw_only=True)
class Format:
    """A published format.

    Args:
        convert: function of `rlir_ray.published.convert`; takes `out` and the options by their names.
        help, description: texts of --help.
        example: arguments after `python -m rlir_ray convert FORMAT`.
        add_options: adds the options beside --out.
    """

    convert: str
    help: str
    description: str
    example: str
    add_options: Callable[[argparse.ArgumentParser], None]


def add_convert(commands: Commands) -> None:
    """Add the command with one subcommand for each of `FORMATS`."""
    convert = commands.add_parser(
        "convert",
        help="convert a published checkpoint to a folder that this project and its libraries open",
        formatter_class=WIDE,
        description="Writes published checkpoints as safetensors folders. Code in a checkpoint is never executed.",
        epilog="examples:\n"
        + "\n".join(
            f"  python -m rlir_ray convert {name} {FORMATS[name].example}" for name in ("vpt-idm", "mineworld")
        ),
    )
    formats = convert.add_subparsers(dest="format", required=True, metavar="FORMAT")
    for name, each in FORMATS.items():
        parser = formats.add_parser(
            name,
            help=each.help,
            formatter_class=WIDE,
            description=each.description,
            epilog=f"example:\n  python -m rlir_ray convert {name} {each.example}",
        )
        each.add_options(parser)
        parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")


def run_convert(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Convert, and print the lines for the user."""
    # The lines of this command tell the user enough: silence the messages of transformers.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # transformers imports DeepSpeed, which would otherwise log a device that this command does not use.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    options = {name: value for name, value in vars(arguments).items() if name not in ("command", "format")}
    converter = getattr(importlib.import_module("rlir_ray.published.convert"), FORMATS[arguments.format].convert)
    print("\n".join(converter(**options)))


def _add_vpt_idm(parser: argparse.ArgumentParser) -> None:
    settings = parser.add_mutually_exclusive_group(required=True)
    settings.add_argument("--model", default="", metavar="FILE.model", help="the published pickle of settings")
    settings.add_argument("--config", default="", metavar="FILE.json", help="the same settings as JSON")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE", help=".weights or .safetensors")


def _add_mineworld(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="FILE.ckpt", help="world model, tokenizer, or both"
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the checkpoint's .yaml or .json")
    parser.add_argument(
        "--tokenizer-config",
        default="",
        metavar="FILE.json",
        help="config.json of the VQ model (default: the file that the YAML names, there or beside the two files)",
    )


def _add_oasis(parser: argparse.ArgumentParser) -> None:
    for option, what in (("--dit", "world model"), ("--vae", "autoencoder")):
        parser.add_argument(option, type=Path, required=True, metavar="FILE", help=f"the {what}: .safetensors or .pt")
    parser.add_argument(
        "--config",
        default="",
        metavar="FILE.json",
        help='arguments of other sizes, as {"dit": {...}, "vae": {...}} (default: the published sizes)',
    )


def _add_folder(places: str) -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "folder", type=Path, metavar="DIR", help=f"the folder as published; its models lie in {places}"
        )

    return add


def _add_diamond(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "agent", type=Path, metavar="FILE", help="a published agent of atari_100k/models: .pt or .safetensors"
    )


FORMATS = {
    "vpt-idm": Format(
        convert="convert_vpt_idm",
        help="OpenAI's VPT inverse dynamics model",
        description="Writes config.json and model.safetensors, for models.reward_idm and models.judge_idm.",
        example="--model 4x_idm.model --weights 4x_idm.weights --out models/vpt_idm",
        add_options=_add_vpt_idm,
    ),
    "mineworld": Format(
        convert="convert_mineworld",
        help="MineWorld's world model and tokenizer",
        description="Writes the world model as a transformers LlamaForCausalLM folder and its tokenizer as a\n"
        "diffusers VQModel folder (DIR/tokenizer; DIR itself if the checkpoint holds only a tokenizer).\n"
        "For two files, convert the world model to DIR, then the tokenizer to DIR/tokenizer.",
        example="--checkpoint 700M_16f.ckpt --config 700M_16f.yaml --out models/mineworld_700m",
        add_options=_add_mineworld,
    ),
    "oasis": Format(
        convert="convert_oasis",
        help="Oasis-500M's world model and autoencoder",
        description="Writes the diffusers folders DIR/world_model and DIR/autoencoder.",
        example="--dit oasis500m.safetensors --vae vit-l-20.safetensors --out models/oasis",
        add_options=_add_oasis,
    ),
    "rlvr-world": Format(
        convert="convert_rlvr",
        help="RLVR-World's tokenizers and transformers",
        description="Checks a published folder, and writes its models as safetensors: a tokenizer of single frames or\n"
        "a compressive one (for models.tokenizer), or a transformer as a LlamaForCausalLM (for models.policy).",
        example="rt1-frame-tokenizer --out models/rt1_frame_tokenizer",
        add_options=_add_folder("it, or in tokenizer and transformer"),
    ),
    "ivideogpt": Format(
        convert="convert_ivideogpt",
        help="iVideoGPT's tokenizer and transformer",
        description="Checks a published folder, and writes its tokenizer and its transformer, with or without\n"
        "actions, as safetensors.",
        example="ivideogpt-bair-64-act-cond --out models/bair",
        add_options=_add_folder("tokenizer and transformer"),
    ),
    "diamond": Format(
        convert="convert_diamond",
        help="DIAMOND's world model of an Atari game",
        description="Writes the world model as the diffusers folder DIR/world_model, and DIR/pixels, a codec\n"
        "whose latents are pixels. Sizes and number of actions are read from the tensors.",
        example="Breakout.pt --out models/diamond_breakout",
        add_options=_add_diamond,
    ),
}
"""Name of a format -> its arguments and converter."""
