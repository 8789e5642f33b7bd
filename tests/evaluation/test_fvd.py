"""FVD with a tiny TorchScript network in I3D's place."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlir_ray.evaluation import fvd as fvd_module
from rlir_ray.evaluation.fvd import I3D, frechet_distance, fvd, i3d_input, prefix_features


class ChannelMeans(nn.Module):
    """The three channels' means over a clip, and only if it is asked as I3D is."""

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        assert not rescale and not resize and return_features
        assert list(x.shape[1:]) == [3, 10, 224, 224]
        return x.mean(dim=[2, 3, 4])


@pytest.fixture
def i3d(tmp_path: Path) -> I3D:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(ChannelMeans()).save(str(tmp_path / "i3d.pt"))
        return I3D(tmp_path / "i3d.pt")


def gray_clips(*levels: int) -> Tensor:
    """A clip for each level, all its pixels of it: uint8 [B, 10, 4, 6, 3]."""
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1, 1).expand(-1, 10, 4, 6, 3)


def samples(num: int, size: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(num, size)) @ random.normal(size=(size, size)) + random.normal(size=size)


# ---------------------------------------------------------------------------------------------------------------------
# What the network sees


def test_pixels_reach_the_network_in_minus_one_to_one() -> None:
    seen = i3d_input(gray_clips(0, 255, 51))
    assert seen.shape == (3, 3, 10, 224, 224) and seen.dtype == torch.float32
    # 51 / 255 = 0.2, which is -0.6 of -1..1.
    expected = torch.tensor([-1, 1, -0.6]).view(3, 1, 1, 1, 1).expand_as(seen)
    torch.testing.assert_close(seen, expected, atol=1e-6, rtol=0)


def test_channels_and_frames_keep_their_places() -> None:
    clip = torch.zeros(1, 10, 4, 6, 3, dtype=torch.uint8)
    clip[0, 7, :, :, 2] = 255
    expected = torch.full((1, 3, 10, 224, 224), -1.0)
    expected[0, 2, 7] = 1
    torch.testing.assert_close(i3d_input(clip), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("turned", [False, True])
def test_the_middle_of_the_longer_side_is_kept(turned: bool) -> None:
    # 224 x 384 is not resized: columns 80..303 remain.
    clip = torch.arange(384).clamp(max=255).to(torch.uint8).view(1, 1, 1, 384, 1).expand(1, 10, 224, 384, 3)
    seen = i3d_input(clip.transpose(2, 3) if turned else clip)
    line = (seen[0, 0, 0, :, 0] if turned else seen[0, 0, 0, 0]) * 127.5 + 127.5
    torch.testing.assert_close(line, torch.arange(80, 304).clamp(max=255).float(), atol=1e-3, rtol=0)


def test_resizing_is_bilinear_between_pixel_centres() -> None:
    # Two columns become 224: output x lies at (x + 0.5) 2 / 224 - 0.5 of the input, here beyond the ends to 64, and
    # between them a line from 0 to 1.
    clip = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2, 1).expand(1, 10, 2, 2, 3)
    expected = (((torch.arange(224) + 0.5) * 2 / 224 - 0.5).clamp(0, 1) - 0.5) * 2
    torch.testing.assert_close(i3d_input(clip)[0, 0, 0, 0], expected, atol=1e-5, rtol=0)


def test_the_longer_side_is_rounded_up() -> None:
    # 36 x 64: 64 · 224 / 36 = 398.2 becomes 399, of which columns 87..310 remain.
    clip = torch.randint(0, 256, (1, 1, 36, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    wide = nn.functional.interpolate(clip[0].permute(0, 3, 1, 2) / 255, (224, 399), mode="bilinear")
    torch.testing.assert_close(i3d_input(clip)[0, :, 0], wide[0, :, :, 87:311] * 2 - 1)


# ---------------------------------------------------------------------------------------------------------------------
# The distance


def test_the_distance_of_gray_clips_by_hand(i3d: I3D) -> None:
    # All three features are level / 127.5 - 1: generated 0.2 and 0.6, real -0.2 and -0.6. The means differ by 0.8 in
    # each of three features, the covariances are equal: 3 · 0.64.
    generated, real = gray_clips(153, 204), gray_clips(102, 51)
    assert i3d(generated) == pytest.approx(np.array([[0.2] * 3, [0.6] * 3]), abs=1e-6)
    assert fvd(i3d, generated, real) == pytest.approx(1.92, abs=1e-5)
    assert fvd(i3d, generated, generated) == pytest.approx(0, abs=1e-12)


def test_chunks_change_nothing(i3d: I3D, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = gray_clips(1, 50, 99, 148, 197)
    whole = i3d(clips)
    assert whole.dtype == np.float64 and whole.shape == (5, 3)
    monkeypatch.setattr(fvd_module, "MAX_CLIPS", 2)
    assert np.allclose(i3d(clips), whole, atol=1e-7)


def test_a_shift_of_the_mean_costs_its_square_and_equal_sets_nothing() -> None:
    features = samples(50, 8, seed=0)
    shift = np.linspace(-1, 2, 8)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(features, features + shift) == pytest.approx((shift**2).sum())


def test_a_change_of_scale_costs_the_square_of_the_deviations_difference() -> None:
    # For N(0, s²) and N(0, (3 s)²) in one dimension: s² + 9 s² - 2 · 3 s² = (2 s)²; so it adds up over dimensions.
    features = samples(50, 4, seed=1)
    features -= features.mean(0)
    assert frechet_distance(features, 3 * features) == pytest.approx(4 * features.var(0, ddof=1).sum())


def test_the_trace_is_that_of_the_root_of_the_product_of_covariances() -> None:
    one, other = samples(60, 6, seed=2), samples(40, 6, seed=3)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(first @ second).real)
    expected = ((one.mean(0) - other.mean(0)) ** 2).sum() + np.trace(first + second) - 2 * roots.sum()
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(other, one) == pytest.approx(expected, rel=1e-10)


def test_fewer_clips_than_features_are_exact_too() -> None:
    # Two clips each, on the first axis 2 a and 2 b apart: N(0, 2 a²) and N(0, 2 b²), nothing on the other 399.
    axis = np.zeros((1, 400))
    axis[0, 0] = 1
    one, other = np.concatenate([-axis, axis]), np.concatenate([-3 * axis, 3 * axis])
    # Variances 2 and 18: 20 - 2 · sqrt(36).
    assert frechet_distance(one, other) == pytest.approx(8, abs=1e-10)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# Refusals


def test_what_fvd_cannot_judge_is_refused(i3d: I3D, tmp_path: Path) -> None:
    clips = gray_clips(0, 9)
    with pytest.raises(ValueError, match="at least 10 frames, got 9"):
        i3d(clips[:, :9])
    with pytest.raises(ValueError, match="at least 2 clips on each side, got 2 and 1"):
        fvd(i3d, clips, clips[:1])
    with pytest.raises(ValueError, match="have one shape"):
        fvd(i3d, clips, clips[:, :, :3])
    with pytest.raises(ValueError, match=r"uint8 \[B, F, H, W, 3\], got torch.float32"):
        i3d(clips.float())
    with pytest.raises(ValueError, match=r"TorchScript file, got .*absent\.pt"):
        I3D(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="finite features"):
        frechet_distance(np.array([[0.0], [np.nan]]), np.array([[0.0], [1.0]]))


def test_the_features_of_every_prefix_of_ten_frames_or_more_are_computed() -> None:
    clips = torch.arange(13, dtype=torch.uint8).view(1, 13, 1, 1, 1).expand(2, 13, 4, 6, 3)
    found = prefix_features(lambda part: part[:, -1, 0, 0, :1].double().numpy(), clips)  # type: ignore[arg-type]
    assert [features[0, 0] for features in found] == [9, 10, 11, 12]
