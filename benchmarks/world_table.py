"""The table of docs/results.md: the base, supervised training and RL for the same wall-clock, on held-out prompts.

RL runs through the Ray pools. Each training has one core of its own, side by side on two; one that is there already is
kept. Needs the tokens or latents that `make assets` leaves in its work folder.
Run: `python benchmarks/world_table.py --recipe doom_tiny_ar --data work/assets/tokens`, or with another of `RECIPES`
and, for a flow model, work/assets/latents.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

TEMPERATURES = (1.0, 0.8, 0.6)
# The command that trains each recipe's base, and what the results are called.
RECIPES = {
    "doom_tiny_ar": ("world-model", "doom_table"),
    "doom_tiny_flow": ("flow", "doom_flow_table"),
    "pusht_ar": ("world-model", "pusht_table"),
    "pusht_flow": ("flow", "pusht_flow_table"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="doom_tiny_ar")
    parser.add_argument("--data", type=Path, required=True, help="train.npz and validation.npz of the base's training")
    parser.add_argument("--minutes", type=float, default=20, help="wall-clock of each training")
    parser.add_argument("--seed", type=int, default=0, help="of RL and of the supervised control")
    parser.add_argument("--num-prompts", type=int, default=256, help="held-out prompts")
    parser.add_argument("--name", default="table", help="the run's name below runs/")
    parser.add_argument("--supervised-learning-rate", type=float, default=5e-4, help="falls along a cosine")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the RL run")
    arguments = parser.parse_args()
    overrides = [
        f"run.name={arguments.name}",
        f"seed={arguments.seed}",
        f"prompts.num_heldout={arguments.num_prompts}",
        f"train.max_minutes={arguments.minutes}",
        "train.num_steps=10000",
        f"evaluation.temperatures={list(TEMPERATURES)}",
        *arguments.overrides,
    ]
    folder = train_both(arguments, overrides)
    judge_supervised(folder, arguments.recipe, overrides)
    write_table(folder, arguments)


def train_both(arguments: argparse.Namespace, overrides: list[str]) -> Path:
    """Runs the trainings that are missing, one a core; returns the RL run's folder."""
    from rlir_ray.config import asset_path
    from rlir_ray.config.load import load_config

    config = load_config(arguments.recipe, overrides)
    folder = Path(config.run.dir).absolute() / arguments.name
    control = Path(f"{folder}-supervised")
    cores = sorted(os.sched_getaffinity(0))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    supervised = [
        "-m",
        "rlir_ray",
        "pretrain",
        RECIPES[arguments.recipe][0],
        "--data",
        str(arguments.data),
        "--out",
        str(control),
        "--init",
        str(asset_path(config.models.policy)),
        "--minutes",
        str(arguments.minutes),
        "--threads",
        "1",
        "--seed",
        str(arguments.seed + 1),
        "--learning-rate",
        str(arguments.supervised_learning_rate),
    ]
    reinforced = ["-m", "rlir_ray", "train", "--recipe", arguments.recipe, *overrides]
    trainings = ((cores[0], supervised, control / "training.json"), (cores[-1], reinforced, folder / "report.html"))
    running = [
        subprocess.Popen(["taskset", "-c", str(core), sys.executable, *command], env=environment)
        for core, command, finished in trainings
        if not finished.exists()
    ]
    if codes := [process.wait() for process in running if process.wait() != 0]:
        raise SystemExit(f"a training failed with exit code {codes[0]}; its output is above")
    shutil.copytree(control, folder / "supervised", dirs_exist_ok=True)
    return folder


def judge_supervised(folder: Path, recipe: str, overrides: list[str]) -> None:
    """The control on the run's own held-out prompts, in the run's report."""
    import ray

    from actors.evaluation.actor import EvaluationActor
    from actors.rollout.prompt_actor import ConfiguredPrompts
    from rlir_ray.config.load import load_config
    from rlir_ray.evaluation.report import report_picture, write_report
    from rlir_ray.families import family_of
    from rlir_ray.transfer.weights import weights_of

    config = load_config(recipe, [override for override in overrides if not override.startswith("lora.")])
    heldout = ConfiguredPrompts(config, folder)("heldout")
    evaluation = EvaluationActor(config, folder, os.cpu_count() or 1)
    weights = weights_of(family_of(config).open_policy(folder / "supervised"))
    for temperature in TEMPERATURES:
        evaluation.evaluate(heldout, weights, 0, "supervised", temperature, temperature == TEMPERATURES[0])
    assert not ray.is_initialized()
    print(write_report(folder), report_picture(folder))


def write_table(folder: Path, arguments: argparse.Namespace) -> None:
    """Everything that the table needs, as JSON, with machine, commit and budget."""
    from rlir_ray.data.files import write_json
    from rlir_ray.run.environment import versions

    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    content: dict[str, Any] = {
        "versions": versions(),
        "load_average": os.getloadavg(),
        "minutes": arguments.minutes,
        "seed": arguments.seed,
        "rl_steps": len(steps),
        "supervised": json.loads((folder / "supervised" / "training.json").read_text()),
        "config": json.loads((folder / "config.json").read_text()),
        "results": json.loads((folder / "evaluation.json").read_text()),
    }
    for part in [*content["results"]["evaluations"], *content["results"]["ceiling"].values()]:
        for following in part["following"].values():
            # What was read in each clip; the run's folder keeps it.
            for key in [key for key in following if key.partition("_")[0] in ("commanded", "recovered")]:
                del following[key]
        for figure in part["quality"].values():
            if figure:
                del figure["clips"]
    out = Path(__file__).parent / "results" / f"{RECIPES[arguments.recipe][1]}_seed{arguments.seed}.json"
    out.parent.mkdir(exist_ok=True)
    write_json(out, content)
    print(out)


if __name__ == "__main__":
    main()
