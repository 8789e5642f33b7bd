"""The tables of the report, each as the text of its HTML, or empty where the run left nothing for it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from rlir_ray.data.files import Json
from rlir_ray.evaluation.results import BASE, POST_TRAINED, REAL, RECONSTRUCTED, Comparison, Evaluation, Results

ROW_NAMES = {
    "base": "Base model",
    "supervised": "Supervised control",
    "post-trained": "Post-trained",
    "reconstructed": "Real clips through the tokenizer",
    "real": "Real clips",
}


def following_table(results: Results) -> str:
    rows = []
    shown = [*results.evaluations, *_ceiling(results)]
    if not any(evaluation.following for evaluation in shown):
        return ""
    for evaluation in shown:
        cells = [_row_name(evaluation)]
        for idm in ("judge", "reward"):
            part = evaluation.following.get(idm)
            cells += [_pm(part.accuracy, part.accuracy_se), _pm(part.macro_f1, part.macro_f1_se)] if part else ["", ""]
        rows.append((_row_class(evaluation), cells))
    head = ["", "judge<br>accuracy", "judge<br>macro-F1", "reward IDM<br>accuracy", "reward IDM<br>macro-F1"]
    return (
        f"<h2>Commanded actions that were recovered</h2>{_table(head, rows)}"
        '<p class="note">Mean ± standard error over prompts. Accuracy: share of frames and action groups that agree. '
        "Macro-F1: mean over action groups of the mean F1 of the commanded classes. Both over the "
        "groups and classes that were commanded; – where there is none.</p>"
    )


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    comparisons = [each for each in comparisons if each.following]
    if not comparisons:
        return ""
    rows = []
    for each in comparisons:
        cells = [_pair_name(each)]
        for idm in ("judge", "reward"):
            changes = each.following.get(idm, {}).values()
            cells += [_pm(change.mean, change.se, sign="+") for change in changes] or ["", ""]
        rows.append(("", cells))
    head = ["", "judge<br>accuracy", "judge<br>macro-F1", "reward IDM<br>accuracy", "reward IDM<br>macro-F1"]
    return f'<h2>Differences on the same prompts</h2>{_table(head, rows)}<p class="note">Paired standard errors.</p>'


def group_table(results: Results) -> str:
    found = (results.find(BASE), results.find(POST_TRAINED), results.ceiling.get(REAL))
    columns = [each for each in found if each and "judge" in each.following]
    if not columns:
        return ""
    tables = [evaluation.following["judge"].per_group for evaluation in columns]
    rows = []
    for group in tables[0]:
        figures = [figure_text(table[group][key]) for key in ("accuracy", "macro_f1") for table in tables]
        rows.append(("", [escape(group.replace("_", " / ")), *figures]))
    titles = [f"{ROW_NAMES[each.name].lower()}<br>" for each in columns]
    head = ["", *(title + "accuracy" for title in titles), *(title + "macro-F1" for title in titles)]
    return f"<h2>By action group (judge)</h2>{_table(head, rows)}"


QUALITY_DIGITS = {"psnr": 2, "ssim": 3, "brightness": 1, "sharpness": 2, "motion": 2}


def quality_table(results: Results) -> str:
    rows = []
    for each in [*results.evaluations, *_ceiling(results)]:
        means = [(each.quality.mean(figure), digits) for figure, digits in QUALITY_DIGITS.items()]
        texts = ["–" if mean is None else f"{mean:.{digits}f}" for mean, digits in means]
        rows.append((_row_class(each), [_row_name(each), *texts]))
    for pair in results.comparisons:
        if pair.before_temperature == pair.after_temperature:
            changes = [(pair.quality.get(figure), digits) for figure, digits in QUALITY_DIGITS.items()]
            texts = [_pm(each.mean, each.se, digits, sign="+") if each else "–" for each, digits in changes]
            rows.append(("", [_pair_name(pair), *texts]))
    return (
        f"<h2>Picture quality</h2>{_table(['', 'PSNR, dB', 'SSIM', 'brightness', 'sharpness', 'motion'], rows)}"
        '<p class="note">PSNR and SSIM against the recorded clip of the same prompt. Brightness, sharpness (difference '
        "of neighbouring pixels) and motion (difference of neighbouring frames) should stay near those of real clips. "
        "Differences on the same prompts, with paired standard errors.</p>"
    )


def calibration_table(calibration: Json) -> str:
    if not calibration:
        return ""
    names = {"judge": "Judge", "reward": "Reward IDM"}
    shifts, clips = (list(next(iter(calibration.values()))[key]) for key in ("macro_f1", "gate"))
    rows = [
        (
            "",
            [
                names.get(idm, escape(idm)),
                *(figure_text(part["macro_f1"][shift]) for shift in shifts),
                *(figure_text(part["gate"][clip]) for clip in clips),
            ],
        )
        for idm, part in calibration.items()
    ]
    head = ["", *(f"shift {int(shift):+d}" if int(shift) else "in place" for shift in shifts)]
    head += [escape(clip.replace("_", " ")) for clip in clips]
    return (
        f"<h2>Can the reward be believed?</h2>{_table(head, rows)}"
        '<p class="note">Macro-F1 on real clips: with the actions moved by a frame, then on real clips (exact) and on '
        "spoilt ones, which a judge of motion must read worse.</p>"
    )


def _ceiling(results: Results) -> list[Evaluation]:
    return [results.ceiling[name] for name in (RECONSTRUCTED, REAL) if name in results.ceiling]


def _at(temperature: float | None) -> str:
    return "" if temperature is None else f" at T = {temperature:g}"


def _row_name(evaluation: Evaluation) -> str:
    return ROW_NAMES.get(evaluation.name, escape(evaluation.name)) + _at(evaluation.temperature)


def _pair_name(pair: Comparison) -> str:
    names = ((pair.after, pair.after_temperature), (pair.before, pair.before_temperature))
    return " − ".join(f"{ROW_NAMES.get(name, escape(name))}{_at(temperature)}" for name, temperature in names)


def _row_class(evaluation: Evaluation) -> str:
    return "after" if evaluation.name == POST_TRAINED else "limit" if evaluation.name in (REAL, RECONSTRUCTED) else ""


def figure_text(value: float | None, form: str = ".3f") -> str:
    """Format a figure; a missing figure becomes a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:{form}}"


def _pm(value: float, error: float, digits: int = 3, sign: str = "") -> str:
    text = figure_text(value, f"{sign}.{digits}f")
    return text if math.isnan(error) else f'{text} <span class="se">± {error:.{digits}f}</span>'


def _table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Build an HTML table; cells are HTML already, a row is its CSS class and its cells."""
    titles = "".join(f"<th>{title}</th>" for title in head)
    body = "".join(f'<tr class="{kind}">{"".join(f"<td>{cell}</td>" for cell in row)}</tr>' for kind, row in rows)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'
