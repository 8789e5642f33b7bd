"""The tables of rewards and objectives of docs/results.md: variants of a recipe, each trained for the same minutes.

Each variant runs through the Ray pools, one after the other, or several side by side on cores of their own; a finished
one is kept.
Run: `python -m benchmarks.variants --recipe doom_tiny_ar --minutes 5`, or with `--only inverse,guards`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rlir_ray.config.load import load_config
from rlir_ray.data.files import write_json
from rlir_ray.evaluation.results import BASE, POST_TRAINED, REAL, RECONSTRUCTED, Evaluation, Results, compare
from rlir_ray.run.environment import versions
from rlir_ray.run.folder import read_metrics

GUARDS = (
    "[{name: inverse}, {name: brightness, weight: 0.2}, {name: motion, weight: 0.2}, {name: sharpness, weight: 0.1}]"
)
PROTECTED = [f"reward.terms={GUARDS}", "reward.combine=advantages"]
CLEAN = "flow.shared_noise=false"
REWARDS = {
    "inverse": [],
    "exact": ["reward.match=exact"],
    "recorded": ["reward.terms=[{name: recorded}]"],
    "guards": PROTECTED,
    "supervised": ["train.supervised_coefficient=0.1"],
    "guards_supervised": [*PROTECTED, "train.supervised_coefficient=0.1"],
    "bright_guards_supervised": [
        f"reward.terms={GUARDS}".replace("brightness, weight: 0.2", "brightness, weight: 0.4"),
        "reward.combine=advantages",
        "train.supervised_coefficient=0.08",
    ],
    "guards_supervised_less": [*PROTECTED, "train.supervised_coefficient=0.05"],
    # A flow policy's log-probability is a mean, so that its loss is small beside the flow-matching error.
    "guards_supervised_least": [*PROTECTED, "train.supervised_coefficient=0.003"],
}
"""Variant of the reward -> overrides of the recipe."""
OBJECTIVES = {
    "autoregressive": {
        "dr_grpo": ["train.advantage=dr_grpo"],
        "rloo": ["train.advantage=rloo"],
        "batch_std": ["train.advantage=batch_std"],
        "gspo": ["train.off_policy.importance=none", "train.grpo.loss=gspo"],
        "cispo": ["train.off_policy.importance=none", "train.grpo.loss=cispo"],
        "rwr": ["train.objective=rwr"],
        "best_of_n": ["train.objective=best_of_n"],
    },
    "flow": {
        "guard_ratio": ["train.grpo.ratio=guard"],
        "dance_grpo": ["flow.sde=dance_grpo", "flow.noise_level=0.3"],
        "cps": ["flow.sde=cps"],
        "nft": ["train.objective=nft", CLEAN],
        "cfm_ratio": ["train.objective=cfm_ratio", CLEAN],
        "flow_dpo": ["train.objective=flow_dpo", "train.kl_coefficient=0", CLEAN],
        "rwr": ["train.objective=rwr", CLEAN],
        "best_of_n": ["train.objective=best_of_n", CLEAN],
    },
}
"""Family -> variant of the objective -> overrides of the recipe; the recipe's own objective is the reward `inverse`."""
POLL_S = 2.0
Variants = dict[str, list[str]]
Row = dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="A,B,...", help="variants (default: all)")
    arguments = parse(parser)
    variants = REWARDS | OBJECTIVES[load_config(arguments.recipe, []).policy.family]
    names = [name for name in arguments.only.split(",") if name] or list(variants)
    write(run_all({name: variants[name] for name in names}, arguments, kept=variants), "variants", arguments)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the arguments that all tables share."""
    parser.add_argument("--recipe", default="doom_tiny_ar")
    parser.add_argument("--minutes", type=float, default=5, help="wall-clock of each training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--side-by-side", type=int, default=1, help="variants that train at once, on a share of the cores"
    )
    parser.add_argument("--num-prompts", type=int, default=256, help="held-out prompts")
    parser.add_argument("--folder", type=Path, default=Path("runs/variants"), help="folder of the runs")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of every variant")
    return parser.parse_args()


def label_of(arguments: argparse.Namespace) -> str:
    return f"{arguments.recipe}_seed{arguments.seed}"


def run_all(variants: Variants, arguments: argparse.Namespace, kept: Variants | None = None) -> dict[str, Row]:
    """Run the missing variants, one a core; return the rows of the finished ones among `kept`, by default these."""
    fixed = [
        f"run.dir={arguments.folder.absolute()}",
        f"seed={arguments.seed}",
        f"prompts.num_heldout={arguments.num_prompts}",
        f"train.max_minutes={arguments.minutes}",
        "train.num_steps=10000",
        *arguments.overrides,
    ]
    label, folder = label_of(arguments), arguments.folder
    commands = {f"{label}_{name}": [*fixed, *overrides] for name, overrides in variants.items()}
    _run(commands, label, arguments)
    rows = {}
    for name, overrides in (kept or variants).items():
        if (run_dir := folder / f"{label}_{name}").joinpath("report.html").is_file():
            rows[name] = {"overrides": overrides, "steps": len(read_metrics(run_dir)), **row(Results.load(run_dir))}
    return rows


def write(rows: dict[str, Row], name: str, arguments: argparse.Namespace) -> None:
    """Write the rows into benchmarks/results, beside the rows of earlier calls with the same settings; print all."""
    settings = {
        "cores": len(os.sched_getaffinity(0)),
        "minutes": arguments.minutes,
        "seed": arguments.seed,
        "num_prompts": arguments.num_prompts,
        "side_by_side": arguments.side_by_side,
    }
    out = Path(__file__).parent / "results" / f"{name}_{label_of(arguments)}.json"
    made = {"versions": versions(), "load_average": os.getloadavg()}
    rows = {variant: {**each, **made} for variant, each in rows.items()}
    if out.is_file() and (before := json.loads(out.read_text(encoding="utf-8")))["settings"] == settings:
        rows = before["rows"] | rows
    write_json(out, {"settings": settings, "rows": rows})
    print(markdown(rows), out, sep="\n")


def _run(commands: Variants, label: str, arguments: argparse.Namespace) -> None:
    folder, cores = arguments.folder, sorted(os.sched_getaffinity(0))
    waiting = [name for name in commands if not (folder / name / "report.html").is_file()]
    free = [",".join(map(str, cores[place :: arguments.side_by_side])) for place in range(arguments.side_by_side)]
    running: dict[subprocess.Popen[bytes], tuple[str, str]] = {}
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    folder.mkdir(parents=True, exist_ok=True)
    while waiting or running:
        while waiting and free:
            name, share = waiting.pop(0), free.pop()
            share_recordings(folder, label, name)
            train = [sys.executable, "-m", "rlir_ray", "train", "--recipe", arguments.recipe, f"run.name={name}"]
            with (folder / f"{name}.log").open("w") as log:
                command = ["taskset", "-c", share, *train, *commands[name]]
                running[subprocess.Popen(command, env=environment, stdout=log, stderr=log)] = (name, share)
        time.sleep(POLL_S)
        for process in [process for process in running if process.poll() is not None]:
            name, share = running.pop(process)
            free.append(share)
            print(name, "failed, see its log" if process.returncode else "done", flush=True)


def share_recordings(folder: Path, label: str, name: str) -> None:
    """Give a run the recordings of a finished one, which the same seed would record again."""
    for finished in folder.glob(f"{label}_*/report.html"):
        for source in finished.parent.glob("recordings-*"):
            if not (target := folder / name / source.name).exists():
                shutil.copytree(source, target)


def row(results: Results) -> dict[str, dict[str, float]]:
    """Return the judge's figures and those of the pictures: before, after, their change, and of real clips.

    `reader` has the accuracy that the reward model reads: before, after, and in real clips through the codec.
    """
    base, after = results.find(BASE), results.find(POST_TRAINED)
    assert base is not None and after is not None
    change = compare(base, after)
    following = {figure: each for figure, each in change.following["judge"].items()}
    changes = {**following, **change.quality}
    return {
        "base": _figures(base),
        "after": _figures(after),
        "change": {figure: each.mean for figure, each in changes.items()},
        "se": {figure: each.se for figure, each in changes.items()},
        **{name: _figures(each) for name, each in results.ceiling.items() if name in (REAL, RECONSTRUCTED)},
        "reader": {
            name: float(each.following["reward"].accuracy)
            for name, each in (("base", base), ("after", after), *results.ceiling.items())
            if "reward" in each.following
        },
    }


def _figures(evaluation: Evaluation) -> dict[str, float]:
    judge, quality = evaluation.following["judge"], evaluation.quality
    pictures = {name: quality.mean(name) for name in ("psnr", "brightness", "sharpness", "motion", "repeated")}
    read_by = {figure: float(getattr(judge, figure)) for figure in judge.headline}
    return read_by | {name: value for name, value in pictures.items() if value is not None}


def markdown(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """Format the rows, changes with their paired standard errors."""
    figures = list(next(iter(rows.values()))["after"])
    lines = ["| | " + " | ".join(figures) + " |", "| --- |" + " --- |" * len(figures)]
    first = next(iter(rows.values()))
    for name in ("base", RECONSTRUCTED, REAL):
        cells = [f"{first[name][figure]:.3f}" if figure in first.get(name, {}) else "–" for figure in figures]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name, each in rows.items():
        cells = [
            f"{each['after'][figure]:.3f} ({each['change'][figure]:+.3f} ± {each['se'][figure]:.3f})"
            if figure in each["change"]
            else f"{each['after'][figure]:.3f}"
            for figure in figures
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
