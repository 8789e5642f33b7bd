"""What a tokenizer does to held-out pictures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.models.tokenizer import FrameTokenizer


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
    error = torch.cat([((a.float() - b.float()) ** 2).mean((1, 2, 3)) for a, b in _parts(decoded, real)])
    counts = torch.bincount(tokens.flatten(), minlength=tokenizer.num_codes)
    return {
        "psnr": float((10 * torch.log10(255**2 / error.clamp(min=1e-4))).mean()),
        "codes_used": float((counts > 0).double().mean()),
        "perplexity": perplexity(counts),
        "brightness": float(decoded.double().mean()),
        "brightness_real": float(real.double().mean()),
        "sharpness_ratio": _sharpness(decoded) / max(_sharpness(real), 1e-9),
    }


def _parts(*tensors: Tensor, size: int = 1024) -> list[tuple[Tensor, ...]]:
    return list(zip(*(tensor.split(size) for tensor in tensors), strict=True))


def perplexity(counts: Tensor) -> float:
    """How many codes the choice spreads over, as if evenly; counts [K]."""
    share = counts.double() / counts.sum()
    return float(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))


def _sharpness(frames: Tensor) -> float:
    """Mean absolute difference of neighbouring pixels, both directions; uint8 [N, H, W, 3]."""
    sums = [p.float().diff(dim=1).abs().mean((1, 2, 3)) + p.float().diff(dim=2).abs().mean((1, 2, 3))
            for (p,) in _parts(frames)]  # fmt: skip
    return float(torch.cat(sums).mean())
