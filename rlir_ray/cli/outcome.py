"""The last lines of a run: its result, its files, and the command that resumes the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rlir_ray.config import TrainConfig
from rlir_ray.evaluation.following import Following
from rlir_ray.evaluation.report import states_text
from rlir_ray.evaluation.results import BASE, FILE, POST_TRAINED, Results
from rlir_ray.run.folder import judges_by_reward


def outcome_lines(
    folder: Path,
    train: TrainConfig,
    num_steps: int,
    steps: Sequence[Mapping[str, float]],
    groups: Mapping[str, int],
    *,
    interrupted: bool = False,
    generated_name: str = "",
) -> list[str]:
    """Build the lines for the console.

    Args:
        folder: folder of the run.
        train: limits of the run.
        num_steps: number of finished optimiser steps.
        steps: metrics of each step.
        groups: number of groups in each state of the ledger.
        interrupted: a signal stopped the run.
        generated_name: the run's name if the command did not name the run, otherwise empty.
    """
    if not num_steps:
        return ["stopped  before the first step; the same command starts again"]
    lines = [] if interrupted else _result(folder, steps)
    events = folder / "tensorboard"
    lines += [
        _trained(train, num_steps, steps, interrupted),
        f"groups   {states_text(groups)}",
        f"policy   {folder / 'policy'}",
        f"metrics  {folder / 'metrics.jsonl'}" + (f"   (tensorboard --logdir {events})" if events.is_dir() else ""),
    ]
    if not interrupted:
        return [*lines, f"report   {folder / 'report.html'}"]
    name = f" with run.name={generated_name}" if generated_name else ""
    return [*lines, f"stopped  after step {num_steps}; to resume, run the same command again{name}"]


def _result(folder: Path, steps: Sequence[Mapping[str, float]]) -> list[str]:
    """Format the figures of the report's headline; empty: the run was not evaluated before and after training."""
    if not (folder / FILE).is_file():
        return []
    results = Results.load(folder)
    base, after = results.find(BASE), results.find(POST_TRAINED)
    if base is None or after is None:
        return []
    if "judge" not in base.following or "judge" not in after.following:
        rewards = [step["reward/mean"] for step in steps if "reward/mean" in step]
        return (
            [f"result   mean reward {rewards[0]:.3f} in the first step and {rewards[-1]:.3f} in the last"]
            if rewards
            else []
        )
    judge = "the judge, which is the reward IDM itself," if judges_by_reward(folder) else "the judge"
    return [
        f"result   {judge} {'; '.join(_changes(base.following['judge'], after.following['judge']))}; on "
        f"{after.num_prompts} held-out prompts"
    ]


def _changes(one: Following, two: Following) -> list[str]:
    texts = []
    if "accuracy" in two.headline:
        texts.append(
            f"recovers {one.accuracy:.1%} of the commanded actions before and {two.accuracy:.1%} after "
            f"(± {two.accuracy_se:.1%}), macro-F1 {one.macro_f1:.3f} and {two.macro_f1:.3f}"
        )
    if "axis_error" in two.headline:
        texts.append(
            f"reads the commanded axes with an error of {one.axis_error:.1%} of their range before and "
            f"{two.axis_error:.1%} after (± {two.axis_error_se:.1%}), R² {one.r2:.3f} and {two.r2:.3f}"
        )
    return texts


def _trained(train: TrainConfig, num_steps: int, steps: Sequence[Mapping[str, float]], interrupted: bool) -> str:
    minutes = sum(step.get("time/step_s", 0.0) for step in steps) / 60
    line = f"trained  {num_steps} of {train.num_steps} steps in {minutes:.1f} minutes"
    if not interrupted and num_steps < train.num_steps:
        line += f"; train.max_minutes={train.max_minutes:g} ended the run: raise the limit to go on (0: none)"
    return line
