"""The arguments of the commands that make a world: recordings, base models, and checks of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rlir_ray.pretrain.arguments import add_reading, parse_size

# The type that `add_subparsers` returns is private in argparse.
Commands = Any
WIDE = argparse.RawDescriptionHelpFormatter


def add_world_commands(commands: Commands) -> None:
    """Add the commands in the order in which a new world needs them."""
    for add in (_add_collect, _add_actions, _add_new, _add_pretrain, _add_audit, _add_assets):
        add(commands)


def _add_actions(commands: Commands) -> None:
    actions = commands.add_parser(
        "actions",
        help="print a recording's actions in the convention of VPT, MineWorld, Oasis or an action space",
        formatter_class=WIDE,
        description="Prints which action leads into which frame, then one line per frame. Works without Ray.",
        epilog="examples:\n"
        "  python -m rlir_ray actions data/doom/train/episode_0.jsonl --to mineworld\n"
        "  python -m rlir_ray actions data/doom/train/episode_0.jsonl --to oasis --action-shift -1\n"
        "  python -m rlir_ray actions data/car --episode episode_000003 --to space",
    )
    actions.add_argument("file", metavar="FILE", help="mp4 or jsonl of a VPT recording, or a LeRobot dataset's folder")
    actions.add_argument("--episode", default="", help="episode of a LeRobot dataset (default: the first)")
    actions.add_argument("--camera", default="", help="camera of a LeRobot dataset that has several")
    actions.add_argument(
        "--to",
        default="space",
        choices=("vpt", "mineworld", "oasis", "space"),
        help="convention (default: space, the fields of the recording's action space)",
    )
    actions.add_argument(
        "--action-shift", type=int, default=0, help="stored action k + ACTION_SHIFT leads into frame k (default: 0)"
    )


def _add_collect(commands: Commands) -> None:
    collect = commands.add_parser(
        "collect",
        help="record a Gymnasium environment, or the embedded Doom world",
        formatter_class=WIDE,
        description="Records an environment as a LeRobot dataset, its action space included. Without --env: a\n"
        "scripted player that explores Doom maps, as VPT pairs (mp4 + jsonl). Then measures for half a\n"
        "minute which action leads into which frame. The same command resumes after a stop.",
        epilog="examples:\n"
        "  python -m rlir_ray collect --env CarRacing-v3 --out data/car --frames 20000 --size 64x64\n"
        "  python -m rlir_ray collect --env ALE/Breakout-v5 --policy my_package.players:play --out data/breakout\n"
        "  python -m rlir_ray collect --out data/doom/train --frames 50000 --split train",
    )
    collect.add_argument("--out", required=True, help="folder for the recordings; keeps finished recordings")
    collect.add_argument("--env", default="", metavar="ID", help="id of a Gymnasium environment that renders rgb_array")
    collect.add_argument("--frames", type=int, default=20000, help="total number of frames (default 20000)")
    collect.add_argument("--episode-frames", type=int, default=200, help="longest episode, with --env (default 200)")
    collect.add_argument(
        "--size",
        type=parse_size,
        default=(64, 64),
        metavar="HxW",
        help="size of the frames, with --env (default 64x64)",
    )
    collect.add_argument(
        "--policy",
        default="",
        metavar="MODULE:FUNCTION",
        help="player: FUNCTION(observation, info, space, rng) -> action; default: drawn actions, held",
    )
    collect.add_argument(
        "--env-arg", action="append", default=[], metavar="KEY=VALUE", help="argument of gymnasium.make; repeatable"
    )
    collect.add_argument("--frame-skip", type=int, default=1, help="steps of the environment in a frame (default 1)")
    collect.add_argument("--num-bins", type=int, default=21, help="bins of each number of an action (default 21)")
    collect.add_argument(
        "--action-names",
        type=lambda text: text.split(","),
        default=[],
        metavar="A,B,...",
        help="names for the fields of an action, with --env (default: from the environment's space)",
    )
    collect.add_argument("--hold", type=int, default=4, help="frames for which a drawn action is held (default 4)")
    collect.add_argument(
        "--wrapper", action="append", default=[], metavar="MODULE:NAME", help="wrapper of the environment; repeatable"
    )
    collect.add_argument(
        "--split", choices=("train", "validation"), default="train", help="set of Doom maps, or of seeds"
    )
    collect.add_argument("--seed", type=int, default=0, help="seed of the player and of the episodes")
    collect.add_argument("--no-probe", action="store_true", help="do not measure which action leads into which frame")
    collect.add_argument("--workers", type=int, default=1, help="processes; the recordings are the same for any number")


def _add_audit(commands: Commands) -> None:
    audit = commands.add_parser(
        "audit",
        help="check a reward, or inverse dynamics models, on real and corrupted clips before a run trusts them",
        formatter_class=WIDE,
        description="With --recipe: scores real clips and corrupted ones (still, blurred, darkened, shuffled,\n"
        "backwards, another clip's, noise) under each term of the reward and for each field, and says\n"
        "whether a policy could fool the reward. Overrides KEY=VALUE follow the options.\n"
        "With --data and --idm: checks inverse dynamics models on recordings, and whether the actions\n"
        "fit their frames.\n"
        "Exit code 0: passed; 1: failed; 2: bad input.",
        epilog="examples:\n"
        "  python -m rlir_ray audit --recipe doom_tiny_ar --out audits/doom\n"
        "  python -m rlir_ray audit --data data/car --idm work/car/reward_idm --idm work/car/judge_idm",
    )
    audit.add_argument("--recipe", default="", help="recipe whose reward is checked: a shipped name or a YAML file")
    audit.add_argument("--out", type=Path, metavar="DIR", help="with --recipe: folder for audit.json and audit.html")
    audit.add_argument("--data", default="", metavar="PATH", help="recordings, or a folder with train/ and validation/")
    audit.add_argument("--idm", action="append", default=[], metavar="DIR", help="inverse dynamics model; repeatable")
    audit.add_argument("--groups", default="", metavar="A,B,...", help="with --data: fields to compare (default: all)")
    audit.add_argument("--num-clips", type=int, default=256, help="number of clips (default 256)")
    audit.add_argument("--num-frames", type=int, default=9, help="with --data: frames of a clip (default 9)")
    audit.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted overrides of the recipe")
    add_reading(audit)


def _add_new(commands: Commands) -> None:
    new = commands.add_parser(
        "new",
        help="write the recipe and the commands for a world of your own",
        formatter_class=WIDE,
        description="Reads the size of the frames and the action space of recordings, and writes DIR/recipe.yaml and\n"
        "DIR/commands.sh: every command from these recordings to a post-trained world model, with the\n"
        "minutes that each takes on this machine.",
        epilog="examples:\n"
        "  python -m rlir_ray new work/car --data data/car\n"
        "  python -m rlir_ray new work/car --data data/car --family flow --quick",
    )
    new.add_argument("folder", metavar="DIR", type=Path, help="a new folder")
    new.add_argument("--data", required=True, metavar="RECORDINGS", help="recordings of any format")
    new.add_argument(
        "--family", choices=("autoregressive", "flow"), default="autoregressive", help="kind of the world model"
    )
    new.add_argument("--camera", default="", help="camera of a LeRobot dataset that has several")
    new.add_argument(
        "--size", type=parse_size, metavar="HxW", help="size of the world's frames (default: from the recordings)"
    )
    new.add_argument("--quick", action="store_true", help="use tiny models and minutes, and run all commands")


def _add_pretrain(commands: Commands) -> None:
    pretrain = commands.add_parser(
        "pretrain",
        help="train base models for a world",
        add_help=False,
        formatter_class=WIDE,
        description="Trains a tokenizer, autoencoder, inverse dynamics model, world model or preference head.",
        epilog="example:\n  python -m rlir_ray pretrain idm --help",
    )
    pretrain.add_argument(
        "model",
        nargs="?",
        choices=("tokenizer", "autoencoder", "idm", "world-model", "flow", "preference"),
        help="what to train",
    )
    # `pretrain MODEL --help` must reach the parser of the model.
    pretrain.add_argument("-h", "--help", action="store_true", help="this text; after a model, the model's settings")
    pretrain.set_defaults(parser=pretrain)


def _add_assets(commands: Commands) -> None:
    commands.add_parser("assets", help="train the shipped checkpoints from scratch", add_help=False)
