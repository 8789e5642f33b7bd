"""The terms that ship with the package: their formulas, and the contract of terms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rlir_ray.rewards.guards import MIN_CLIPS, Brightness, Context, Guard, Motion, Sharpness
from rlir_ray.rewards.recorded import RecordedTerm, frame_shares, pixel_errors
from rlir_ray.rewards.smoothness import SmoothnessTerm
from rlir_ray.rewards.term import GroupClips, Recovered
from rlir_ray.spaces.vpt import VPT_CAMERA, VPT_SPACE, actions_from_buttons
from rlir_ray.testing import check_reward_term, sample_groups
from rlir_ray.trajectory import EncodedClips, EncodedVideo

GOLDEN = Path(__file__).parent.parent / "golden" / "objectives"


def group(frames: np.ndarray, recorded: np.ndarray | None = None, num_context: int = 1) -> GroupClips:
    return GroupClips(
        frames=torch.from_numpy(frames),
        num_context=num_context,
        actions=VPT_SPACE.nothing(frames.shape[1] - 1),
        recorded=None if recorded is None else torch.from_numpy(recorded),
    )


# ---------------------------------------------------------------------------------------------------------------------
# recorded


@pytest.mark.parametrize("error", ["mae", "mse"])
@pytest.mark.parametrize(("over", "name"), [("mean", "mean"), ("last", "last"), ("discounted", "discount")])
def test_the_clips_mean_is_the_published_reward(error: str, over: str, name: str) -> None:
    golden = load_file(GOLDEN / "io.safetensors")
    discount = json.loads((GOLDEN / "config.json").read_text())["recorded"]["discount"]
    generated, real = golden["recorded.pred"][:, 1:].clamp(0, 1), golden["recorded.real"][:, 2:].clamp(0, 1)
    errors = pixel_errors(generated, real, error) + golden["recorded.perceptual"]
    rewards = -errors * frame_shares(errors.shape[1], over, discount)
    torch.testing.assert_close(rewards.mean(1), golden[f"recorded.{error}_{name}"], atol=1e-6, rtol=0)


def test_each_frame_is_compared_with_its_recorded_frame() -> None:
    frames = np.zeros((2, 3, 2, 2, 3), np.uint8)
    frames[1, 1], frames[1, 2] = 51, 102
    recorded = np.full((2, 2, 2, 3), 51, np.uint8)
    # Errors in shares of 255: .2 and .2 for the black clip; 0 and .2 for the other.
    found = RecordedTerm().score(group(frames, recorded))
    np.testing.assert_allclose(found, [[-0.2, -0.2], [0, -0.2]], atol=1e-6)
    found = RecordedTerm(error="mse", error_weight=10.0, over="last").score(group(frames, recorded))
    np.testing.assert_allclose(found, [[0, -0.8], [0, -0.8]], atol=1e-6)


@pytest.mark.parametrize("args", [{"error": "psnr"}, {"over": "first"}, {"network": "squeeze"}, {"discount": 0.0}])
def test_arguments_out_of_range_are_named(args: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"args.{next(iter(args))} of the term recorded must be"):
        RecordedTerm(**args)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------------
# Guards


class Grey:
    """Token 0 is the grey value of a frame, token 1 the size of a checkerboard on it."""

    def decode_clips(self, clips: EncodedClips) -> torch.Tensor:
        board = (torch.arange(6)[:, None] + torch.arange(6)) % 2 * 2 - 1
        grey, size = clips.codes[..., 0], clips.codes[..., 1]
        frames = grey[..., None, None] + size[..., None, None] * board
        return frames[..., None].expand(-1, -1, -1, -1, 3).clamp(0, 255).to(torch.uint8)


def real_videos(num_clips: int = 64) -> list[EncodedVideo]:
    """Clips that get brighter by 4 a frame while walking forward and keep their light otherwise, with some noise."""
    random, videos = np.random.default_rng(0), []
    for number in range(num_clips):
        walks = number % 2 == 0
        buttons = np.zeros((4, 23), np.bool_)
        buttons[:, 2] = walks
        light = 60 + random.integers(0, 60) + np.arange(5) * (4 if walks else 0) + random.integers(0, 2, 5)
        codes = np.stack([light, np.full(5, 8 + number % 5)], -1)[None].astype(np.uint16)
        actions = actions_from_buttons(buttons, np.zeros((4, 2), np.float32))
        videos.append(EncodedVideo(group_id=number, codes=codes, num_context=1, actions=actions))
    return videos


def clips_of(video: EncodedVideo, codes: np.ndarray) -> GroupClips:
    frames = Grey().decode_clips(EncodedClips(torch.from_numpy(codes.astype(np.int64))))
    return GroupClips(frames=frames, num_context=1, actions=video.actions)


def test_a_guard_knows_what_is_usual_under_the_commanded_actions() -> None:
    real = real_videos()
    guard = Brightness(Grey(), real, ("forward_back",))  # type: ignore[arg-type]
    walking, standing = real[0], real[1]
    both = np.concatenate([walking.codes, np.repeat(walking.codes[:, :1], 5, 1)])
    costs = -guard.score(clips_of(walking, both))
    # Walking, the light rises by 10 in the mean of the four frames; a still clip lies far from that.
    assert costs.shape == (2, 4) and (costs == costs[:, :1]).all()
    assert costs[0, 0] < 2.5 and costs[1, 0] > 5
    still = np.concatenate([standing.codes, standing.codes + np.array([0, 0]) + 10 * (np.arange(5) > 0)[:, None]])
    costs = -guard.score(clips_of(standing, still))
    assert costs[0, 0] < 2.5 and costs[1, 0] > 5


def test_real_clips_lie_a_deviation_from_their_prediction_in_the_mean_square() -> None:
    real = real_videos()
    for kind in (Brightness, Sharpness, Motion):
        guard = kind(Grey(), real, ("forward_back",))  # type: ignore[arg-type]
        costs = [float(guard.score(clips_of(video, video.codes))[0, 0]) for video in real]
        assert np.sqrt(np.mean(np.square(costs))) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("kind", "change"), [(Motion, "frozen"), (Sharpness, "blurred"), (Brightness, "darkened")])
def test_each_guard_sees_its_own_corruption(kind: type[Guard], change: str) -> None:
    real = real_videos()
    guard, video = kind(Grey(), real, ("forward_back",)), real[0]  # type: ignore[arg-type]
    codes = video.codes.astype(np.int64).copy()
    if change == "frozen":
        codes[:, 1:] = codes[:, :1]
    elif change == "blurred":
        codes[:, 1:, 1] = 0
    else:
        codes[:, 1:, 0] -= 20
    assert guard.score(clips_of(video, codes))[0, 0] < guard.score(clips_of(video, video.codes))[0, 0] - 3


def test_a_tolerance_costs_nothing_and_too_few_real_clips_are_refused() -> None:
    real = real_videos()
    assert Brightness(Grey(), real, ("jump",), 50.0).score(clips_of(real[0], real[0].codes)).tolist() == [[0] * 4]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"must have {MIN_CLIPS} real clips of the training prompts or more, got 3"):
        Brightness(Grey(), real[:3], ("jump",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"args\.tolerance of a guard must be >= 0"):
        Brightness(Grey(), real, ("jump",), -1.0)  # type: ignore[arg-type]


def test_the_distance_to_the_context_is_that_of_the_histograms() -> None:
    frames = np.zeros((2, 3, 2, 2, 3), np.uint8)
    frames[1, 1] = 128  # half of the range away in every colour
    frames[1, 2, :1, :, 0] = 255  # half of the pixels away by 31 of 32 bins in one colour
    np.testing.assert_allclose(Context().score(group(frames)), [[0, 0], [-0.5, -31 / 32 / 6]], atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# smoothness


def with_yaw(degrees: list[list[float]]) -> GroupClips:
    """Clips whose recovered yaw is this in each frame, the first one included."""
    bins = torch.from_numpy(VPT_CAMERA.bins(np.array(degrees, np.float32)).astype(np.int64))
    tables = {"yaw": torch.nn.functional.one_hot(bins, VPT_CAMERA.num_classes).float()}
    frames = np.zeros((*bins.shape, 2, 2, 3), np.uint8)
    return replace(group(frames), recovered=Recovered(probabilities=tables, classes=bins[..., None]))


def test_differences_of_the_recovered_axes_are_costs() -> None:
    high = float(VPT_CAMERA.centres(10))
    clips = with_yaw([[0, high, high, high, high], [0, -high, high, -high, high]])
    unit = 2 * high / (VPT_CAMERA.high - VPT_CAMERA.low)
    found = -SmoothnessTerm(("jump", "yaw"), 1.0, 0.0, 0.0).score(clips)
    # The action into the first generated frame has no earlier one to differ from.
    np.testing.assert_allclose(found, [[0] * 4, [0, unit, unit, unit]], rtol=1e-5)
    found = -SmoothnessTerm(("yaw",), 0.0, 1.0, 0.5).score(clips)
    np.testing.assert_allclose(found[1], [0, 0, 2 * unit, 2 * unit + 0.5 * 4 * unit], rtol=1e-5)


def test_smoothness_needs_an_axis_and_a_weight() -> None:
    with pytest.raises(ValueError, match=r"world\.groups must name an axis for the term smoothness, got 'jump'"):
        SmoothnessTerm(("jump",)).score(with_yaw([[0, 0]]))
    with pytest.raises(ValueError, match="must have weights >= 0, one of them > 0"):
        SmoothnessTerm(("yaw",), 0.0, 0.0, 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# The contract


def test_members_keep_the_contract() -> None:
    for term in (RecordedTerm(), RecordedTerm(error="mse", over="discounted"), Context()):
        check_reward_term(term)
    check_reward_term(SmoothnessTerm(("yaw",)), [with_yaw([[0, 3, 5], [0, -3, 5]])])
    real = real_videos()
    guard = Motion(Grey(), real, ("jump",))  # type: ignore[arg-type]
    still = np.repeat(real[0].codes[:, :1], 5, 1)
    check_reward_term(guard, [clips_of(real[0], np.concatenate([real[0].codes, still]))])


def test_a_term_that_breaks_the_contract_is_told_the_rule() -> None:
    class First(Context):
        def score(self, clips: GroupClips) -> torch.Tensor:
            return super().score(clips) * torch.arange(1.0, len(clips.frames) + 1)[:, None]

    class Endless(Context):
        def score(self, clips: GroupClips) -> torch.Tensor:
            return super().score(clips) / 0

    with pytest.raises(AssertionError, match="score must not depend on the order of the clips"):
        check_reward_term(First(), sample_groups())
    with pytest.raises(AssertionError, match="score must give finite rewards for group 0"):
        check_reward_term(Endless())
