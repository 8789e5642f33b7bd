"""Losses on the flow-matching errors of sampled clips. Tensors and floats only; no models.

Legend: ... any leading dimensions, N numbers of a latent, B clips, T = F * S decisions: F generated frames with S pairs
of a level and a noise each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


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


def dpo_loss(winner_gains: Tensor, loser_gains: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Compute Flow-DPO's loss of pairs (VideoAlign, https://arxiv.org/abs/2501.13918; beta constant, as there).

    The loss raises a margin: the policy's error falls, relative to the reference's, more on the winner than on the
    loser. Both errors may rise meanwhile. The paper's errors are sums over the clip's numbers and ours are means: the
    same strength needs a beta that is larger by the number of numbers.

    Args:
        winner_gains, loser_gains: [P], a clip's error under the policy minus that under the reference; P pairs.
        beta: strength.

    Returns:
        The losses [P] and the margins [P], without gradient.
    """
    margins = -beta / 2 * (winner_gains - loser_gains)
    return -nn.functional.logsigmoid(margins), margins.detach()


def reward_weights(advantages: Tensor, temperature: float, max_weight: float) -> Tensor:
    """Compute the weights exp(advantage / temperature) of reward-weighted regression, of the shape of `advantages`.

    As for diffusion models in https://arxiv.org/abs/2302.12192 and flow models in https://arxiv.org/abs/2501.13918;
    with advantages, and truncated at `max_weight`, as in https://arxiv.org/abs/1910.00177.
    """
    # The logarithms are compared, because exp may be infinite.
    return (advantages.float() / temperature).clamp(max=math.log(max_weight)).exp()


def masked_mean(values: Tensor, loss_mask: Tensor, num_decisions: int) -> Tensor:
    """Sum values [B, T] over the decisions in `loss_mask` and divide by the global number of decisions."""
    return torch.where(loss_mask, values, 0.0).sum() / num_decisions
