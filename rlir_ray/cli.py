"""The command line. Heavy imports come after the arguments are read, so that help is instant."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

INTERRUPTED = 130
Command = Callable[[argparse.Namespace, list[str]], None]


def _train(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rlir_ray.config import load_config
    from rlir_ray.console import StepView

    config = load_config(arguments.recipe, [*arguments.overrides, *rest])
    with contextlib.closing(StepView(config.train)) as view:
        view.stage("starting")
        from actors.driver import Pipeline

        pipeline = Pipeline(config, callbacks=[view.step], progress=view.stage)
        with _traceback_to(pipeline.folder.path / "run.log"):
            result = pipeline.train()
            if not result.interrupted:
                from rlir_ray.evaluation.report import write_report

                view.stage("writing the report")
                write_report(pipeline.folder.path)
    print("\n".join(_where(result.folder, result.num_steps, result.interrupted)))
    if result.interrupted:
        sys.exit(INTERRUPTED)


def _where(folder: Path, num_steps: int, interrupted: bool) -> list[str]:
    """The last lines of a run: where everything is, and how to go on with one that was stopped."""
    if not num_steps:
        return ["stopped  before the first step; the same command starts again"]
    lines = [
        f"policy   {folder / 'policy'}",
        f"metrics  {folder / 'metrics.jsonl'}   (tensorboard --logdir {folder / 'tensorboard'})",
    ]
    if not interrupted:
        return [*lines, f"report   {folder / 'report.html'}"]
    go_on = (
        f"python -m rlir_ray train --recipe {folder / 'config.yaml'} models.policy={folder / 'policy'} "
        f"run.dir={folder.parent} run.name={folder.name}-2"
    )
    return [*lines, f"stopped  the policy so far is saved; go on from it with: {go_on}"]


def _collect(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rlir_ray.data.doom import collect
    from rlir_ray.progress import progress_bar

    with progress_bar("recording") as show:
        summary = collect(
            Path(arguments.out), num_frames=arguments.frames, split=arguments.split, seed=arguments.seed,
            num_workers=arguments.workers, progress=lambda done, total: show(done / total, f"{done} frames"),
        )  # fmt: skip
    print(summary)


def _pretrain(arguments: argparse.Namespace, rest: list[str]) -> None:
    import importlib

    if arguments.model is None:
        arguments.parser.print_help()
        return
    module = importlib.import_module(f"rlir_ray.pretrain.{arguments.model.replace('-', '_')}")
    module.main([*rest, *(["--help"] if arguments.help else [])])


def _assets(arguments: argparse.Namespace, rest: list[str]) -> None:
    from rlir_ray.pretrain.assets import main

    main(rest)


def _report(arguments: argparse.Namespace, rest: list[str]) -> None:
    if not (Path(arguments.run) / "config.json").is_file():
        raise ValueError(f"a report needs a run's folder, got {arguments.run}; look below runs/")
    from rlir_ray.evaluation.report import write_report

    print(write_report(Path(arguments.run)))


def _evaluate(arguments: argparse.Namespace, rest: list[str]) -> None:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from rlir_ray.evaluate import EvaluationRequest, evaluate

    evaluate(
        EvaluationRequest(
            policy=arguments.policy, data=arguments.data, idm=arguments.idm, tokenizer=arguments.tokenizer,
            recipe=arguments.recipe, num_clips=arguments.num_clips, lpips=arguments.lpips, fvd=arguments.fvd,
            out=arguments.out, overrides=(*arguments.overrides, *rest),
        )
    )  # fmt: skip


def _convert(arguments: argparse.Namespace, rest: list[str]) -> None:
    # Both libraries tell of progress and of defaults; what a user needs is said below.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from rlir_ray.convert import convert_mineworld, convert_vpt_idm

    out = Path(arguments.out)
    if arguments.format == "vpt-idm":
        lines = convert_vpt_idm(out, weights=Path(arguments.weights), model=arguments.model, config=arguments.config)
    else:
        lines = convert_mineworld(
            out, checkpoint=Path(arguments.checkpoint), config=Path(arguments.config),
            tokenizer_config=arguments.tokenizer_config,
        )  # fmt: skip
    print("\n".join(lines))


class _traceback_to:
    """Keeps the traceback of what goes wrong inside in a log file; the user gets one line of it."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and not isinstance(error, KeyboardInterrupt):
            # On a full disk the error itself matters more than its log.
            with contextlib.suppress(OSError):
                with self.log.open("a") as lines:
                    lines.writelines(traceback.format_exception(error))
                error.add_note(f"full log: {self.log}")


def _keys_help() -> str:
    from rlir_ray.config import Config, describe

    default = Config()
    lines = []
    for key, text in describe().items():
        value: object = default
        for part in key.split("."):
            value = getattr(value, part)
        lines.append(f"  {key}={value}\n      {text}")
    return "configuration keys, with their defaults (a recipe may set others):\n" + "\n".join(sorted(lines))


def build_parser() -> argparse.ArgumentParser:
    """All commands with their help."""
    wide = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m rlir_ray",
        formatter_class=wide,
        description="Reinforcement learning with inverse rewards for action-conditioned video world models.",
        epilog="examples:\n"
        "  python -m rlir_ray train --recipe doom_tiny_ar\n"
        "  python -m rlir_ray train --recipe doom_tiny_ar train.num_steps=100 reward.match=exact run.name=exact\n"
        "  python -m rlir_ray collect --out data/doom --frames 20000\n"
        "  python -m rlir_ray pretrain world-model --help",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="post-train a world model",
        formatter_class=wide,
        description="Post-trains a world model by RL with inverse rewards, evaluates it before and after on prompts\n"
        "that training never saw, and writes runs/NAME/report.html.",
        epilog="examples:\n  python -m rlir_ray train --recipe doom_tiny_ar run.name=first\n"
        "  python -m rlir_ray train --recipe my.yaml train.max_staleness=0 rollout.num_actors=2\n"
        "  python -m rlir_ray train --keys        (all configuration keys)",
    )
    train.add_argument("--recipe", default="", help="a shipped recipe (doom_tiny_ar) or a YAML file")
    train.add_argument("--keys", action="store_true", help="list all configuration keys and exit")
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted overrides, later ones win")
    train.set_defaults(handler=_train)

    collect = commands.add_parser(
        "collect",
        help="record the embedded Doom world",
        formatter_class=wide,
        description="A scripted player explores Doom maps and is recorded as VPT pairs (mp4 + jsonl).",
        epilog="example:\n  python -m rlir_ray collect --out data/doom/train --frames 50000 --split train",
    )
    collect.add_argument("--out", required=True, help="folder for the recordings; finished pairs in it are kept")
    collect.add_argument("--frames", type=int, default=20000, help="frames in all (default 20000)")
    collect.add_argument("--split", choices=("train", "validation"), default="train", help="which maps")
    collect.add_argument("--seed", type=int, default=0, help="of the player and the maps' order")
    collect.add_argument("--workers", type=int, default=1, help="processes; the recordings do not depend on it")
    collect.set_defaults(handler=_collect)

    pretrain = commands.add_parser(
        "pretrain",
        help="train base models for a world",
        add_help=False,
        formatter_class=wide,
        description="Trains a frame tokenizer, an inverse dynamics model or a world model.",
        epilog="example:\n  python -m rlir_ray pretrain idm --help",
    )
    pretrain.add_argument("model", nargs="?", choices=("tokenizer", "idm", "world-model"), help="what to train")
    # Each model's own help follows its name.
    pretrain.add_argument("-h", "--help", action="store_true", help="this text; after a model, its settings")
    pretrain.set_defaults(handler=_pretrain, parser=pretrain)

    assets = commands.add_parser("assets", help="make the shipped checkpoints from nothing", add_help=False)
    assets.set_defaults(handler=_assets)

    evaluation = commands.add_parser(
        "eval",
        help="judge a policy on recordings: MineWorld's row of figures",
        formatter_class=wide,
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
    evaluation.add_argument("--num-clips", type=int, default=0, help="default: the recipe's prompts.num_heldout")
    evaluation.add_argument("--lpips", default="", metavar="FILE", help="torchvision's AlexNet weights (.pth)")
    evaluation.add_argument("--fvd", default="", metavar="FILE", help="I3D as TorchScript; it is run: trust its source")
    evaluation.add_argument("--out", default="", metavar="FILE.json", help="write the figures there too")
    evaluation.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted overrides of the recipe")
    evaluation.set_defaults(handler=_evaluate)

    convert = commands.add_parser(
        "convert",
        help="turn a published checkpoint into a folder that this project and its libraries open",
        formatter_class=wide,
        description="Writes published checkpoints as safetensors folders. Nothing in them is executed.",
        epilog="examples:\n"
        "  python -m rlir_ray convert vpt-idm --model 4x_idm.model --weights 4x_idm.weights --out models/vpt_idm\n"
        "  python -m rlir_ray convert mineworld --checkpoint 700M_16f.ckpt --config 700M_16f.yaml --out models/700m",
    )
    formats = convert.add_subparsers(dest="format", required=True, metavar="FORMAT")
    vpt = formats.add_parser(
        "vpt-idm",
        help="OpenAI's VPT inverse dynamics model",
        formatter_class=wide,
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
        formatter_class=wide,
        description="Writes the world model as a transformers LlamaForCausalLM folder and its tokenizer as a\n"
        "diffusers VQModel folder (DIR/tokenizer; DIR itself where the checkpoint holds a tokenizer alone).",
        epilog="example:\n"
        "  python -m rlir_ray convert mineworld --checkpoint checkpoints/700M_16f.ckpt \\\n"
        "      --config configs/700M_16f.yaml --out models/mineworld_700m",
    )
    mineworld.add_argument("--checkpoint", required=True, metavar="FILE.ckpt", help="world model, tokenizer, or both")
    mineworld.add_argument("--config", required=True, metavar="FILE", help="its .yaml or .json")
    mineworld.add_argument(
        "--tokenizer-config", default="", metavar="FILE.json",
        help="the VQ model's config.json (default: the one that the YAML names)",
    )  # fmt: skip
    mineworld.add_argument("--out", required=True, metavar="DIR", help="a new folder")
    convert.set_defaults(handler=_convert)

    report = commands.add_parser(
        "report",
        help="write a run's report again",
        formatter_class=wide,
        description="Writes RUN/report.html.",
        epilog="example:\n  python -m rlir_ray report runs/first",
    )
    report.add_argument("run", help="a run's folder")
    report.set_defaults(handler=_report)
    return parser


def _fail(error: BaseException, code: int) -> NoReturn:
    # An error that crossed processes carries the one that was raised there; Ray's own end with it.
    cause = getattr(error, "cause", None) or error
    text = [line.strip() for line in str(cause).splitlines() if line.strip()] or [type(cause).__name__]
    lines = [text[-1 if type(cause).__module__.startswith("ray.") else 0], *getattr(error, "__notes__", [])]
    print("error: " + "\n       ".join(lines), file=sys.stderr)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    # Ray's usage report is the user's choice, not ours.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.command not in ("train", "pretrain", "assets", "eval"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if getattr(arguments, "keys", False):
        print(_keys_help())
        return
    try:
        arguments.handler(arguments, rest)
    except ValueError as error:
        _fail(error, 2)
    except KeyboardInterrupt:
        _fail(KeyboardInterrupt("interrupted"), INTERRUPTED)
    except Exception as error:
        _fail(error, 1)
