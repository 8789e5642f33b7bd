"""A driver of the tiny world in a process of its own: `python -m tests.chaos.run_driver CHECKPOINTS RUN_DIR KEY=VALUE`.

It says a line for each stage and each step.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import termios
from pathlib import Path

from actors.pipeline import Pipeline
from rlir_ray.cli.console import protect_standard_streams
from tests.world import tiny_config, tiny_prompt_set


def say(text: str) -> None:
    print(text, flush=True)


def hear_hangups() -> None:
    """Handle SIGHUP as a process of a terminal does, also below `nohup`, which has it ignored.

    Here and not between fork and exec: the tests' process has threads of gRPC, which may abort there.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if os.environ.get("TAKE_TERMINAL"):
        # Standard input becomes the terminal of this process's session.
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def main(checkpoints: str, run_dir: str, *overrides: str) -> None:
    hear_hangups()
    # As the command line does.
    protect_standard_streams()
    pipeline = Pipeline(
        tiny_config(Path(checkpoints), Path(run_dir), *overrides),
        callbacks=[lambda metrics: say(f"step {metrics['step']:.0f}")],
        prompts=tiny_prompt_set,
        progress=say,
    )
    pipeline.train(calibrate=False, evaluate=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
