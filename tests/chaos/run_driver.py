"""A driver of the tiny world in a process of its own: `python -m tests.chaos.run_driver CHECKPOINTS RUN_DIR KEY=VALUE`.

It says a line for each stage and each step, and last its losses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from actors.pipeline import Pipeline
from rlir_ray.cli.streams import protect_standard_streams
from tests.world import tiny_config, tiny_prompt_set


def say(text: str) -> None:
    print(text, flush=True)


def main(checkpoints: str, run_dir: str, *overrides: str) -> None:
    # As the command line does.
    protect_standard_streams()
    pipeline = Pipeline(
        tiny_config(Path(checkpoints), Path(run_dir), *overrides),
        callbacks=[lambda metrics: say(f"step {metrics['step']:.0f}")],
        prompts=tiny_prompt_set,
        progress=say,
    )
    result = pipeline.train(calibrate=False, evaluate=False)
    say(json.dumps({"num_steps": result.num_steps, "losses": [step["loss/policy"] for step in result.metrics]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
