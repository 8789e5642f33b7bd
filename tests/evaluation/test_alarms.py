"""Alarms of a policy in training: the signs of a reward that is fooled."""

from __future__ import annotations

import numpy as np
import pytest

from actors.evaluation.watch import Watch
from rlir_ray.config import EvaluationConfig
from rlir_ray.evaluation.alarms import Sign, entropy_sign, signs
from rlir_ray.evaluation.following import Following
from rlir_ray.evaluation.quality import Quality
from rlir_ray.evaluation.results import Evaluation
from tests.evaluation.followings import GROUPS, STEER, following, vpt_following

NUM_PROMPTS = 24


def figures(brightness: float = 60.0, motion: float = 10.0, repeated: float = 0.0, num: int = NUM_PROMPTS) -> Quality:
    noise = np.random.default_rng(0).normal(0, 0.5, NUM_PROMPTS)[:num]
    return Quality(
        brightness=brightness + noise,
        sharpness=np.full(num, 7.0),
        motion=motion + noise,
        repeated=np.full(num, repeated),
    )


def read(share: float, num: int = NUM_PROMPTS) -> Following:
    """Clips of eight frames in which a share of the commands is recovered, other frames in each clip."""
    commanded = np.ones((num, 8, 2), np.int64)
    recovered = commanded.copy()
    for clip in range(num):
        wrong = np.random.default_rng(clip).permutation(8)[: round(8 * (1 - share))]
        recovered[clip, wrong] = 0
    return vpt_following(GROUPS, commanded, recovered)


def evaluation(quality: Quality, reward: float | None = None, judge: float | None = None) -> Evaluation:
    shares = {"reward": reward, "judge": judge}
    num = len(quality.brightness)
    return Evaluation(
        name="x", seed=0, following={idm: read(share, num) for idm, share in shares.items() if share}, quality=quality
    )


BASE, REAL = evaluation(figures(), 0.5, 0.5), evaluation(figures(59.0, 13.0))


def test_a_gain_that_the_judge_does_not_see_is_an_alarm() -> None:
    fooled = signs(BASE, evaluation(figures(), 0.875, 0.5), REAL)["judge_gap"]
    assert fooled.is_alarm and fooled.value == pytest.approx(0.375)
    assert "sees +0.375 and the judge +0.000" in fooled.text
    honest = signs(BASE, evaluation(figures(), 0.875, 0.875), REAL)["judge_gap"]
    assert not honest.is_alarm and honest.value == 0
    assert "judge_gap" not in signs(BASE, evaluation(figures(), 0.875), REAL)


def test_a_gap_of_axes_is_a_share_of_their_range() -> None:
    wanted = np.tile(np.array([[-3.0], [3.0]], np.float32), (NUM_PROMPTS, 2, 1))

    def axes(reward: float, judge: float) -> Evaluation:
        parts = {
            "reward": following((STEER,), wanted, wanted + reward),
            "judge": following((STEER,), wanted, wanted + judge),
        }
        return Evaluation(name="x", seed=0, following=parts, quality=figures())

    # The reward's model reads 2 of 8 degrees nearer, the judge nothing.
    assert signs(axes(2.0, 2.0), axes(0.0, 2.0), REAL)["judge_gap"].value == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("now", "alarm"),
    [
        (figures(66.0), "brightness"),
        (figures(motion=6.0), "motion"),
        (figures(repeated=0.3), "repeated"),
        (figures(59.5), None),  # nearer to real clips than the base
        (figures(motion=12.0), None),
    ],
)
def test_pictures_that_move_away_from_real_ones_are_an_alarm(now: Quality, alarm: str | None) -> None:
    found = signs(BASE, evaluation(now), REAL)
    assert [name for name, sign in found.items() if sign.is_alarm] == ([alarm] if alarm else [])


def test_fewer_prompts_are_compared_with_the_same_ones() -> None:
    found = signs(BASE, evaluation(figures(num=6), 0.5, 0.5), REAL)
    assert found["brightness"].value == pytest.approx(0, abs=1e-9) and found["judge_gap"].value == 0


def test_the_entropy_of_the_first_steps_is_the_measure() -> None:
    history = [{"entropy/mean": value} for value in (2.0, 2.2, 1.8, 1.2)]
    sign = entropy_sign(history)
    assert sign is not None and not sign.is_alarm and sign.value == pytest.approx(0.6)
    fallen = entropy_sign([*history, {"entropy/mean": 0.9}])
    assert fallen is not None and fallen.is_alarm
    assert entropy_sign(history[:3]) is None and entropy_sign([{"reward/mean": 1.0}] * 9) is None


def test_an_alarm_is_one_line_until_it_is_over_and_ends_the_run_if_asked_for() -> None:
    lines: list[str] = []
    watch = Watch(EvaluationConfig(stop_on=("motion",)), lines.append)
    high, low = Sign(2.0, 0.1, True, "too high"), Sign(0.0, 0.1, False, "as before")
    watch.after_evaluation({"judge/accuracy": 0.5}, {"brightness": high, "motion": low})
    watch.after_evaluation({"judge/accuracy": 0.6}, {"brightness": high, "motion": low})
    assert lines == ["alarm brightness: too high"] and not watch.stopped_by
    assert watch.metrics == {"heldout/judge/accuracy": 0.6, "sign/brightness": 2.0, "sign/motion": 0.0}
    watch.after_evaluation({}, {"brightness": low, "motion": high})
    watch.after_evaluation({}, {"brightness": high, "motion": low})
    assert lines[1:] == ["alarm motion: too high; the run ends (evaluation.stop_on)", "alarm brightness: too high"]
    assert watch.stopped_by == "motion"
