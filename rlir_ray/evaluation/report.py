"""The report of a run: one self-contained HTML page, written from the files in the run's folder and nothing else."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rlir_ray.data.files import Json
from rlir_ray.evaluation.charts import line_chart
from rlir_ray.evaluation.results import BASE, POST_TRAINED, REAL, Results, compare
from rlir_ray.evaluation.tables import (
    calibration_table,
    comparison_table,
    figure_text,
    following_table,
    group_table,
    quality_table,
)
from rlir_ray.evaluation.video import FOLDER, contact_strip
from rlir_ray.run.folder import judges_by_reward, read_metrics

REPORT, PICTURE = "report.html", "report.png"
CHARTS: tuple[tuple[str, dict[str, str], bool], ...] = (
    ("Reward", {"reward": "reward/mean"}, False),
    ("Commanded actions recovered (reward IDM)", {"accuracy": "follow/accuracy", "macro-F1": "follow/macro_f1"}, False),
    ("Agreement by rule", {"groups": "rule/groups", "joint": "rule/joint", "fields": "rule/fields"}, False),
    ("KL to the base", {"KL": "loss/kl"}, True),
    ("Share of clipped decisions", {"clip": "ratio/clip_fraction"}, True),
    (
        "Seconds a step",
        {
            "sample": "time/sample_s",
            "score": "time/score_s",
            "learn": "time/learn_s",
            "wait": "time/wait_s",
            "step": "time/step_s",
        },
        True,
    ),
    ("Generated frames a second", {"frames/s": "throughput/frames_per_s"}, True),
    ("Staleness, versions", {"mean": "staleness/mean"}, True),
)
JUDGE_IS_UNSEEN = "The judge is an inverse dynamics model that training never saw either."
JUDGE_IS_REWARD = (
    "The judge is the reward IDM itself, whose readings training raises: a gain may be what this one model likes. "
    "models.judge_idm names another one for a second opinion."
)
JUDGED = (
    ': <span class="key" style="background:#188038">green</span> where the judge recovered it from the clip, '
    '<span class="key" style="background:#c5221f">red</span> where it did not'
)
CSS = """
:root{color-scheme:light}*{box-sizing:border-box}
body{margin:0 auto;max-width:1080px;padding:2.2rem 1.2rem 4rem;background:#fff;color:#202124;
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.05rem;font-weight:600;color:#5f6368;margin:0 0 .4rem}
h2{font-size:1.15rem;margin:2.6rem 0 .5rem}p{max-width:46rem;margin:.4rem 0}
.headline{font-size:1.5rem;line-height:1.35;font-weight:600;max-width:52rem;margin:0 0 .5rem;letter-spacing:-.01em}
.note{color:#5f6368;font-size:.9rem}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums;margin:.6rem 0}
th,td{padding:.35rem .9rem .35rem 0;text-align:right;white-space:nowrap;border-bottom:1px solid #e8eaed}
th{font-weight:600;color:#5f6368;vertical-align:bottom}th:first-child,td:first-child{text-align:left}
tr.after td{font-weight:600;background:#eef4ff}tr.limit td{color:#5f6368}.se{color:#80868b;font-weight:400}
.videos,.charts{display:grid;gap:1.3rem 1.6rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,500px),1fr))}
.charts{grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr))}
video{width:100%;display:block;border-radius:4px}figure{margin:0}
svg{width:100%;height:auto;display:block}svg text{font-size:10.5px;fill:#5f6368;font-family:inherit}
svg .title{font-size:12.5px;font-weight:600;fill:#202124}.grid{stroke:#e8eaed;stroke-width:1}
.key{display:inline-block;padding:0 .45em;border-radius:4px;color:#fff;font-size:.82em}
details{margin:.5rem 0}summary{cursor:pointer}pre{font-size:.82rem;overflow-x:auto;line-height:1.45}
"""


def write_report(run_dir: Path) -> Path:
    """Write report.html from evaluation.json, metrics.jsonl, calibration.json, config.json, versions.json and videos.

    Args:
        run_dir: a run's folder; of the files only evaluation.json must be there.

    Returns:
        The page; it needs no other file and no network.

    Raises:
        ValueError: the run was not evaluated, or the disk is full.
    """
    run_dir = Path(run_dir)
    results, steps = Results.load(run_dir), read_metrics(run_dir)
    sections = (
        _headline(results, steps, judges_by_reward(run_dir)),
        _videos(run_dir, any("judge" in each.following for each in results.evaluations)),
        following_table(results),
        comparison_table(results.comparisons),
        group_table(results),
        quality_table(results),
        _curves(steps),
        calibration_table(_read_json(run_dir / "calibration.json")),
        _origin(run_dir, results, steps),
    )
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(run_dir.name)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{CSS}</style></head><body>'
        f"<h1>{escape(run_dir.name)}</h1>{''.join(sections)}</body></html>\n"
    )
    path, part = run_dir / REPORT, run_dir / (REPORT + ".part")
    try:
        part.write_text(page, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ValueError(f"could not save {path}: {error.strerror}; free some space or set run.dir") from error
    return path


def report_picture(run_dir: Path, index: int = 0) -> Path:
    """Write report.png: moments of one prompt's clips, rows real, before, after."""
    return contact_strip(run_dir, Path(run_dir) / PICTURE, index)


# ---------------------------------------------------------------------------------------------------------------------
# Sections, each the text of its HTML, or empty where the run left nothing for it


def _headline(results: Results, steps: Sequence[dict[str, float]], is_judge_reward: bool) -> str:
    base, after = results.find(BASE), results.find(POST_TRAINED)
    if base is None or after is None:
        return '<p class="headline">This run has not been evaluated before and after post-training.</p>'
    if "judge" not in base.following or "judge" not in after.following:
        return (
            f'<p class="headline">{_reward_change(steps)}</p><p class="note">{_budget(steps)}{after.num_prompts} '
            "held-out prompts that training never saw. The run has no models.judge_idm: its policies are compared "
            "by picture quality alone.</p>"
        )
    one, two = base.following["judge"], after.following["judge"]
    changes = compare(base, after).following["judge"].values()
    verdict = (
        "obeys commanded actions measurably better"
        if all(change.mean > 2 * change.se for change in changes)
        else "obeys commanded actions measurably worse"
        if all(change.mean < -2 * change.se for change in changes)
        else "shows no clear change in how it obeys commanded actions"
    )
    figures = f"{figure_text(one.accuracy, '.1%')} of them before and {figure_text(two.accuracy, '.1%')} after"
    text = f"The post-trained world model {verdict}: the judge recovers {figures}"
    text += f" (macro-F1 {figure_text(one.macro_f1)} and {figure_text(two.macro_f1)})."
    real = results.ceiling.get(REAL)
    limit = f" In real clips it recovers {figure_text(real.following['judge'].accuracy, '.1%')}." if real else ""
    return (
        f'<p class="headline">{text}</p><p class="note">{_budget(steps)}{after.num_prompts} held-out prompts that '
        f"training never saw. {JUDGE_IS_REWARD if is_judge_reward else JUDGE_IS_UNSEEN}{limit}</p>"
    )


def _reward_change(steps: Sequence[dict[str, float]]) -> str:
    """The mean reward of the first and of the last step."""
    rewards = [step["reward/mean"] for step in steps if "reward/mean" in step]
    if not rewards:
        return "The policy was evaluated without a judge of its actions."
    return f"The mean reward is {rewards[0]:.3f} in the first step and {rewards[-1]:.3f} in the last."


def _budget(steps: Sequence[dict[str, float]]) -> str:
    if not steps:
        return ""
    minutes = sum(step.get("time/step_s", 0.0) for step in steps) / 60
    return f"{len(steps)} steps of reinforcement learning in {minutes:.1f} minutes. "


def _videos(run_dir: Path, is_judged: bool) -> str:
    files = sorted((run_dir / FOLDER).glob("*.mp4"))
    if not files:
        return ""
    videos = "".join(
        # Controls of the browser would cover the commands below the picture.
        '<figure><video autoplay loop muted playsinline preload="auto" '
        'onclick="this.paused ? this.play() : this.pause()" '
        f'src="data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"></video></figure>'
        for path in files
    )
    return (
        "<h2>Real, before, after</h2><p>The same first frame and the same commands, prompts spread evenly over the set."
        f" Below each frame the action commanded for it{JUDGED if is_judged else ''}; an outline means that none of "
        "the keys is commanded. A click stops a video or plays it.</p>"
        f'<div class="videos">{videos}</div>'
    )


def _curves(steps: Sequence[dict[str, float]]) -> str:
    charts = []
    for title, keys, zero in CHARTS:
        measured = {key for step in steps for key, value in step.items() if math.isfinite(value)}
        known = {label: key for label, key in keys.items() if key in measured}
        if known and len(steps) > 1:
            series = {label: [step.get(key, float("nan")) for step in steps] for label, key in known.items()}
            charts.append(f"<figure>{line_chart(title, [step['step'] for step in steps], series, zero=zero)}</figure>")
    return f'<h2>Training</h2><div class="charts">{"".join(charts)}</div>' if charts else ""


def _origin(run_dir: Path, results: Results, steps: Sequence[dict[str, float]]) -> str:
    config, versions = (_read_json(run_dir / name) for name in ("config.json", "versions.json"))
    seeds = sorted({each.seed for each in results.evaluations})
    facts = [f"Seed {config['seed']}; evaluation seed {', '.join(map(str, seeds))}."] if "seed" in config else []
    facts += [_budget(steps), _groups(_read_json(run_dir / "ledger.json"))]
    lines = "\n".join(f"{name} {version}" for name, version in versions.items())
    settings = json.dumps(config, indent=1)
    return (
        f"<h2>How it was made</h2><p>{' '.join(facts)}</p>"
        f"<details><summary>Configuration</summary><pre>{escape(settings)}</pre></details>"
        f"<details><summary>Versions</summary><pre>{escape(lines)}</pre></details>"
    )


def _groups(ledger: Json) -> str:
    counts = [f"{count} {state.replace('_', ' ')}" for state, count in ledger.get("counts", {}).items() if count]
    return f"Groups: {', '.join(counts)}." if counts else ""


def _read_json(path: Path) -> Json:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
