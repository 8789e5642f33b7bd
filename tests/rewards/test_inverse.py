from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from rlir_ray.config import RewardConfig, WorldConfig
from rlir_ray.idm.base import Reading
from rlir_ray.rewards.combined import CombinedReward
from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.vpt import VPT_CAMERA, actions_from_buttons
from rlir_ray.trajectory import EncodedClips, EncodedVideo, RewardScores
from tests.fakes import VptReader, inverse_reward
from tests.second_space import SPACE, second_actions

WORLD = WorldConfig(height=4, width=4, num_frames=3, groups=("forward_back", "jump", "yaw"))


class Plain:
    """Token 0 of a frame becomes its grey value."""

    def decode_clips(self, clips: EncodedClips) -> torch.Tensor:
        assert clips.codes.ndim == 3
        return clips.codes[:, :, :1, None, None].expand(-1, -1, 4, 4, 3).to(torch.uint8)


class GreyReader(VptReader):
    """Reads forward where the grey value is odd; jump never; yaw in the bin that the tens digit names."""

    calls = 0

    def logits(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls += 1
        grey = frames[..., 0, 0, 0].long()
        buttons = torch.zeros(*grey.shape, 20, 2)
        buttons[..., 0] = 30
        buttons[..., 2, 1] = torch.where(grey % 2 == 1, 60.0, 0.0)
        camera = torch.full((*grey.shape, 2, 11), -30.0)
        camera[..., 1, :] = 60.0 * (torch.arange(11) == (grey // 10)[..., None]) - 30
        return {"buttons": buttons, "camera": camera}


def _video(greys: list[list[int]], group_id: int = 7) -> EncodedVideo:
    """Context frame and three generated ones; commands: forward, none, forward; jump in the last; yaw bins 5, 5, 9."""
    buttons = np.zeros((3, 23), np.bool_)
    buttons[[0, 2], 2] = True
    buttons[2, 3] = True
    camera = np.zeros((3, 2), np.float32)
    camera[2, 1] = VPT_CAMERA.centres(9)
    tokens = np.array(greys, np.uint16)[..., None].repeat(2, -1)
    return EncodedVideo(group_id=group_id, codes=tokens, num_context=1, actions=actions_from_buttons(buttons, camera))


def _reward(**settings: object) -> CombinedReward:
    return inverse_reward(Plain(), GreyReader(), WORLD.groups, RewardConfig(**settings))  # type: ignore[arg-type]


def test_frames_are_scored_against_the_action_that_leads_into_them() -> None:
    scores = _reward(rule="groups", match="exact").score([_video([[0, 51, 50, 91], [0, 50, 51, 50]])])[0]
    # Clip 0 obeys but for the jump. Clip 1: frames 1 and 2 have forward wrong; frame 3 has only nothing right.
    np.testing.assert_allclose(scores.frame_rewards, [[1, 1, 2 / 3], [2 / 3, 2 / 3, 0]], rtol=1e-6)
    assert scores.group_id == 7
    assert scores.frame_rewards.dtype == np.float32


def test_every_rule_is_reported_whatever_the_reward() -> None:
    scores = _reward(rule="joint", match="soft").score([_video([[0, 51, 50, 91]])])[0]
    # Groups: (1 + 1 + 2/3) / 3; joint: (1 + 1 + 0) / 3; fields: forward, back, jump, yaw: (1 + 1 + 3/4) / 3.
    np.testing.assert_allclose([scores.rules[name] for name in ("groups", "joint", "fields")], [8 / 9, 2 / 3, 11 / 12])
    np.testing.assert_allclose(scores.rules["soft"], 8 / 9, atol=1e-5)
    np.testing.assert_allclose(scores.frame_rewards, [[1, 1, 0]], atol=1e-5)


def test_the_confusion_counts_generated_frames_by_command() -> None:
    confusion = _reward().score([_video([[1, 51, 50, 91], [1, 50, 51, 50]])])[0].confusion
    # Commands of both clips: none twice, forward four times; recovered: forward, none, forward and none, forward, none.
    assert confusion["forward_back"].tolist() == [[1, 1, 0], [2, 2, 0], [0, 0, 0]]
    assert confusion["jump"].tolist() == [[4, 0], [2, 0]]
    assert confusion["yaw"].sum() == 6


def test_scores_say_which_class_of_each_field_does_nothing() -> None:
    scores = _reward().score([_video([[1, 51, 50, 91]])])[0]
    assert scores.null_classes == {"forward_back": 0, "jump": 0, "yaw": 5}


class ThirdReader:
    """Reads gear 2, and a steer between the bins 4 and 6, in a space of two fields."""

    space = SPACE

    def read(self, frames: torch.Tensor, names: Sequence[str]) -> Reading:
        shape = frames.shape[:2]
        steer = torch.zeros(*shape, 9)
        steer[..., [4, 6]] = torch.tensor([0.25, 0.75])
        tables = {"gear": torch.tensor([0.1, 0.2, 0.7]).expand(*shape, 3), "steer": steer}
        return Reading({name: tables[name] for name in names}, {name: tables[name].argmax(-1) for name in names})


def test_another_space_is_scored_alike() -> None:
    world = WorldConfig(height=4, width=4, num_frames=2, groups=("gear", "steer"))
    actions = Actions(SPACE, np.array([[2, 0.5], [1, 0]], np.float32))
    video = EncodedVideo(group_id=7, codes=np.zeros((1, 3, 2), np.uint16), num_context=1, actions=actions)

    def score(**settings: object) -> RewardScores:
        config = RewardConfig(**settings)  # type: ignore[arg-type]
        return inverse_reward(Plain(), ThirdReader(), world.groups, config).score([video])[0]

    # Steer 0.5 is bin 6, 0 is bin 4. Frame 0: (.7 + .75) / 2, frame 1: (.2 + .25) / 2.
    found = score()
    np.testing.assert_allclose(found.frame_rewards, [[0.725, 0.225]], rtol=1e-6)
    assert found.null_classes == {"gear": 1} and found.confusion["gear"].tolist()[1] == [0, 0, 1]
    # Steer is graded, of a range of 2: the expected number is 1/3 (a quarter of 0, three of 4/9); commanded: .5 and 0.
    assert found.confusion.keys() == {"gear"}
    assert found.axis_errors == {"steer": pytest.approx((1 / 6 + 1 / 3) / 2 / 2)}
    # The centres of bins 4 and 6 are 0 and 4/9, the scale .1 of 2 is .2.
    smooth = score(axis="smooth")
    errors = np.array([[0.5, 0.5 - 4 / 9], [0, 4 / 9]])
    credit = np.exp(-errors / 0.2) @ [0.25, 0.75]
    np.testing.assert_allclose(smooth.frame_rewards, [(np.array([0.7, 0.2]) + credit) / 2], rtol=1e-5)
    assert smooth.rules["soft"] == pytest.approx(smooth.frame_rewards.mean())
    assert {"groups/exact", "joint/within", "fields/cell"} <= smooth.rules.keys()


def test_a_clip_of_another_space_than_the_models_is_refused() -> None:
    with pytest.raises(ValueError, match="the clip's actions must have the action space of the inverse dynamics model"):
        _reward().score_clip(np.zeros((4, 4, 4, 3), np.uint8), second_actions(3))


def test_a_clips_axis_is_reported_by_its_expected_value() -> None:
    world = WorldConfig(height=4, width=4, num_frames=2, groups=("gear", "steer"))
    reward = inverse_reward(Plain(), ThirdReader(), world.groups, RewardConfig())
    scores = reward.score_clip(np.zeros((2, 4, 4, 3), np.uint8), Actions(SPACE, np.array([[0, 0.5]], np.float32)))
    # .75 of bin 6, whose centre is 4/9.
    assert scores.recovered["steer"].tolist() == pytest.approx([1 / 3]) and scores.recovered["gear"].tolist() == [2]
    assert scores.commanded["steer"].tolist() == [0.5] and scores.by_field["steer"].tolist() == [0.75]


def test_groups_scored_together_score_as_they_do_apart() -> None:
    videos = [_video([[0, 51, 50, 91], [0, 50, 51, 50]], 1), _video([[0, 1, 2, 3]], 2), _video([[9, 59, 50, 90]], 3)]
    # Eight frames at once: two clips of four.
    reward = _reward(max_frames=8)
    together = reward.score(videos)
    assert reward.idm.calls == 2  # type: ignore[attr-defined]
    for video, scores in zip(videos, together, strict=True):
        alone = _reward().score([video])[0]
        assert alone.group_id == scores.group_id == video.group_id
        np.testing.assert_array_equal(alone.frame_rewards, scores.frame_rewards)
        assert alone.rules == scores.rules


def test_class_balance_pays_rare_commands_more() -> None:
    video = _video([[0, 51, 50, 91]])
    shares = {
        "forward_back": np.array([0.5, 0.5, 0.0]),
        "jump": np.array([0.9, 0.1]),
        "yaw": np.eye(11)[5] + np.eye(11)[9],
    }
    config = RewardConfig(balance="class", match="exact")
    reward = inverse_reward(Plain(), GreyReader(), WORLD.groups, config, class_shares=shares)
    # Jump is right where it is not commanded, which pays 1 / 1.8; forward and yaw pay 1.
    np.testing.assert_allclose(
        reward.score([video])[0].frame_rewards, [[(2 + 1 / 1.8) / 3, (2 + 1 / 1.8) / 3, 2 / 3]], rtol=1e-6
    )
    with pytest.raises(ValueError, match=r"reward\.balance=none"):
        inverse_reward(Plain(), GreyReader(), WORLD.groups, config)


def test_group_that_a_judge_reads_no_numbers_in_fails_alone() -> None:
    class Broken(GreyReader):
        def logits(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
            bad = (frames[..., 0, 0, 0] == 99).any(1)  # [B], the clips of group 8
            return {
                name: torch.where(bad.view(-1, *[1] * (table.ndim - 1)), torch.nan, table)
                for name, table in super().logits(frames).items()
            }

    reward = inverse_reward(Plain(), Broken(), WORLD.groups, RewardConfig())
    good, bad = reward.score([_video([[0, 51, 50, 91]]), _video([[0, 99, 50, 91]], group_id=8)])
    assert not good.failure and good.frame_rewards.shape == (1, 3)
    assert "group 8 cannot be scored" in bad.failure and "no finite probabilities" in bad.failure


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_group_of_latents_that_are_not_finite_fails_alone(value: float) -> None:
    class PlainLatents(Plain):
        def decode_clips(self, clips: EncodedClips) -> torch.Tensor:
            assert torch.isfinite(clips.codes).all()
            return super().decode_clips(EncodedClips(clips.codes.flatten(2)))

    def latents(broken: bool, group_id: int) -> EncodedVideo:
        codes = np.full((1, 4, 2, 1, 1), 50, np.float16)
        if broken:
            codes[0, 2] = value
        video = _video([[0, 51, 50, 91]])
        return EncodedVideo(group_id=group_id, codes=codes, num_context=1, actions=video.actions)

    reward = inverse_reward(PlainLatents(), GreyReader(), WORLD.groups, RewardConfig())
    scores = reward.score([latents(False, 3), latents(True, 4), latents(False, 5)])
    assert [one.group_id for one in scores] == [3, 4, 5]
    assert [bool(one.failure) for one in scores] == [False, True, False]
    assert scores[1].failure == "group 4 cannot be scored: its latents are NaN or infinite; lower train.learning_rate"


def test_nothing_to_score_gives_nothing() -> None:
    assert _reward().score([]) == []


def test_groups_of_two_runs_that_have_one_number_keep_their_own_scores() -> None:
    one, two = [[0, 51, 50, 91]], [[0, 50, 51, 50]]
    reward = _reward(rule="groups", match="exact")
    together = reward.score([_video(one, 3), _video(two, 3)])
    for scores, greys in zip(together, (one, two), strict=True):
        np.testing.assert_array_equal(scores.frame_rewards, reward.score([_video(greys, 3)])[0].frame_rewards)
    assert (together[0].frame_rewards != together[1].frame_rewards).any()
