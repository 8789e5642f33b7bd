"""RLVR-World's columns, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rlir_ray.evaluation.columns import NO_WEIGHTS
from rlir_ray.evaluation.rlvr_table import NO_TOKENS, RlvrFigures, frame_errors, frame_repeats


def test_mse_is_of_pixels_to_one_and_psnr_the_mean_over_frames() -> None:
    # Frame 0 of the clip is 51 levels off, .2 of the range; frame 1 is equal.
    real = torch.full((1, 2, 3, 4, 3), 100, dtype=torch.uint8)
    generated = real.clone()
    generated[:, 0] += 51
    errors = frame_errors(generated, real)
    assert errors.tolist() == [[pytest.approx(0.04), 0]]
    found = RlvrFigures.of(errors, None, ssim=0.824, lpips=0.134)
    # .04 / 2 frames = .02, times 100.
    assert found.mse == pytest.approx(2.0)
    # -10 log10(.04 + 1e-8) = 13.9794; the equal frame has -10 log10(1e-8) = 80.
    assert found.psnr == pytest.approx((13.9794 + 80) / 2, abs=1e-4)
    assert (found.ssim, found.lpips) == (pytest.approx(82.4), pytest.approx(13.4))


def test_the_factors_fit_the_published_values() -> None:
    # All frames with the error of the published table, 0.486 / 100, have a PSNR of 23.1 dB; the published mean of PSNRs
    # is 24.1, and cannot be lower than the PSNR of the mean error.
    found = RlvrFigures.of(torch.full((2, 3), 0.00486, dtype=torch.float64), None, 0.0, None)
    assert found.mse == pytest.approx(0.486) and found.psnr == pytest.approx(23.13, abs=0.01) and found.psnr <= 24.1


def test_a_frame_repeats_if_all_its_tokens_are_those_of_the_frame_before() -> None:
    # One context frame and three generated ones, of two tokens.
    codes = torch.tensor(
        [
            [[1, 2], [1, 2], [1, 3], [1, 3]],  # repeats the context, changes one token, repeats
            [[1, 2], [2, 1], [1, 2], [2, 1]],  # the same tokens at other places
            [[5, 5], [5, 5], [5, 5], [5, 6]],  # still, but for its last frame
            [[1, 1], [2, 2], [3, 3], [4, 4]],
        ]
    )
    repeats = frame_repeats(codes, 3)
    assert repeats is not None
    assert repeats.tolist() == [[True, False, True], [False] * 3, [True, True, False], [False] * 3]
    found = RlvrFigures.of(torch.zeros(4, 3), repeats, 0.0, None)
    assert found.repeated_clips == 25 and found.repeated_frames == pytest.approx(100 * 4 / 12)


def test_latents_have_no_repeats_and_the_table_says_so() -> None:
    assert frame_repeats(torch.zeros(2, 4, 3, 2, 2), 3) is None
    title, header, row = RlvrFigures.of(torch.zeros(2, 3), None, 1.0, None).lines()
    assert "MSE, SSIM and LPIPS times 100" in title
    assert header.split(maxsplit=4) == ["MSE", "PSNR", "SSIM", "LPIPS", "repeated %"]
    assert row.split(maxsplit=3)[:3] == ["0.000", "80.0", "100.0"]
    assert row.endswith(f"{NO_WEIGHTS}   {NO_TOKENS}")


def test_the_table_prints_both_shares_of_repeats() -> None:
    figures = RlvrFigures(mse=0.4861, psnr=24.08, ssim=82.44, lpips=13.41, repeated_clips=9.9, repeated_frames=math.pi)
    *_, row, definition = figures.lines()
    assert row.split() == ["0.486", "24.1", "82.4", "13.4", "9.9"]
    assert "last frame has the same tokens as the frame before" in definition and "3.1 %" in definition
