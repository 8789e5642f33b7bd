"""The arguments of all commands and their help. Independent of the commands' code."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlir_ray.cli.convert import add_convert
from rlir_ray.cli.generate import add_generate
from rlir_ray.cli.merge import add_merge
from rlir_ray.cli.play import add_play
from rlir_ray.cli.world_parser import WIDE, Commands, add_world_commands
from rlir_ray.run.environment import version


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="python -m rlir_ray",
        formatter_class=WIDE,
        description="Reinforcement learning with inverse rewards for action-conditioned video world models.",
        epilog="examples:\n"
        "  python -m rlir_ray train --recipe doom_tiny_ar\n"
        "  python -m rlir_ray train --recipe doom_tiny_ar train.num_steps=100 reward.match=exact run.name=exact\n"
        "  python -m rlir_ray collect --env CarRacing-v3 --out data/car --frames 20000\n"
        "  python -m rlir_ray new work/car --data data/car",
    )
    parser.add_argument("--version", action="version", version=f"rlir_ray {version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_train,
        _add_scale,
        _add_doctor,
        _add_eval,
        add_convert,
        add_merge,
        add_generate,
        add_play,
        _add_report,
        _add_ledger,
    ):
        add(commands)
    add_world_commands(commands)
    return parser


def _add_train(commands: Commands) -> None:
    train = commands.add_parser(
        "train",
        help="post-train a world model",
        formatter_class=WIDE,
        description="Post-trains a world model by RL with inverse rewards, evaluates the model before and after on\n"
        "prompts that training never saw, and writes runs/NAME/report.html. The same command resumes a\n"
        "stopped run from its newest checkpoint.",
        epilog="examples:\n  python -m rlir_ray train --recipe doom_tiny_ar run.name=first\n"
        "  python -m rlir_ray train --recipe my.yaml train.max_staleness=0 rollout.num_actors=2\n"
        "  python -m rlir_ray train --keys        (all configuration keys)",
    )
    train.add_argument(
        "--recipe", default="", help="a shipped recipe (doom_tiny_ar, mineworld_700m, ...) or a YAML file"
    )
    train.add_argument("--keys", action="store_true", help="list all configuration keys and exit")
    train.add_argument(
        "--trace", type=Path, metavar="FILE", help="write a trace of all pools for ui.perfetto.dev or chrome://tracing"
    )
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted overrides, later ones win")


def _add_scale(commands: Commands) -> None:
    scale = commands.add_parser(
        "scale",
        help="change the number of actors in a pool of a run that trains",
        formatter_class=WIDE,
        description="Changes the size of the reward or the rollout pool of a run that trains. Start this command on a\n"
        "machine of the run's cluster. An actor that leaves first finishes its groups. The result of the\n"
        "run does not depend on the number of actors.",
        epilog="examples:\n  python -m rlir_ray scale reward 4 --run first\n"
        "  python -m rlir_ray scale rollout 2 --run elsewhere/runs/first",
    )
    scale.add_argument("pool", choices=("reward", "rollout"), help="which pool")
    scale.add_argument("number", type=int, help="number of actors or replicas until the next scale")
    scale.add_argument("--run", required=True, metavar="NAME", help="a run's name below runs/, or its folder")


def _add_doctor(commands: Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check whether this machine, or the cluster of RAY_ADDRESS, can run a recipe",
        formatter_class=WIDE,
        description="Prints a line for each check: ok, warn or fail, with the remedy. Exit code 1 if a check fails.",
        epilog="examples:\n"
        "  python -m rlir_ray doctor\n"
        "  RAY_ADDRESS=10.0.0.1:6379 python -m rlir_ray doctor --recipe mineworld_700m rollout.num_actors=8",
    )
    doctor.add_argument("--recipe", default="", help="a shipped recipe or a YAML file")
    doctor.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted overrides, later ones win")


def _add_eval(commands: Commands) -> None:
    evaluation = commands.add_parser(
        "eval",
        help="evaluate a policy on recordings: MineWorld's or RLVR-World's row of figures",
        formatter_class=WIDE,
        description="Generates clips after recorded first frames, with the recorded actions, and prints FPS,\n"
        "precision, recall and F1 of the recovered actions (macro, over MineWorld's seven tasks), camera\n"
        "distance in bins, PSNR, SSIM, LPIPS and FVD. LPIPS and FVD need their weights. With --rlvr it prints\n"
        "RLVR-World's columns: MSE, PSNR, SSIM, LPIPS and the share of repeated frames. Works without Ray.",
        epilog="examples:\n"
        "  python -m rlir_ray eval --policy runs/first/policy --data data/doom/validation\n"
        "  python -m rlir_ray eval --policy models/mineworld_700m --data validation --idm models/vpt_idm \\\n"
        "      --lpips alexnet-owt-7be5be79.pth --fvd i3d_torchscript.pt --out row.json",
    )
    evaluation.add_argument("--policy", required=True, metavar="DIR", help="a world model's folder")
    evaluation.add_argument("--data", required=True, metavar="PATH", help="folder of recordings, or an index JSON")
    evaluation.add_argument("--idm", default="", metavar="DIR", help="reads the actions (default: the recipe's judge)")
    evaluation.add_argument("--tokenizer", default="", metavar="DIR", help="default: POLICY/tokenizer, or the recipe's")
    evaluation.add_argument("--recipe", default="", help="frames and sampling (default: by the policy's run or size)")
    evaluation.add_argument(
        "--num-clips", type=int, default=0, help="number of clips (default: the recipe's prompts.num_heldout)"
    )
    evaluation.add_argument(
        "--lpips",
        default="",
        metavar="FILE",
        help="torchvision's AlexNet weights (.pth); with --rlvr VGG16's",
    )
    evaluation.add_argument(
        "--fvd",
        default="",
        metavar="FILE",
        help="I3D as TorchScript; needs 10 frames and 2 clips; the file is a program: use a source that you trust",
    )
    evaluation.add_argument("--rlvr", action="store_true", help="print RLVR-World's columns in place of MineWorld's")
    evaluation.add_argument("--out", default="", metavar="FILE.json", help="also write the figures to this file")
    evaluation.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="dotted overrides of the recipe; train --keys lists them"
    )


def _add_report(commands: Commands) -> None:
    report = commands.add_parser(
        "report",
        help="write the report of a run again",
        formatter_class=WIDE,
        description="Writes report.html into the folder of an evaluated run.",
        epilog="example:\n  python -m rlir_ray report first",
    )
    report.add_argument("run", metavar="RUN", help="a run's name below runs/, or its folder")


def _add_ledger(commands: Commands) -> None:
    ledger = commands.add_parser(
        "ledger",
        help="count how the groups of a run ended",
        formatter_class=WIDE,
        description="Prints the number of groups in each state and for each cause of failure. Checks that each\n"
        "admitted group ended exactly once, and that no group number is missing. Exit code 1 if a check\n"
        "fails.",
        epilog="example:\n  python -m rlir_ray ledger first",
    )
    ledger.add_argument("run", metavar="RUN", help="a run's name below runs/, or its folder")
