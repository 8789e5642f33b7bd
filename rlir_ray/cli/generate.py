"""The command `generate`: its arguments, and the call of the generation, which imports heavy libraries."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rlir_ray.cli.world_parser import WIDE, Commands


def add_generate(commands: Commands) -> None:
    """Add the command."""
    generate = commands.add_parser(
        "generate",
        help="generate clips with a world model under given actions",
        formatter_class=WIDE,
        description="Continues context frames under commanded actions, frame by frame and for any number of frames,\n"
        "and writes a video with the commands below the frames. With --idm it also shows the actions that an\n"
        "inverse dynamics model recovers. Works without Ray.",
        epilog="examples:\n"
        "  python -m rlir_ray generate --policy first --context prompt:0 --actions 'forward*8, turn_right*4' \\\n"
        "      --frames 64 --idm judge --out clip.mp4\n"
        "  python -m rlir_ray generate --policy asset:doom/world_model --context picture.png --actions attack*16 \\\n"
        "      --out clip.gif",
    )
    add_policy(generate)
    generate.add_argument(
        "--context",
        required=True,
        metavar="C",
        help="prompt:N (a held-out prompt), a picture, or a recording (.mp4, .jsonl, a folder)",
    )
    generate.add_argument(
        "--actions",
        default="",
        metavar="A",
        help="words such as 'forward*8, forward+turn_right*4, yaw=2.5', or a recording; fewer actions than frames "
        "start again (default: the recorded actions of the context)",
    )
    generate.add_argument("--frames", type=int, metavar="N", help="frames to generate (default: one an action)")
    generate.add_argument("--out", type=Path, required=True, metavar="FILE", help="a .mp4 or .gif")
    generate.add_argument("--num-clips", type=int, default=1, help="clips, each with a seed of its own (default 1)")
    generate.add_argument("--seed", type=int, default=0, help="seed of the first clip (default 0)")
    generate.add_argument("--temperature", type=float, default=1.0, help="of the draws (default 1)")
    generate.add_argument("--guidance", type=float, default=1.0, help="scale of the action guidance (default 1: none)")
    generate.add_argument(
        "--idm", default="", metavar="DIR", help="reads the frames: a folder, or judge or reward of the recipe"
    )


def add_policy(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a policy."""
    parser.add_argument(
        "--policy", required=True, metavar="P", help="a run's name or folder, a policy's folder, or asset:PATH"
    )
    parser.add_argument("--recipe", default="", help="recipe of the policy (default: by its run or size)")
    parser.add_argument("--tokenizer", default="", metavar="DIR", help="default: POLICY/tokenizer, or the recipe's")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="dotted overrides of the recipe")


def run_generate(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Generate, and print the lines for the user."""
    # The lines of this command tell the user enough: silence the messages of transformers.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from rlir_ray.play.generate import GenerationRequest, write_generated
    from rlir_ray.run.progress import progress_bar

    request = GenerationRequest(
        policy=arguments.policy,
        context=arguments.context,
        out=arguments.out,
        actions=arguments.actions,
        num_frames=arguments.frames,
        num_clips=arguments.num_clips,
        seed=arguments.seed,
        temperature=arguments.temperature,
        guidance=arguments.guidance,
        idm=arguments.idm,
        recipe=arguments.recipe,
        tokenizer=arguments.tokenizer,
        overrides=(*arguments.overrides, *rest),
    )
    with progress_bar("generating") as show:
        lines = write_generated(request, lambda done, total: show(done / total, f"{done} frames"))
    print("\n".join(lines))
