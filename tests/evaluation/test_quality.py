from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from rlir_ray.data.files import strict_json
from rlir_ray.evaluation.quality import MAX_PSNR, Quality, clip_quality, inner_ssim, join_quality
from rlir_ray.evaluation.results import quality_changes


def stripes(num_frames: int, step: int = 0) -> torch.Tensor:
    """uint8 [1, num_frames, 24, 32, 3]; columns alternate between 100 and 140, moved by `step` pixels a frame."""
    columns = torch.arange(32)[None] + step * torch.arange(num_frames)[:, None]
    frames = (100 + 40 * (columns % 2)).to(torch.uint8)
    return frames[None, :, None, :, None].expand(1, -1, 24, -1, 3).contiguous()


def test_figures_of_a_still_clip() -> None:
    quality = clip_quality(stripes(4), 3, stripes(4))
    assert quality.brightness == 120
    # Neighbours to the right differ by 40, those below by 0.
    assert quality.sharpness == 20
    assert quality.motion == 0
    assert quality.psnr == MAX_PSNR
    assert quality.ssim == pytest.approx(1, abs=1e-4)


def test_motion_counts_the_step_from_the_context_to_the_first_generated_frame() -> None:
    clip = stripes(3)
    clip[:, 0] += 30
    # Two generated frames: the first is 30 away from the context, the second equals the first.
    assert clip_quality(clip, 2).motion == 15


def test_psnr_is_that_of_the_mean_squared_error() -> None:
    real = stripes(3)
    # A constant error of 5: 10 log10(255² / 25) = 34.15 dB; the context does not count.
    off = real + torch.tensor([0, 5, 5], dtype=torch.uint8).reshape(1, 3, 1, 1, 1)
    quality = clip_quality(off, 2, real)
    assert quality.psnr == pytest.approx(34.15, abs=0.01)


def test_blur_lowers_sharpness() -> None:
    sharp = torch.randint(0, 255, (2, 4, 24, 32, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    wide = torch.nn.functional.avg_pool3d(sharp.flatten(0, 1).float(), (3, 3, 1), stride=1)
    blurred = wide.to(torch.uint8).unflatten(0, (2, 4))
    assert (clip_quality(blurred, 3).sharpness < 0.6 * clip_quality(sharp, 3).sharpness).all()


def test_parts_are_joined_clip_after_clip_and_a_missing_figure_stays_missing() -> None:
    dark, light = clip_quality(stripes(3), 2), clip_quality(stripes(3) + 40, 2)
    joined = join_quality([dark, light])
    assert joined.brightness.tolist() == [120, 160]
    assert joined.mean("brightness") == 140
    assert joined.psnr is None and joined.mean("psnr") is None
    known = clip_quality(stripes(3), 2, stripes(3))
    assert join_quality([dark, known]).psnr is None


def test_figures_survive_json() -> None:
    quality = Quality.from_json(clip_quality(stripes(3), 2, stripes(3)).to_json())
    assert quality.sharpness.tolist() == [20] and quality.psnr is not None and quality.psnr.tolist() == [MAX_PSNR]


def test_each_clip_has_figures_of_its_own() -> None:
    clips = torch.cat([stripes(3), stripes(3) + 40])
    quality = clip_quality(clips, 2, torch.cat([stripes(3), stripes(3) + 50]))
    assert quality.psnr is not None and quality.ssim is not None and len(quality.ssim) == 2
    # The second is 10 off: 10 log10(255² / 100) = 28.13 dB.
    assert quality.psnr == pytest.approx([MAX_PSNR, 28.13], abs=0.01)


def test_changes_are_paired() -> None:
    before = clip_quality(torch.cat([stripes(3), stripes(3) + 100]), 2)
    after = clip_quality(torch.cat([stripes(3) + 3, stripes(3) + 103]), 2)
    changes = quality_changes(before, after)
    # Clips differ by 100 from each other, but each by 3 from itself.
    assert changes["brightness"].mean == pytest.approx(3) and changes["brightness"].se == pytest.approx(0)
    assert set(changes) == {"brightness", "sharpness", "motion", "repeated"} and changes["repeated"].mean == 0


def test_a_figure_that_was_null_in_json_is_nan_when_it_is_read_back() -> None:
    ones = np.ones(2)
    quality = Quality(brightness=np.array([1.0, np.nan]), sharpness=ones, motion=ones)
    read = Quality.from_json(json.loads(strict_json(quality.to_json())))
    assert np.array_equal(read.brightness, quality.brightness, equal_nan=True) and read.psnr is None


def test_inner_ssim_is_the_mean_over_the_windows_inside_the_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randint(256, (2, 2, 16, 20, 3), dtype=torch.uint8, generator=generator) for _ in range(2))
    # The definition, with windows of 11 pixels and a deviation of 1.5.
    line = torch.exp(-(torch.arange(11.0, dtype=torch.float64) - 5).square() / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2
    one, other = (
        clips.double().movedim(-1, 2).unfold(-2, 11, 1).unfold(-2, 11, 1) for clips in (ours, theirs)
    )  # [B, F, 3, 6, 10, 11, 11]

    def mean(values: torch.Tensor) -> torch.Tensor:
        return (values * window).sum((-2, -1))

    first, second = mean(one), mean(other)
    covariance = mean(one * other) - first * second
    variances = mean(one**2) - first**2 + mean(other**2) - second**2
    low, high = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    wanted = (2 * first * second + low) * (2 * covariance + high)
    wanted = wanted / ((first**2 + second**2 + low) * (variances + high))
    torch.testing.assert_close(inner_ssim(ours, theirs), wanted.flatten(1).mean(1), atol=1e-6, rtol=0)
    assert inner_ssim(ours, ours).tolist() == pytest.approx([1, 1])
