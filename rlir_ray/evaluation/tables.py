"""The tables of the report: a row is its CSS class and the texts of its cells, the row's name first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlir_ray.data.files import Json
from rlir_ray.evaluation.results import BASE, POST_TRAINED, REAL, RECONSTRUCTED, Comparison, Evaluation, Results

Row = tuple[str, list[str]]

ROW_NAMES = {
    "base": "Base model",
    "supervised": "Supervised control",
    "post-trained": "Post-trained",
    "reconstructed": "Real clips through the tokenizer",
    "real": "Real clips",
}
IDMS = {"judge": "Judge", "reward": "Reward IDM"}
QUALITY_DIGITS = {"psnr": 2, "ssim": 3, "brightness": 1, "sharpness": 2, "motion": 2}


def following_rows(results: Results) -> list[Row]:
    """Return accuracy and macro-F1 by judge and reward IDM of each evaluation; empty: no model read the actions."""
    rows, shown = [], _shown(results)
    for each in shown:
        cells = [_name(each.name, each.temperature)]
        for idm in IDMS:
            if part := each.following.get(idm):
                cells += [_with_error(part.accuracy, part.accuracy_se), _with_error(part.macro_f1, part.macro_f1_se)]
            else:
                cells += ["", ""]
        rows.append((_row_class(each), cells))
    return rows if any(each.following for each in shown) else []


def difference_rows(comparisons: Sequence[Comparison]) -> list[Row]:
    """Return the changes of the figures of `following_rows` for each pair of evaluations."""
    rows = []
    for each in comparisons:
        cells = [_pair_name(each)]
        for idm in IDMS:
            changes = each.following.get(idm, {}).values()
            cells += [_with_error(change.mean, change.se, sign="+") for change in changes] or ["", ""]
        if each.following:
            rows.append(("", cells))
    return rows


def group_table(results: Results) -> tuple[list[str], list[Row]] | None:
    """Return head and rows of the judge's figures by action group; None: no judge read the actions."""
    found = (results.find(BASE), results.find(POST_TRAINED), results.ceiling.get(REAL))
    columns = [each for each in found if each and "judge" in each.following]
    if not columns:
        return None
    groups = [each.following["judge"].per_group for each in columns]
    figures = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
    head = [f"{ROW_NAMES[each.name].lower()}\n{title}" for title in figures.values() for each in columns]
    rows = [
        ("", [name.replace("_", " / "), *(figure_text(group[name][key]) for key in figures for group in groups)])
        for name in groups[0]
    ]
    return ["", *head], rows


def quality_rows(results: Results) -> list[Row]:
    """Return the picture quality of each evaluation, then the changes between evaluations of one temperature."""
    rows = []
    for each in _shown(results):
        means = [figure_text(each.quality.mean(figure), f".{digits}f") for figure, digits in QUALITY_DIGITS.items()]
        rows.append((_row_class(each), [_name(each.name, each.temperature), *means]))
    for pair in results.comparisons:
        if pair.before_temperature == pair.after_temperature:
            changes = [(pair.quality.get(figure), digits) for figure, digits in QUALITY_DIGITS.items()]
            texts = [_with_error(each.mean, each.se, digits, sign="+") if each else "–" for each, digits in changes]
            rows.append(("", [_pair_name(pair), *texts]))
    return rows


def calibration_table(calibration: Json) -> tuple[list[str], list[Row]] | None:
    """Return head and rows of the check of the reward on real clips; None: the run did not check its reward."""
    if not calibration:
        return None
    shifts, clips = (list(next(iter(calibration.values()))[key]) for key in ("macro_f1", "gate"))
    head = ["", *(f"shift {int(shift):+d}" if int(shift) else "in place" for shift in shifts)]
    head += [clip.replace("_", " ") for clip in clips]
    rows = []
    for idm, part in calibration.items():
        figures = [*(part["macro_f1"][shift] for shift in shifts), *(part["gate"][clip] for clip in clips)]
        rows.append(("", [IDMS.get(idm, idm), *map(figure_text, figures)]))
    return head, rows


def figure_text(value: float | None, form: str = ".3f") -> str:
    """Format a figure; a missing figure becomes a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:{form}}"


def _shown(results: Results) -> list[Evaluation]:
    ceiling = [results.ceiling[name] for name in (RECONSTRUCTED, REAL) if name in results.ceiling]
    return [*results.evaluations, *ceiling]


def _name(name: str, temperature: float | None) -> str:
    return ROW_NAMES.get(name, name) + ("" if temperature is None else f" at T = {temperature:g}")


def _pair_name(pair: Comparison) -> str:
    return f"{_name(pair.after, pair.after_temperature)} − {_name(pair.before, pair.before_temperature)}"


def _row_class(evaluation: Evaluation) -> str:
    return "after" if evaluation.name == POST_TRAINED else "limit" if evaluation.name in (REAL, RECONSTRUCTED) else ""


def _with_error(value: float, error: float, digits: int = 3, sign: str = "") -> str:
    text = figure_text(value, f"{sign}.{digits}f")
    return text if math.isnan(error) else f"{text} ± {error:.{digits}f}"
