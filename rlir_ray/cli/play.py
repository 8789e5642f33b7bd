"""The command `play`: its arguments, and the page, which imports heavy libraries."""

from __future__ import annotations

import argparse
import os

from rlir_ray.cli.generate import add_policy
from rlir_ray.cli.world_parser import WIDE, Commands


def add_play(commands: Commands) -> None:
    """Add the command."""
    play = commands.add_parser(
        "play",
        help="drive a world model in a browser",
        formatter_class=WIDE,
        description="Serves a page on this machine in which keyboard and pointer command the model, frame by frame;\n"
        "with --against, a second model beside it gets the same commands. Bars show what an inverse dynamics\n"
        "model recovers. Works without Ray.",
        epilog="examples:\n"
        "  python -m rlir_ray play --policy first --against base\n"
        "  python -m rlir_ray play --policy asset:doom/world_model --context picture.png --port 8001",
    )
    add_policy(play)
    play.add_argument(
        "--against", default="", metavar="P", help="a second policy, or base: the one that the run started from"
    )
    play.add_argument(
        "--context",
        action="append",
        default=[],
        metavar="C",
        help="frames to start from, as of generate; repeatable (default: held-out prompts)",
    )
    play.add_argument(
        "--idm", default="judge", metavar="DIR", help="reads the frames: a folder, judge or reward, or none"
    )
    play.add_argument("--temperature", type=float, default=1.0, help="of the draws (default 1)")
    play.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    play.add_argument("--host", default="127.0.0.1", help="address to serve on (default 127.0.0.1)")
    play.add_argument("--port", type=int, default=9265, help="port (default 9265; 0: any free one)")
    play.add_argument("--max-players", type=int, default=4, help="players at once (default 4)")


def run_play(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Open the models and serve the page."""
    # The lines of this command tell the user enough: silence the messages of transformers.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import numpy as np
    import torch

    from rlir_ray.play.driving import Drive
    from rlir_ray.play.generate import open_reader
    from rlir_ray.play.opening import base_of, open_context, open_world, prompt_frames
    from rlir_ray.play.server import PlaySettings, build_app, contexts_of, is_loopback, new_token, serve

    if arguments.max_players < 1:
        raise ValueError(f"--max-players must be >= 1, got {arguments.max_players}; leave it out for 4")
    overrides = (*arguments.overrides, *rest)
    options = {"recipe": arguments.recipe, "tokenizer": arguments.tokenizer, "overrides": overrides}
    worlds = {"policy": open_world(arguments.policy, **options)}
    if arguments.against:
        is_base = arguments.against == "base"
        worlds["base" if is_base else "against"] = open_world(
            base_of(arguments.policy) if is_base else arguments.against, **options
        )
    world = worlds["policy"]
    idm = None if arguments.idm == "none" else open_reader(arguments.idm, world)
    if arguments.context:
        contexts = np.stack([open_context(text, world).frames for text in arguments.context])
    else:
        print("making the frames to start from", flush=True)
        contexts = prompt_frames(world)
        contexts = contexts[contexts_of(contexts)]

    def make_drive() -> Drive:
        return Drive(worlds, contexts, idm, temperature=arguments.temperature, seed=arguments.seed)

    # The models compute side by side, each on its share of the cores.
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // len(worlds)))
    make_drive().close()  # bad options end the command here
    token = "" if is_loopback(arguments.host) else new_token()
    settings = PlaySettings(title=arguments.policy, token=token, max_players=arguments.max_players)

    def announce(port: int) -> None:
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        end = f"/?token={token}" if token else "/"
        print(f"drive at http://{host}:{port}{end}   (Ctrl+C ends it)", flush=True)

    serve(build_app(make_drive, settings), arguments.host, arguments.port, announce)
