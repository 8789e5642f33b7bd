"""The report of a run: one self-contained HTML page, written from the files in the run's folder and nothing else.

The page itself is `report.html.jinja`; this file and `tables.py` compute the values that it shows.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlir_ray.data.files import Json, write_text
from rlir_ray.evaluation import tables
from rlir_ray.evaluation.keys import target_axes
from rlir_ray.evaluation.results import BASE, POST_TRAINED, REAL, Evaluation, Results, compare
from rlir_ray.evaluation.video import FOLDER, contact_strip
from rlir_ray.run.folder import judges_by_reward, read_metrics

REPORT, PICTURE, TEMPLATE = "report.html", "report.png", "report.html.jinja"
# Title, label and metric of each curve, and whether the y axis begins at 0.
CHARTS: tuple[tuple[str, dict[str, str], bool], ...] = (
    ("Reward", {"reward": "reward/mean"}, False),
    ("Commanded actions recovered (reward IDM)", {"accuracy": "follow/accuracy", "macro-F1": "follow/macro_f1"}, False),
    ("Distance from commanded numbers, share of range (reward IDM)", {"axis error": "follow/axis_error"}, True),
    ("Agreement by rule", {"groups": "rule/groups", "joint": "rule/joint", "fields": "rule/fields"}, False),
    ("KL to the base", {"KL": "loss/kl"}, True),
    ("Share of clipped decisions", {"clip": "ratio/clip_fraction"}, True),
    ("Seconds a step", {name: f"time/{name}_s" for name in ("sample", "score", "learn", "wait", "step")}, True),
    ("Generated frames a second", {"frames/s": "throughput/frames_per_s"}, True),
    ("Staleness, versions", {"mean": "staleness/mean"}, True),
)
WIDTH, HEIGHT = 340, 180
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 34, 22
COLORS = ("#1a56db", "#c2410c", "#15803d", "#7e22ce", "#6b7280")


def write_report(run_dir: Path) -> Path:
    """Write report.html from evaluation.json, metrics.jsonl, calibration.json, config.json, versions.json and videos.

    Args:
        run_dir: folder of a run; only evaluation.json must exist in the folder.

    Returns:
        The page, which needs no other file and no network.

    Raises:
        ValueError: the run was not evaluated, or the disk is full.
    """
    run_dir = Path(run_dir)
    results, steps = Results.load(run_dir), read_metrics(run_dir)
    config, versions, calibration, ledger = (
        _read_json(run_dir / f"{name}.json") for name in ("config", "versions", "calibration", "ledger")
    )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["figure"] = tables.figure_text
    page = environment.get_template(TEMPLATE).render(
        name=run_dir.name,
        base=results.find(BASE),
        after=results.find(POST_TRAINED),
        verdict=_verdict(results),
        is_judge_reward=judges_by_reward(run_dir),
        is_judged=any("judge" in each.following for each in results.evaluations),
        rewards=[step["reward/mean"] for step in steps if "reward/mean" in step],
        num_steps=len(steps),
        minutes=sum(step.get("time/step_s", 0.0) for step in steps) / 60,
        videos=[base64.b64encode(path.read_bytes()).decode() for path in sorted((run_dir / FOLDER).glob("*.mp4"))],
        following=tables.following_rows(results),
        figures=tables.headline_figures(results),
        has_target=_has_target(results),
        following_head=tables.following_head(results),
        differences=tables.difference_rows(results),
        headline=headline_text(results),
        ceiling=ceiling_text(results),
        groups=tables.group_table(results),
        quality=tables.quality_rows(results),
        calibration=tables.calibration_table(calibration),
        faults=[part["fault"] for part in calibration.values() if part.get("fault")],
        charts=[*_heldout_charts(results, len(steps)), *_charts(steps)],
        seed=config.get("seed"),
        evaluation_seeds=sorted({each.seed for each in results.evaluations}),
        states=states_text(ledger.get("counts", {})),
        config=json.dumps(config, indent=1),
        versions="\n".join(f"{name} {version}" for name, version in versions.items()),
    )
    write_text(run_dir / REPORT, page)
    return run_dir / REPORT


def report_picture(run_dir: Path, index: int = 0) -> Path:
    """Write report.png: moments of one prompt's clips, rows real, before, after."""
    return contact_strip(run_dir, Path(run_dir) / PICTURE, index)


def states_text(counts: Mapping[str, int]) -> str:
    """Format how many groups ended in each state of the ledger: "24 trained, 2 no signal"."""
    return ", ".join(f"{count} {state.replace('_', ' ')}" for state, count in counts.items() if count)


def _verdict(results: Results) -> str:
    """Say how the judge's figures changed; empty: the judge did not evaluate the model before and after training."""
    base, after = results.find(BASE), results.find(POST_TRAINED)
    if base is None or after is None or "judge" not in base.following.keys() & after.following.keys():
        return ""
    # A smaller error is a gain.
    found = compare(base, after).following["judge"].items()
    gains = [(-change.mean if figure == "axis_error" else change.mean, change.se) for figure, change in found]
    if all(gain > 2 * error for gain, error in gains):
        return "obeys commanded actions measurably better"
    if all(gain < -2 * error for gain, error in gains):
        return "obeys commanded actions measurably worse"
    return "shows no clear change in how it obeys commanded actions"


def headline_text(results: Results) -> str:
    """Say what the judge recovered before and after training; empty: it did not read both models."""
    base, after = results.find(BASE), results.find(POST_TRAINED)
    if base is None or after is None or "judge" not in base.following.keys() & after.following.keys():
        return ""
    one, two = base.following["judge"], after.following["judge"]
    parts = []
    if "accuracy" in two.headline:
        parts.append(
            f"the judge recovers {tables.figure_text(one.accuracy, '.1%')} of them before and "
            f"{tables.figure_text(two.accuracy, '.1%')} after (macro-F1 {tables.figure_text(one.macro_f1)} and "
            f"{tables.figure_text(two.macro_f1)})"
        )
    if "axis_error" in two.headline:
        parts.append(
            f"the judge reads them with an error of {tables.figure_text(one.axis_error, '.1%')} of their range before "
            f"and {tables.figure_text(two.axis_error, '.1%')} after (R² {tables.figure_text(one.r2)} and "
            f"{tables.figure_text(two.r2)})"
        )
    return ", and ".join(parts)


def ceiling_text(results: Results) -> str:
    """Say what the judge recovers in real clips; empty: it read none."""
    real = results.ceiling.get(REAL)
    if real is None or "judge" not in real.following:
        return ""
    found = real.following["judge"]
    shares = [tables.figure_text(found.accuracy, ".1%")] if "accuracy" in found.headline else []
    errors = [f"an error of {tables.figure_text(found.axis_error, '.1%')}"] if "axis_error" in found.headline else []
    return (
        f"In real clips it recovers {' and has '.join([*shares, *errors])}."
        if shares
        else (f"In real clips it has {errors[0]}.")
    )


def _has_target(results: Results) -> bool:
    """Return whether the videos draw a target on the frames."""
    found = [part.fields for each in results.evaluations for part in each.following.values()]
    return bool(found) and bool(target_axes(found[0]))


def _read_json(path: Path) -> Json:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _charts(steps: Sequence[dict[str, float]]) -> list[Json]:
    measured = {key for step in steps for key, value in step.items() if math.isfinite(value)}
    charts = []
    terms = sorted(key for key in measured if re.fullmatch(r"term/\w+", key) and f"{key}_std" in measured)
    by_term = [(f"Term {key.removeprefix('term/')}", {"reward": key}, False) for key in terms if len(terms) > 1]
    for title, keys, zero in (*CHARTS[:1], *by_term, *CHARTS[1:]):
        series = {label: [step.get(key, math.nan) for step in steps] for label, key in keys.items() if key in measured}
        if series and len(steps) > 1:
            charts.append(line_chart(title, [step["step"] for step in steps], series, zero=zero))
    return charts


def _heldout_charts(results: Results, num_steps: int) -> list[Json]:
    """Draw what judge and reward IDM read on held-out prompts while the policy trained, if it was evaluated then."""
    by_step = {int(each.name.split()[1]): each for each in results.evaluations if re.fullmatch(r"step \d+", each.name)}
    if not by_step:
        return []
    for name, step in ((BASE, 0), (POST_TRAINED, num_steps)):
        if (found := results.find(name)) is not None:
            by_step[step] = found
    judged = [by_step[step] for step in sorted(by_step)]
    charts = []
    for figure, title in (("accuracy", "accuracy"), ("axis_error", "axis error")):
        series = {"judge": _figures(judged, "judge", figure), "reward IDM": _figures(judged, "reward", figure)}
        known = {label: curve for label, curve in series.items() if any(map(math.isfinite, curve))}
        if known:
            charts.append(line_chart(f"Held-out prompts: {title}", sorted(by_step), known, zero=figure != "accuracy"))
    return charts


def _figures(evaluations: Sequence[Evaluation], idm: str, figure: str) -> list[float]:
    """Return a headline figure of each evaluation; NaN if the model did not read the clips or has no such figure."""
    parts = [each.following.get(idm) for each in evaluations]
    return [float(getattr(part, figure)) if part and figure in part.headline else math.nan for part in parts]


def line_chart(
    title: str, steps: Sequence[float], series: Mapping[str, Sequence[float]], *, zero: bool = False
) -> Json:
    """Compute the positions of curves over steps in an SVG picture.

    Args:
        title: text above the chart.
        steps: x, rising.
        series: label -> y of each step; values that are not finite are left out.
        zero: let the y axis begin at 0.

    Returns:
        What the template draws: positions in pixels, texts and colors.
    """
    values = [value for curve in series.values() for value in curve if math.isfinite(value)]
    ticks = nice_ticks(min([0.0] if zero else values), max(values))
    low, high, first, last = ticks[0], ticks[-1], steps[0], steps[-1]

    def place_x(step: float) -> float:
        return round(LEFT + (step - first) / max(last - first, 1e-9) * (WIDTH - LEFT - RIGHT), 1)

    def place_y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    curves, label_x = [], LEFT
    for (label, curve), color in zip(series.items(), COLORS, strict=False):
        points = [(place_x(step), place_y(y)) for step, y in zip(steps, curve, strict=True) if math.isfinite(y)]
        path = " ".join(f"{x},{y}" for x, y in points)
        curves.append({"label": label, "label_x": label_x, "color": color, "points": path, "end": points[-1]})
        label_x += 9 + 6 * len(label)
    return {
        "title": title,
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "first": f"{first:g}",
        "last": f"{last:g}",
        "ticks": [(place_y(tick), f"{tick:.6g}") for tick in ticks],
        "curves": curves,
    }


def nice_ticks(low: float, high: float, count: int = 3) -> list[float]:
    """Return ticks that enclose low..high, about `count` steps of 1, 2 or 5 times a power of ten.

    Example: ``nice_ticks(0.62, 0.71)`` is ``[0.6, 0.65, 0.7, 0.75]``.
    """
    value_range = high - low
    if value_range <= 0:
        value_range = abs(high) or 1.0
    raw = value_range / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [round(index * step, 12) for index in range(first, last + 1)]
