"""The tables of the report: a row is its CSS class and the texts of its cells, the row's name first."""

from __future__ import annotations

import math

from rlir_ray.algorithm.guidance import NO_GUIDANCE
from rlir_ray.data.files import Json
from rlir_ray.evaluation.results import (
    BASE,
    POST_TRAINED,
    REAL,
    RECONSTRUCTED,
    Comparison,
    Evaluation,
    Results,
    Sampling,
)
from rlir_ray.spaces.fields import Axis

Row = tuple[str, list[str]]

ROW_NAMES = {
    "base": "Base model",
    "supervised": "Supervised control",
    "post-trained": "Post-trained",
    "reconstructed": "Real clips through the tokenizer",
    "real": "Real clips",
}
IDMS = {"judge": "Judge", "reward": "Reward IDM"}
FIGURES = {"accuracy": "accuracy", "macro_f1": "macro-F1", "axis_error": "axis error", "r2": "R²"}
FIELD_FIGURES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "mae": "mean abs. error",
    "r2": "R²",
    "within": "within a bin",
}
QUALITY_DIGITS = {"psnr": 2, "ssim": 3, "brightness": 1, "sharpness": 2, "motion": 2, "repeated": 3}


def headline_figures(results: Results) -> tuple[str, ...]:
    """Return the figures that sum up the fields of the world; empty: no model read the actions."""
    found = [part for each in _shown(results) for part in each.following.values()]
    return found[0].headline if found else ()


def following_head(results: Results) -> list[str]:
    """Return the titles of the columns of `following_rows` and `difference_rows`."""
    figures = headline_figures(results)
    return ["", *(f"{title.replace('Judge', 'judge')}\n{FIGURES[each]}" for title in IDMS.values() for each in figures)]


def following_rows(results: Results) -> list[Row]:
    """Return the headline figures by judge and reward IDM of each evaluation; empty: no model read the actions."""
    rows, figures = [], headline_figures(results)
    for each in _shown(results) if figures else ():
        cells = [_name(each.name, each.sampling)]
        for idm in IDMS:
            part = each.following.get(idm)
            values = [(getattr(part, figure), getattr(part, f"{figure}_se")) for figure in figures] if part else []
            cells += [_with_error(*pair) for pair in values] or [""] * len(figures)
        rows.append((_row_class(each), cells))
    return rows


def difference_rows(results: Results) -> list[Row]:
    """Return the changes of the figures of `following_rows` for each pair of evaluations."""
    rows, figures = [], headline_figures(results)
    for each in results.comparisons:
        cells = [_pair_name(each)]
        for idm in IDMS:
            changes = each.following.get(idm, {}).values()
            cells += [_with_error(change.mean, change.se, sign="+") for change in changes] or [""] * len(figures)
        if each.following:
            rows.append(("", cells))
    return rows


def group_table(results: Results) -> tuple[list[str], list[Row]] | None:
    """Return head and rows of the judge's figures by field; None: no judge read the actions."""
    found = (results.find(BASE), results.find(POST_TRAINED), results.ceiling.get(REAL))
    columns = [each for each in found if each and "judge" in each.following]
    if not columns:
        return None
    groups = [each.following["judge"].per_group for each in columns]
    # A figure that no field has gets no column.
    known = {key for part in groups[0].values() for key, value in part.items() if not math.isnan(value)}
    figures = {key: title for key, title in FIELD_FIGURES.items() if key in known}
    head = [f"{ROW_NAMES[each.name].lower()}\n{title}" for title in figures.values() for each in columns]
    rows = []
    for field in columns[0].following["judge"].fields:
        cells = [figure_text(group[field.name].get(key)) for key in figures for group in groups]
        unit = f", {field.unit}" if isinstance(field, Axis) and field.unit else ""
        rows.append(("", [field.name.replace("_", " / ") + unit, *cells]))
    return ["", *head], rows


def quality_rows(results: Results) -> list[Row]:
    """Return the picture quality of each evaluation, then the changes between evaluations that sampled alike."""
    rows = []
    for each in _shown(results):
        means = [figure_text(each.quality.mean(figure), f".{digits}f") for figure, digits in QUALITY_DIGITS.items()]
        rows.append((_row_class(each), [_name(each.name, each.sampling), *means]))
    for pair in results.comparisons:
        if pair.is_of_one_sampling:
            changes = [(pair.quality.get(figure), digits) for figure, digits in QUALITY_DIGITS.items()]
            texts = [_with_error(each.mean, each.se, digits, sign="+") if each else "–" for each, digits in changes]
            rows.append(("", [_pair_name(pair), *texts]))
    return rows


def calibration_table(calibration: Json) -> tuple[list[str], list[Row]] | None:
    """Return head and rows of the check of the reward on real clips; None: the run did not check its reward."""
    if not calibration:
        return None
    # A model that failed the check, with reward.audit=warn, has no figures of shifts.
    parts = list(calibration.values())
    shifts, clips = (max((list(part[key]) for part in parts), key=len) for key in ("macro_f1", "gate"))
    head = ["", *(f"shift {int(shift):+d}" if int(shift) else "in place" for shift in shifts)]
    head += [clip.replace("_", " ") for clip in clips]
    rows = []
    for idm, part in calibration.items():
        figures = [*(part["macro_f1"].get(shift) for shift in shifts), *(part["gate"][clip] for clip in clips)]
        rows.append(("", [IDMS.get(idm, idm), *map(figure_text, figures)]))
    return head, rows


def figure_text(value: float | None, form: str = ".3f") -> str:
    """Format a figure; a missing figure becomes a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:{form}}"


def _shown(results: Results) -> list[Evaluation]:
    ceiling = [results.ceiling[name] for name in (RECONSTRUCTED, REAL) if name in results.ceiling]
    return [*results.evaluations, *ceiling]


def _name(name: str, sampling: Sampling) -> str:
    temperature, guidance = sampling
    text = "" if temperature is None else f" at T = {temperature:g}"
    return ROW_NAMES.get(name, name) + text + ("" if guidance == NO_GUIDANCE else f", guidance {guidance:g}")


def _pair_name(pair: Comparison) -> str:
    after = _name(pair.after, (pair.after_temperature, pair.after_guidance))
    return f"{after} − {_name(pair.before, (pair.before_temperature, pair.before_guidance))}"


def _row_class(evaluation: Evaluation) -> str:
    return "after" if evaluation.name == POST_TRAINED else "limit" if evaluation.name in (REAL, RECONSTRUCTED) else ""


def _with_error(value: float, error: float, digits: int = 3, sign: str = "") -> str:
    text = figure_text(value, f"{sign}.{digits}f")
    return text if math.isnan(error) else f"{text} ± {error:.{digits}f}"
