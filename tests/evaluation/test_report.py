from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlir_ray.evaluation.quality import Quality
from rlir_ray.evaluation.report import line_chart, nice_ticks, report_picture, write_report
from rlir_ray.evaluation.results import Evaluation, record_ceiling, record_evaluation
from rlir_ray.evaluation.video import Clips
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE
from tests.evaluation.followings import GEAR, GROUPS, LIFT, STEER, following, vpt_following


def evaluation(name: str, wrong: float, temperature: float | None = 1.0) -> tuple[Evaluation, Clips]:
    """64 prompts of 4 frames; a share `wrong` of the commanded classes is read as another one."""
    commanded = np.random.default_rng(0).integers(0, 2, (64, 4, 2))
    flipped = np.random.default_rng(1).random(commanded.shape) < wrong
    found = vpt_following(GROUPS, commanded, np.where(flipped, 1 - commanded, commanded))
    clips = Clips(
        name=name,
        frames=np.full((2, 5, 24, 32, 3), 90, np.uint8),
        space=ActionSpace(VPT_SPACE.select(GROUPS)),
        commanded=found.commanded.values[:2],
        recovered=found.recovered.values[:2],
        prompt_ids=("a", "b"),
    )
    pixels = np.full(64, 60.0)
    return Evaluation(
        name=name,
        seed=7,
        temperature=temperature,
        following={"reward": found, "judge": found},
        quality=Quality(brightness=pixels, sharpness=pixels / 9, motion=pixels / 6, psnr=pixels / 3, ssim=pixels / 90),
    ), clips


def evaluation_of_axes(name: str, error: float, temperature: float | None = 1.0) -> tuple[Evaluation, Clips]:
    """As `evaluation`, in a space of two axes; every reading is off by about a share `error` of the range."""
    random = np.random.default_rng(0)
    shares, signs = random.uniform(0.3, 0.7, (64, 4, 2)), random.choice([-1, 1], (64, 4, 2))
    low, ranges = np.array([-4, 0]), np.array([8, 1])
    found = following((STEER, LIFT), low + shares * ranges, low + (shares + error * signs) * ranges)
    one, clips = evaluation(name, 0, temperature)
    clips = replace(
        clips,
        space=ActionSpace((STEER, LIFT)),
        commanded=found.commanded.values[:2],
        recovered=found.recovered.values[:2],
    )
    return replace(one, following={"reward": found, "judge": found}), clips


def write_run(
    run_dir: Path,
    before: float,
    after: float,
    make: Callable[[str, float, float | None], tuple[Evaluation, Clips]] = evaluation,
) -> str:
    real, clips = make("real", 0.05, None)
    record_ceiling(run_dir, {"real": real}, clips)
    record_evaluation(run_dir, *make("base", before, 1.0))
    record_evaluation(run_dir, *make("post-trained", after, 1.0))
    return write_report(run_dir).read_text()


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    lines = [json.dumps({"step": step, "reward/mean": 0.6 + 0.01 * step, "time/step_s": 6.0}) for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    page = write_run(tmp_path, 0.4, 0.2)
    # The controls of a browser cover the commands.
    assert not re.search(r"<video[^>]* controls", page)
    assert page.count("<video") == 2 and page.count("<svg") == 2
    assert set(re.findall(r'(?:src|href)="([^"]{0,14})', page)) == {"data:video/mp4"}
    assert "http" not in page
    assert "3 steps of reinforcement learning in 0.3 minutes" in page


def test_a_line_of_metrics_that_was_cut_is_left_out(tmp_path: Path) -> None:
    whole = [json.dumps({"step": step, "time/step_s": 60}) for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*whole, '{"step": 3, "ti']))
    assert "2 steps of reinforcement learning in 2.0 minutes" in write_run(tmp_path, 0.4, 0.2)


def test_the_headline_claims_only_what_exceeds_twice_the_error(tmp_path: Path) -> None:
    assert "measurably better" in write_run(tmp_path, 0.4, 0.2)
    assert "measurably worse" in write_run(tmp_path, 0.2, 0.4)
    assert "no clear change" in write_run(tmp_path, 0.3, 0.3)


def test_a_judge_that_is_the_reward_is_not_called_unseen(tmp_path: Path) -> None:
    unseen, itself = "an inverse dynamics model that training never saw either", "The judge is the reward IDM itself"
    assert unseen in write_run(tmp_path, 0.4, 0.2)
    # By content, wherever the two lie; of a run of an earlier version by their paths.
    files = {
        "content.json": {"models.reward_idm": "a", "models.judge_idm": "a"},
        "config.json": {"models": {"reward_idm": "models/vpt_idm", "judge_idm": "models/vpt_idm"}},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
        page = write_run(tmp_path, 0.4, 0.2)
        assert itself in page and unseen not in page
        (tmp_path / name).unlink()
    (tmp_path / "content.json").write_text(json.dumps({"models.reward_idm": "a", "models.judge_idm": "b"}))
    (tmp_path / "config.json").write_text(json.dumps(files["config.json"]))
    assert unseen in write_run(tmp_path, 0.4, 0.2)


def cells_of(page: str, heading: str) -> list[list[str]]:
    """The texts of the first table below a heading, row by row."""
    table = page.partition(f"<h2>{heading}</h2>")[2].partition("</table>")[0]
    return [
        [" ".join(re.sub(r"<.*?>", " ", cell).split()) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)
    ]


def test_a_space_of_axes_has_errors_in_place_of_classes(tmp_path: Path) -> None:
    page = write_run(tmp_path, 0.2, 0.1, evaluation_of_axes)
    assert "obeys commanded actions measurably better" in page
    assert "the judge reads them with an error of 20.0% of their range before and 10.0% after (R² " in page
    assert "In real clips it has an error of 5.0%." in page and "recovers" not in page.partition("<h2>")[0]
    head, base, after, real = cells_of(page, "Commanded actions that were recovered")
    assert head == ["", "judge axis error", "judge R²", "Reward IDM axis error", "Reward IDM R²"]
    assert [row[0] for row in (base, after, real)] == ["Base model at T = 1", "Post-trained at T = 1", "Real clips"]
    assert base[1].startswith("0.200 ± 0.000") and real[1].startswith("0.050")
    (_, change) = cells_of(page, "Differences on the same prompts")
    assert change[1] == "-0.100 ± 0.000" and change[2].startswith("+")
    head, steer, lift = cells_of(page, "By field (judge)")
    # No field has classes to compare: only the columns of axes, each for base, after and real.
    assert len(head) == 1 + 3 * 3 and not any("F1" in title for title in head)
    # The range of steer is 8 degrees.
    assert steer[:4] == ["steer, degrees", "1.600", "0.800", "0.400"] and lift[:2] == ["lift", "0.200"]
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", page), re.IGNORECASE)


def test_axes_that_are_read_worse_are_called_so(tmp_path: Path) -> None:
    assert "measurably worse" in write_run(tmp_path, 0.1, 0.2, evaluation_of_axes)
    assert "no clear change" in write_run(tmp_path, 0.1, 0.1, evaluation_of_axes)


def test_a_space_of_both_has_all_four_figures(tmp_path: Path) -> None:
    def both(name: str, error: float, temperature: float | None = 1.0) -> tuple[Evaluation, Clips]:
        one, clips = evaluation(name, error, temperature)
        gears = np.random.default_rng(0).integers(0, 3, (64, 4))
        steer = np.random.default_rng(1).uniform(-2, 2, (64, 4))
        wrong = np.random.default_rng(2).random(gears.shape) < error
        found = following(
            (GEAR, STEER), np.stack([gears, steer], -1), np.stack([np.where(wrong, 1, gears), steer + 8 * error], -1)
        )
        clips = replace(
            clips,
            space=ActionSpace((GEAR, STEER)),
            commanded=found.commanded.values[:2],
            recovered=found.recovered.values[:2],
        )
        return replace(one, following={"reward": found, "judge": found}), clips

    page = write_run(tmp_path, 0.2, 0.1, both)
    head, base, *_ = cells_of(page, "Commanded actions that were recovered")
    assert [title for title in head if title.startswith("judge")] == [
        "judge accuracy",
        "judge macro-F1",
        "judge axis error",
        "judge R²",
    ]
    assert len(base) == len(head)
    assert "of them before and" in page and ", and the judge reads them with an error of 20.0%" in page
    _, gear, steer = cells_of(page, "By field (judge)")
    assert gear[-1] == "–" and steer[1] == "–"


def test_names_in_a_run_are_text_not_markup(tmp_path: Path) -> None:
    record_evaluation(tmp_path, evaluation("<b>mine</b>", 0.3)[0])
    page = write_run(tmp_path, 0.4, 0.2)
    assert "&lt;b&gt;mine" in page and "<b>mine" not in page


def test_calibration_and_configuration_are_shown(tmp_path: Path) -> None:
    part = {"macro_f1": {"-1": 0.61, "0": 0.92, "1": 0.63}, "gate": {"exact": 0.91, "wrong_action": 0.31}}
    (tmp_path / "calibration.json").write_text(json.dumps({"judge": part}))
    (tmp_path / "config.json").write_text(json.dumps({"seed": 3, "train": {"group_size": 8}}))
    page = write_run(tmp_path, 0.4, 0.2)
    assert "0.610" in page and "wrong action" in page and "0.310" in page
    assert "Seed 3; evaluation seed 7." in page and "group_size" in page
    assert "Not yet" not in page
    (tmp_path / "calibration.json").write_text(json.dumps({"judge": part | {"fault": "it reads <nothing>"}}))
    assert "<b>Not yet:</b> it reads &lt;nothing&gt;." in write_report(tmp_path).read_text()


def test_a_figure_of_nothing_is_a_dash_and_null(tmp_path: Path) -> None:
    for name in ("base", "post-trained"):
        one, clips = evaluation(name, 0.2)
        still = np.zeros_like(one.following["judge"].commanded.classes)
        nothing = vpt_following(GROUPS, still, still)
        record_evaluation(tmp_path, replace(one, following={"reward": nothing, "judge": nothing}), clips)
    part = {"macro_f1": {"-1": None, "0": None, "1": None}, "gate": {"exact": None}}
    (tmp_path / "calibration.json").write_text(json.dumps({"judge": part}))
    page = write_report(tmp_path).read_text()
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", page), re.IGNORECASE)
    assert "the judge recovers – of them before and – after (macro-F1 – and –)" in page
    assert "NaN" not in (tmp_path / "evaluation.json").read_text()


def test_the_picture_shows_every_kind_of_clip(tmp_path: Path) -> None:
    from PIL import Image

    write_run(tmp_path, 0.4, 0.2)
    with Image.open(report_picture(tmp_path)) as picture:
        # Three rows of a 192-pixel frame with its keys (30) and a gap (8), four columns.
        assert picture.size == (104 + 4 * 264 - 8, 3 * (192 + 30 + 8))


def test_a_run_that_was_not_evaluated_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluation\.json"):
        write_report(tmp_path)


def test_ticks_are_round_and_enclose_the_values() -> None:
    assert nice_ticks(0.62, 0.71) == [0.6, 0.65, 0.7, 0.75]
    assert nice_ticks(0, 9) == [0, 5, 10]
    assert nice_ticks(0, 0) == [0, 0.5]
    assert nice_ticks(5, 5)[0] <= 5 <= nice_ticks(5, 5)[-1]


def test_a_gap_in_a_curve_is_left_out() -> None:
    (curve,) = line_chart("KL", [1, 2, 3], {"KL": [0.0, float("nan"), 1.0]})["curves"]
    # The picture is 340 pixels wide: the curve begins after the labels of y (44) and ends 10 before the right edge.
    assert curve["points"] == "44.0,158.0 330.0,34.0" and curve["end"] == (330.0, 34.0)
