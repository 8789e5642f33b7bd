"""The columns of RLVR-World's table (arXiv 2505.13934), as its evaluator computes them (thuml/RLVR-World).

Needs no network. Legend: B clips, C context frames, F generated frames, N tokens a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from rlir_ray.evaluation.columns import NO_WEIGHTS, column_lines

# The evaluator adds this to a frame's error, so that a PSNR is at most 80 dB.
EPSILON = 1e-8
NO_TOKENS = "no tokens"


@dataclass(frozen=True, kw_only=True, slots=True)
class RlvrFigures:
    """Figures of a policy in the units of the published table, where MSE, SSIM and LPIPS are times 100.

    The evaluator prints unscaled values. The factors follow from the published ones: an MSE of .486 / 100 has a PSNR of
    23.1 dB, and the published PSNR is 24.1 dB.
    """

    mse: float
    """100 times the mean squared error of pixels in 0..1."""
    psnr: float
    """dB, the mean over the frames."""
    ssim: float
    """100 times the SSIM without the five pixels at each border."""
    lpips: float | None
    """100 times LPIPS with VGG16; None: no weights given."""
    repeated_clips: float | None
    """Percent of the clips whose last frame repeats the frame before it; None: the policy makes no tokens."""
    repeated_frames: float | None
    """Percent of the generated frames that repeat the frame before them; None as above."""

    @classmethod
    def of(cls, errors: Tensor, repeats: Tensor | None, ssim: float, lpips: float | None) -> Self:
        """Compute the figures.

        Args:
            errors: result of `frame_errors` for all clips, [B, F].
            repeats: result of `frame_repeats` for all clips, [B, F].
            ssim: mean SSIM, -1..1, as `inner_ssim`.
            lpips: mean LPIPS with VGG16.
        """
        return cls(
            mse=100 * float(errors.mean()),
            psnr=float((-10 * (errors + EPSILON).log10()).mean()),
            ssim=100 * ssim,
            lpips=None if lpips is None else 100 * lpips,
            repeated_clips=None if repeats is None else 100 * float(repeats[:, -1].double().mean()),
            repeated_frames=None if repeats is None else 100 * float(repeats.double().mean()),
        )

    def lines(self) -> list[str]:
        """Format the columns, and the definition of a repeat, for a terminal."""
        cells = {
            "MSE": f"{self.mse:.3f}",
            "PSNR": f"{self.psnr:.1f}",
            "SSIM": f"{self.ssim:.1f}",
            "LPIPS": NO_WEIGHTS if self.lpips is None else f"{self.lpips:.1f}",
            "repeated %": NO_TOKENS if self.repeated_clips is None else f"{self.repeated_clips:.1f}",
        }
        lines = ["RLVR-World's columns; MSE, SSIM and LPIPS times 100", *column_lines(cells)]
        if self.repeated_frames is not None:
            lines.append(
                "repeated: clips whose last frame has the same tokens as the frame before; "
                f"of all generated frames {self.repeated_frames:.1f} % repeat the frame before"
            )
        return lines


def frame_errors(generated: Tensor, real: Tensor) -> Tensor:
    """Compute the mean squared error of each frame, for pixels in 0..1.

    Args:
        generated, real: uint8 [B, F, H, W, 3].

    Returns:
        float64 [B, F].
    """
    squares = (generated.float() - real.float()).square()
    return squares.flatten(2).mean(2, dtype=torch.float64) / 255**2


def frame_repeats(codes: Tensor, num_frames: int) -> Tensor | None:
    """Find the generated frames that repeat the frame before them: all tokens are equal, place by place.

    RLVR-World's evaluator calls a clip repeating if this is true of its last frame. The evaluator can leave such clips
    out, but prints no share of them: the paper may count its share in another way.

    Args:
        codes: encoded clips, int64 [B, C + F, N] or float32 [B, C + F, D, h, w].
        num_frames: F.

    Returns:
        bool [B, F]; None for latents, which are never equal.
    """
    if codes.is_floating_point():
        return None
    return (codes[:, -num_frames:] == codes[:, -num_frames - 1 : -1]).all(2)
