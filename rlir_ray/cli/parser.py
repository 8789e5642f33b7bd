"""The arguments of all commands with their help. Knows nothing of what the commands do."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rlir_ray.run.environment import version

# What `add_subparsers` gives; argparse keeps its type to itself.
Commands = Any
WIDE = argparse.RawDescriptionHelpFormatter


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands with their help."""
    parser = argparse.ArgumentParser(
        prog="python -m rlir_ray",
        formatter_class=WIDE,
        description="Reinforcement learning with inverse rewards for action-conditioned video world models.",
        epilog="examples:\n"
        "  python -m rlir_ray train --recipe doom_tiny_ar\n"
        "  python -m rlir_ray train --recipe doom_tiny_ar train.num_steps=100 reward.match=exact run.name=exact\n"
        "  python -m rlir_ray collect --out data/doom --frames 20000\n"
        "  python -m rlir_ray pretrain world-model --help",
    )
    parser.add_argument("--version", action="version", version=f"rlir_ray {version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_train,
        _add_scale,
        _add_doctor,
        _add_eval,
        _add_convert,
        _add_report,
        _add_ledger,
        _add_collect,
        _add_pretrain,
        _add_assets,
    ):
        add(commands)
    return parser


def _add_train(commands: Commands) -> None:
    train = commands.add_parser(
        "train",
        help="post-train a world model",
        formatter_class=WIDE,
        description="Post-trains a world model by RL with inverse rewards, evaluates it before and after on prompts\n"
        "that training never saw, and writes runs/NAME/report.html. The same command resumes a run that\n"
        "was stopped, from its newest checkpoint.",
        epilog="examples:\n  python -m rlir_ray train --recipe doom_tiny_ar run.name=first\n"
        "  python -m rlir_ray train --recipe my.yaml train.max_staleness=0 rollout.num_actors=2\n"
        "  python -m rlir_ray train --keys        (all configuration keys)",
    )
    train.add_argument(
        "--recipe", default="", help="a shipped recipe (doom_tiny_ar, mineworld_700m, ...) or a YAML file"
    )
    train.add_argument("--keys", action="store_true", help="list all configuration keys and exit")
    train.add_argument(
        "--trace", type=Path, metavar="FILE", help="write what all pools did, for ui.perfetto.dev or chrome://tracing"
    )
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted overrides, later ones win")


def _add_scale(commands: Commands) -> None:
    scale = commands.add_parser(
        "scale",
        help="grow or shrink a pool of a run that trains",
        formatter_class=WIDE,
        description="Grows or shrinks the reward or the rollout pool of a run while it trains, from a machine of its\n"
        "cluster. Actors that go finish what they hold; the run's result does not depend on their number.",
        epilog="examples:\n  python -m rlir_ray scale reward 4 --run first\n"
        "  python -m rlir_ray scale rollout 2 --run elsewhere/runs/first",
    )
    scale.add_argument("pool", choices=("reward", "rollout"), help="which pool")
    scale.add_argument("number", type=int, help="actors or replicas; holds until the next scale")
    scale.add_argument("--run", required=True, metavar="NAME", help="a run's name below runs/, or its folder")


def _add_doctor(commands: Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="what this machine, or the cluster of RAY_ADDRESS, lacks for a recipe",
        formatter_class=WIDE,
        description="One line a check: ok, warn, or fail with the remedy. Exit code 1 if the recipe cannot run.",
        epilog="examples:\n"
        "  python -m rlir_ray doctor\n"
        "  RAY_ADDRESS=10.0.0.1:6379 python -m rlir_ray doctor --recipe mineworld_700m rollout.num_actors=8",
    )
    doctor.add_argument("--recipe", default="", help="a shipped recipe or a YAML file")
    doctor.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted overrides, later ones win")


def _add_eval(commands: Commands) -> None:
    evaluation = commands.add_parser(
        "eval",
        help="judge a policy on recordings: MineWorld's row of figures",
        formatter_class=WIDE,
        description="Generates clips after recorded first frames, with the recorded actions, and prints FPS,\n"
        "precision, recall and F1 of the recovered actions (macro, over MineWorld's seven tasks), camera\n"
        "distance in bins, PSNR, SSIM, LPIPS and FVD. A column whose weights are not given says so. Needs no Ray.",
        epilog="examples:\n"
        "  python -m rlir_ray eval --policy runs/first/policy --data data/doom/validation\n"
        "  python -m rlir_ray eval --policy models/mineworld_700m --data validation --idm models/vpt_idm \\\n"
        "      --lpips alexnet-owt-7be5be79.pth --fvd i3d_torchscript.pt --out row.json",
    )
    evaluation.add_argument("--policy", required=True, metavar="DIR", help="a world model's folder")
    evaluation.add_argument("--data", required=True, metavar="PATH", help="folder of recordings, or an index JSON")
    evaluation.add_argument("--idm", default="", metavar="DIR", help="reads the actions (default: the recipe's judge)")
    evaluation.add_argument("--tokenizer", default="", metavar="DIR", help="default: POLICY/tokenizer, or the recipe's")
    evaluation.add_argument("--recipe", default="", help="frames and sampling (default: the policy's run, or its size)")
    evaluation.add_argument(
        "--num-clips", type=int, default=0, help="clips to generate (default: the recipe's prompts.num_heldout)"
    )
    evaluation.add_argument("--lpips", default="", metavar="FILE", help="torchvision's AlexNet weights (.pth)")
    evaluation.add_argument(
        "--fvd",
        default="",
        metavar="FILE",
        help="I3D as TorchScript, 10 frames and 2 clips at least; it is run: trust its source",
    )
    evaluation.add_argument("--out", default="", metavar="FILE.json", help="write the figures there too")
    evaluation.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="dotted overrides of the recipe; train --keys lists them"
    )


def _add_convert(commands: Commands) -> None:
    convert = commands.add_parser(
        "convert",
        help="turn a published checkpoint into a folder that this project and its libraries open",
        formatter_class=WIDE,
        description="Writes published checkpoints as safetensors folders. Nothing in them is executed.",
        epilog="examples:\n"
        "  python -m rlir_ray convert vpt-idm --model 4x_idm.model --weights 4x_idm.weights --out models/vpt_idm\n"
        "  python -m rlir_ray convert mineworld --checkpoint 700M_16f.ckpt --config 700M_16f.yaml --out models/700m",
    )
    formats = convert.add_subparsers(dest="format", required=True, metavar="FORMAT")
    vpt = formats.add_parser(
        "vpt-idm",
        help="OpenAI's VPT inverse dynamics model",
        formatter_class=WIDE,
        description="Writes config.json and model.safetensors, for models.reward_idm and models.judge_idm.",
        epilog="example:\n"
        "  python -m rlir_ray convert vpt-idm --model 4x_idm.model --weights 4x_idm.weights --out models/vpt_idm",
    )
    settings = vpt.add_mutually_exclusive_group(required=True)
    settings.add_argument("--model", default="", metavar="FILE.model", help="the published pickle of settings")
    settings.add_argument("--config", default="", metavar="FILE.json", help="the same settings as JSON")
    vpt.add_argument("--weights", required=True, metavar="FILE", help=".weights or .safetensors")
    vpt.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    mineworld = formats.add_parser(
        "mineworld",
        help="MineWorld's world model and tokenizer",
        formatter_class=WIDE,
        description="Writes the world model as a transformers LlamaForCausalLM folder and its tokenizer as a\n"
        "diffusers VQModel folder (DIR/tokenizer; DIR itself where the checkpoint holds a tokenizer alone).\n"
        "Two files: convert the world model to DIR, then the tokenizer to DIR/tokenizer.",
        epilog="example:\n"
        "  python -m rlir_ray convert mineworld --checkpoint checkpoints/700M_16f.ckpt \\\n"
        "      --config configs/700M_16f.yaml --out models/mineworld_700m",
    )
    mineworld.add_argument("--checkpoint", required=True, metavar="FILE.ckpt", help="world model, tokenizer, or both")
    mineworld.add_argument("--config", required=True, metavar="FILE", help="its .yaml or .json")
    mineworld.add_argument(
        "--tokenizer-config",
        default="",
        metavar="FILE.json",
        help="the VQ model's config.json (default: the one that the YAML names, also looked for beside both files)",
    )
    mineworld.add_argument("--out", required=True, metavar="DIR", help="a new folder")


def _add_report(commands: Commands) -> None:
    report = commands.add_parser(
        "report",
        help="write a run's report again",
        formatter_class=WIDE,
        description="Writes report.html into the run's folder.",
        epilog="example:\n  python -m rlir_ray report first",
    )
    report.add_argument("run", metavar="RUN", help="a run's name below runs/, or its folder")


def _add_ledger(commands: Commands) -> None:
    ledger = commands.add_parser(
        "ledger",
        help="show how every group of a run ended",
        formatter_class=WIDE,
        description="Prints a run's groups by state and by cause of failure, and checks that every one that was\n"
        "admitted ended once, and that no number is missing. Exit code 1 if not.",
        epilog="example:\n  python -m rlir_ray ledger first",
    )
    ledger.add_argument("run", metavar="RUN", help="a run's name below runs/, or its folder")


def _add_collect(commands: Commands) -> None:
    collect = commands.add_parser(
        "collect",
        help="record the embedded Doom world",
        formatter_class=WIDE,
        description="A scripted player explores Doom maps and is recorded as VPT pairs (mp4 + jsonl): event k\n"
        "leads INTO frame k. At the end a small probe measures that, for half a minute.",
        epilog="example:\n  python -m rlir_ray collect --out data/doom/train --frames 50000 --split train",
    )
    collect.add_argument("--out", required=True, help="folder for the recordings; finished pairs in it are kept")
    collect.add_argument("--frames", type=int, default=20000, help="frames in all (default 20000)")
    collect.add_argument("--split", choices=("train", "validation"), default="train", help="which maps")
    collect.add_argument("--seed", type=int, default=0, help="of the player and the maps' order")
    collect.add_argument("--no-probe", action="store_true", help="do not measure which event leads into a frame")
    collect.add_argument("--workers", type=int, default=1, help="processes; the recordings do not depend on it")


def _add_pretrain(commands: Commands) -> None:
    pretrain = commands.add_parser(
        "pretrain",
        help="train base models for a world",
        add_help=False,
        formatter_class=WIDE,
        description="Trains a frame tokenizer, an inverse dynamics model or a world model.",
        epilog="example:\n  python -m rlir_ray pretrain idm --help",
    )
    pretrain.add_argument(
        "model", nargs="?", choices=("tokenizer", "autoencoder", "idm", "world-model", "flow"), help="what to train"
    )
    # Each model's own help follows its name.
    pretrain.add_argument("-h", "--help", action="store_true", help="this text; after a model, its settings")
    pretrain.set_defaults(parser=pretrain)


def _add_assets(commands: Commands) -> None:
    commands.add_parser("assets", help="make the shipped checkpoints from nothing", add_help=False)
