"""Losses on the flow-matching errors of sampled clips. Tensors and floats only; no models.

Legend: ... any leading dimensions, N numbers of a latent, B clips, T = F * S decisions: F generated frames with S pairs
of a level and a noise each.
"""

from __future__ import annotations

import torch
from torch import Tensor


def matching_errors(velocities: Tensor, clean: Tensor, noise: Tensor, levels: Tensor, error: str) -> Tensor:
    """Compute the flow-matching errors of noised latents, as means over the latent's numbers.

    Args:
        velocities: [..., N], predicted at (1 - level) clean + level noise; carries the gradient.
        clean, noise: [..., N].
        levels: [...], from 0 (data) to 1 (noise).
        error: `velocity`: of the velocity noise - clean (https://arxiv.org/abs/2210.02747); `noise`: of the noise that
            the velocity implies, which is (1 - level)^2 times the other (FPO's default in JAX).

    Returns:
        float32 [...].
    """
    errors = (velocities.float() - (noise - clean).float()).square().mean(-1)
    return (1 - levels).square() * errors if error == "noise" else errors


def cfm_log_ratio(differences: Tensor, loss_mask: Tensor, num_pairs: int, ratio: str, max_difference: float) -> Tensor:
    """Compute FPO's log-ratios from flow-matching errors (https://arxiv.org/abs/2507.21053).

    The ratio is above 1 where the policy denoises a frame better than the policy that sampled it. It is no ratio of
    likelihoods: errors are means over the latent's numbers, and the number of pairs is small.

    Args:
        differences: [B, T], old error minus new error; carries the gradient.
        loss_mask: bool [B, T].
        num_pairs: S, neighbouring decisions of one frame.
        ratio: `frame`: the mean over a frame's unmasked pairs, the same for each of them; `pair`: each pair's own.
        max_difference: clamp each difference to ± this value; a clamped pair has no gradient. 0: do not clamp.

    Returns:
        [B, T], 0 where masked.
    """
    # Masked entries may hold any value, even infinity.
    differences = torch.where(loss_mask, differences, 0.0)
    if max_difference:
        differences = differences.clamp(-max_difference, max_difference)
    if ratio == "pair":
        return differences
    counts = loss_mask.unflatten(1, (-1, num_pairs)).sum(-1).clamp(min=1)  # [B, F]
    means = differences.unflatten(1, (-1, num_pairs)).sum(-1) / counts
    return torch.where(loss_mask, means.repeat_interleave(num_pairs, 1), 0.0)


def masked_mean(values: Tensor, loss_mask: Tensor, num_decisions: int) -> Tensor:
    """Sum values [B, T] over the decisions in `loss_mask` and divide by the global number of decisions."""
    return torch.where(loss_mask, values, 0.0).sum() / num_decisions
