"""The arguments of all commands and their help. Independent of the commands' code."""

from __future__ import annotations

import argparse
from pathlib import Path

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
        _add_convert,
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


def _add_convert(commands: Commands) -> None:
    convert = commands.add_parser(
        "convert",
        help="convert a published checkpoint to a folder that this project and its libraries open",
        formatter_class=WIDE,
        description="Writes published checkpoints as safetensors folders. Code in a checkpoint is never executed.",
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
        "diffusers VQModel folder (DIR/tokenizer; DIR itself if the checkpoint holds only a tokenizer).\n"
        "For two files, convert the world model to DIR, then the tokenizer to DIR/tokenizer.",
        epilog="example:\n"
        "  python -m rlir_ray convert mineworld --checkpoint checkpoints/700M_16f.ckpt \\\n"
        "      --config configs/700M_16f.yaml --out models/mineworld_700m",
    )
    mineworld.add_argument("--checkpoint", required=True, metavar="FILE.ckpt", help="world model, tokenizer, or both")
    mineworld.add_argument("--config", required=True, metavar="FILE", help="the checkpoint's .yaml or .json")
    mineworld.add_argument(
        "--tokenizer-config",
        default="",
        metavar="FILE.json",
        help="config.json of the VQ model (default: the file that the YAML names, there or beside the two files)",
    )
    mineworld.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    oasis = formats.add_parser(
        "oasis",
        help="Oasis-500M's world model and autoencoder",
        formatter_class=WIDE,
        description="Writes the diffusers folders DIR/world_model and DIR/autoencoder.",
        epilog="example:\n"
        "  python -m rlir_ray convert oasis --dit oasis500m.safetensors --vae vit-l-20.safetensors --out models/oasis",
    )
    oasis.add_argument("--dit", required=True, metavar="FILE", help="the world model: .safetensors or .pt")
    oasis.add_argument("--vae", required=True, metavar="FILE", help="the autoencoder: .safetensors or .pt")
    oasis.add_argument(
        "--config",
        default="",
        metavar="FILE.json",
        help='arguments of other sizes, as {"dit": {...}, "vae": {...}} (default: the published sizes)',
    )
    oasis.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    rlvr = formats.add_parser(
        "rlvr-world",
        help="RLVR-World's tokenizers and transformers",
        formatter_class=WIDE,
        description="Checks a published folder, and writes its models as safetensors: a tokenizer of single frames\n"
        "(for models.tokenizer), a compressive tokenizer, or a transformer as a LlamaForCausalLM.",
        epilog="example:\n  python -m rlir_ray convert rlvr-world rt1-frame-tokenizer --out models/rt1_frame_tokenizer",
    )
    rlvr.add_argument(
        "folder", metavar="DIR", help="the folder as published; its models lie in it, or in tokenizer and transformer"
    )
    rlvr.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    ivideogpt = formats.add_parser(
        "ivideogpt",
        help="iVideoGPT's tokenizer and transformer",
        formatter_class=WIDE,
        description="Checks a published folder, and writes its tokenizer and its transformer, with or without\n"
        "actions, as safetensors.",
        epilog="example:\n  python -m rlir_ray convert ivideogpt ivideogpt-bair-64-act-cond --out models/bair",
    )
    ivideogpt.add_argument(
        "folder", metavar="DIR", help="the folder as published; its models lie in tokenizer and transformer"
    )
    ivideogpt.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    diamond = formats.add_parser(
        "diamond",
        help="DIAMOND's world model of an Atari game",
        formatter_class=WIDE,
        description="Writes the world model as the diffusers folder DIR/world_model, and DIR/pixels, a codec\n"
        "whose latents are pixels. Sizes and number of actions are read from the tensors.",
        epilog="example:\n  python -m rlir_ray convert diamond Breakout.pt --out models/diamond_breakout",
    )
    diamond.add_argument("agent", metavar="FILE", help="a published agent of atari_100k/models: .pt or .safetensors")
    diamond.add_argument("--out", required=True, metavar="DIR", help="a new folder")


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
