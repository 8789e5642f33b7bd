"""What a tokenizer does to held-out pictures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.models.tokenizer import FrameTokenizer
from rlir_ray.pretrain.pictures import picture_figures


def evaluate_tokenizer(tokenizer: FrameTokenizer, frames: npt.NDArray[np.uint8]) -> dict[str, float]:
    """What encoding and decoding does to pictures.

    Args:
        tokenizer: anything with `encode`, `decode` and `num_codes`.
        frames: uint8 [N, H, W, 3].

    Returns:
        `psnr` (dB, mean over frames), `codes_used` (share of the codebook chosen at least once), `perplexity` (of the
        choice of codes), `brightness` and `brightness_real` (mean of the pixels, 0..255), `sharpness_ratio` (mean
        absolute image gradient over the real one; below 1 is blurred).
    """
    real = torch.from_numpy(np.ascontiguousarray(frames))
    tokens = tokenizer.encode(real)
    decoded = tokenizer.decode(tokens)
    counts = torch.bincount(tokens.flatten(), minlength=tokenizer.num_codes)
    return {
        **picture_figures(decoded, real),
        "codes_used": float((counts > 0).double().mean()),
        "perplexity": perplexity(counts),
    }


def perplexity(counts: Tensor) -> float:
    """How many codes the choice spreads over, as if evenly; counts [K]."""
    share = counts.double() / counts.sum()
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))
