"""Terms: one decoding for all, their combination, and the figures of each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlir_ray.algorithm.terms import term_advantages, weighted_rewards, weighted_sum
from rlir_ray.config import RewardConfig, TermConfig
from rlir_ray.local import group_signal, normalised_advantages, reward_metrics
from rlir_ray.rewards.combined import CombinedReward
from rlir_ray.rewards.term import GroupClips, Term
from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.vpt import VPT_SPACE
from rlir_ray.trajectory import EncodedClips, EncodedVideo, RewardScores
from tests.world import MakeConfig


class Grey:
    """Decodes token 0 of a frame as its grey value, and counts its calls."""

    calls = 0

    def decode_clips(self, clips: EncodedClips) -> torch.Tensor:
        self.calls += 1
        return clips.codes[:, :, :1, None, None].expand(-1, -1, 4, 4, 3).to(torch.uint8)


class Value(Term):
    """The grey value of each frame."""

    def score(self, clips: GroupClips) -> torch.Tensor:
        return clips.generated[..., 0, 0, 0].float()


class FromRecorded(Term):
    reads_recorded = True

    def score(self, clips: GroupClips) -> torch.Tensor:
        assert clips.recorded is not None and clips.recorded.shape == (2, 4, 4, 3)
        return clips.generated[..., 0, 0, 0].float() - clips.recorded[None, :, 0, 0, 0].float()


class Broken(Term):
    def score(self, clips: GroupClips) -> np.ndarray:
        return np.full((len(clips.frames), 2), np.nan)


class Short(Term):
    def score(self, clips: GroupClips) -> np.ndarray:
        return np.zeros((len(clips.frames), 1))


def video(greys: list[list[int]], recorded: list[int] | None = None, group_id: int = 3) -> EncodedVideo:
    """Groups of one context frame and two generated frames of two tokens."""
    codes = np.array(greys, np.uint16)[..., None].repeat(2, -1)
    future = None if recorded is None else np.array(recorded, np.uint16)[:, None].repeat(2, -1)
    return EncodedVideo(group_id=group_id, codes=codes, num_context=1, actions=VPT_SPACE.nothing(2), recorded=future)


def reward(codec: Grey, terms: dict[str, Term], **settings: object) -> CombinedReward:
    config = RewardConfig(terms=tuple(TermConfig(name="inverse") for _ in terms), **settings)  # type: ignore[arg-type]
    return CombinedReward(codec, terms, None, names=("jump",), config=config)


def test_all_terms_share_one_decoding_and_are_reported_alone() -> None:
    codec = Grey()
    found = reward(codec, {"value": Value(), "gap": FromRecorded()}).score(
        [video([[9, 1, 2], [9, 3, 5]], [1, 1]), video([[9, 7, 7]], [0, 2], 4)]
    )
    assert codec.calls == 1
    assert found[0].terms["value"].tolist() == [[1, 2], [3, 5]] and found[0].terms["gap"].tolist() == [[0, 1], [2, 4]]
    assert found[0].frame_rewards.tolist() == [[1, 3], [5, 9]]
    assert found[1].group_id == 4 and found[1].terms["gap"].tolist() == [[7, 5]]
    back = RewardScores.from_json(found[0].to_json())
    assert {label: rewards.tolist() for label, rewards in back.terms.items()} == {
        label: rewards.tolist() for label, rewards in found[0].terms.items()
    }
    metrics = reward_metrics(found, RewardConfig())
    # Clip means of `value`: 1.5 and 4 in the first group, 7 in the second.
    assert metrics["term/value"] == pytest.approx((2.75 + 7) / 2) and metrics["term/value_std"] == pytest.approx(0.625)


def test_weights_and_normalisation_within_the_group() -> None:
    large, small = np.array([[100.0, 300.0], [300.0, 100.0]]), np.array([[0.0, 0.2], [0.0, 0.0]])
    assert weighted_rewards([large, small], [1.0, -10.0], [False, False]).tolist() == [[100, 298], [300, 100]]
    # Deviations from the group's mean: ±100 in both frames, std 100; 0 and ±.1, pooled std .1 / sqrt(2).
    scaled = weighted_rewards([large, small], [1.0, 2.0], [True, True])
    np.testing.assert_allclose(scaled, [[-1, 1 + 2 * 2**0.5], [1, -1 - 2 * 2**0.5]], rtol=1e-6)


def test_a_large_term_cannot_drown_another_as_advantages_and_a_constant_one_is_left_out() -> None:
    large, small, flat = np.array([[0.0], [1000.0]]), np.array([[0.001], [0.0]]), np.array([[5.0], [5.0]])
    by_term = term_advantages(
        [large, small, flat], [True, True, True], credit="clip", discount=1.0, min_reward_std=1e-6
    )
    assert by_term is not None and by_term.shape == (3, 2, 1)
    np.testing.assert_allclose(by_term[..., 0], [[-1, 1], [1, -1], [0, 0]])
    np.testing.assert_allclose(weighted_sum(by_term, [1.0, 0.5, 9.0])[:, 0], [-0.5, 0.5])
    assert term_advantages([flat], [True], credit="clip", discount=1.0, min_reward_std=1e-6) is None


@pytest.mark.parametrize("combine", ["rewards", "advantages", "losses"])
def test_the_configuration_says_how_terms_become_advantages(make_config: MakeConfig, combine: str) -> None:
    two = "reward.terms=[{name: inverse}, {name: inverse, weight: 0.5}]"
    config = make_config(two, f"reward.combine={combine}", "reward.credit=clip", "train.max_advantage=1")
    rewards = {"inverse": np.array([[0.0], [4.0]], np.float32), "inverse_2": np.array([[1.0], [0.0]], np.float32)}
    scores = RewardScores(
        group_id=0, frame_rewards=weighted_rewards(list(rewards.values()), (1.0, 0.5), (False, False)), terms=rewards
    )
    signal = group_signal(config, scores)
    assert signal is not None
    (found,) = normalised_advantages(config, [signal])
    if combine == "rewards":
        assert found.values[:, 0].tolist() == [-1, 1] and found.terms is None  # 0.5 and 4: one sum, one scale
    else:
        assert found.values[:, 0].tolist() == [-0.5, 0.5]  # -1 + .5
        assert (found.terms is None) == (combine == "advantages")
    if combine == "losses":
        assert found.terms is not None and found.terms[..., 0].tolist() == [[-1, 1], [0.5, -0.5]]


def test_rewards_that_are_not_finite_fail_their_group_and_rewards_of_another_shape_are_an_error() -> None:
    (failed,) = reward(Grey(), {"mine": Broken()}).score([video([[0, 1, 2]])])
    assert "the term mine gives NaN or infinity; check reward.terms" in failed.failure
    with pytest.raises(ValueError, match=r"the term mine must give \[G, F\] = \(1, 2\) rewards, got \(1, 1\)"):
        reward(Grey(), {"mine": Short()}).score([video([[0, 1, 2]])])


def test_a_video_without_its_recorded_future_is_an_error_where_a_term_reads_it() -> None:
    with pytest.raises(ValueError, match="needs prompts that hold it, got none in group 3"):
        reward(Grey(), {"gap": FromRecorded()}).score([video([[0, 1, 2]])])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward.combine=advantages"], "reward.combine must be rewards with one term"),
        (
            ["reward.terms=[{name: inverse}, {name: context}]", "reward.combine=losses"],
            "reward.combine must be advantages where no loss is clipped",
        ),
        (
            ["reward.terms=[{name: inverse}, {name: context}]", "reward.combine=advantages", "train.advantage=dr_grpo"],
            "train.advantage must be grpo with reward.combine=advantages",
        ),
        (["reward.terms=[{name: inverse, args: {a: 1}}]"], "reward.args must be empty for the term inverse"),
        (["reward.name=context", "reward.terms=[{name: inverse}]"], "reward.name must be left out with reward.terms"),
        (
            ["reward.terms=[{name: inverse}, {name: context}]", "reward.address=serve://shared"],
            "reward.address must be empty with another reward than the term inverse alone",
        ),
        (["reward.name=context", "reward.schedule=[{from_step: 3, rule: joint}]"], "reward.schedule"),
        (["reward.schedule=[{from_step: 3}]"], "reward.schedule must hold stages of from_step"),
        (["reward.schedule=[{from_step: 3, rule: all}]"], "reward.rule must be one of groups, joint, fields"),
        (["reward.schedule=[{from_step: 3, axis_tolerance: 1}]"], "must set axis_tolerance only where axis=within"),
        (
            ["reward.schedule=[{from_step: 5, rule: joint}, {from_step: 3, rule: groups}]"],
            "must have stages in the order of their from_step",
        ),
    ],
)
def test_settings_that_cannot_act_are_refused(make_config: MakeConfig, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        make_config(*overrides)


def test_strictness_rises_with_the_policy_version() -> None:
    stages = ({"from_step": 10, "axis": "exact"}, {"from_step": 20, "rule": "joint", "match": "exact"})
    config = RewardConfig(axis="within", axis_tolerance=2.0, schedule=stages)
    found = [config.at_version(version) for version in (9, 10, 20)]
    assert [each.axis for each in found] == ["within", "exact", "exact"]
    assert [(each.rule, each.match) for each in found] == [("groups", "soft"), ("groups", "soft"), ("joint", "exact")]


def test_labels_tell_terms_of_one_name_apart() -> None:
    config = RewardConfig(terms=tuple(TermConfig(name=name) for name in ("inverse", "a.b:C", "inverse", "d:C")))
    assert list(config.labelled_terms) == ["inverse", "C", "inverse_2", "C_2"]


def test_actions_of_a_group_are_the_commanded_ones() -> None:
    clips = GroupClips(frames=torch.zeros(1, 4, 2, 2, 3), num_context=2, actions=VPT_SPACE.nothing(3))
    assert isinstance(clips.commanded, Actions) and len(clips.commanded) == 2
    assert clips.generated.shape == (1, 2, 2, 2, 3) and replace(clips, num_context=1).generated.shape[1] == 3
