"""Steps of a diffusion model that predicts v, and the change of variables that makes it a flow model.

A time t from 0 to 999 has the share ᾱ of data: with α = √ᾱ and σ = √(1 - ᾱ), x = α data + σ noise and
v = α noise - σ data. As a flow model, the same latents are x / (α + σ) at the level s = σ / (α + σ); a DDIM step is
Euler's step between levels. The schedule is that of etched-ai/open-oasis. Tensors and floats only; no models.
Legend: ... any leading dimensions, D h w a latent.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

NUM_TIMES = 1000


def data_shares() -> Tensor:
    """Return ᾱ of each time, float32 [1000]: a sigmoid schedule (https://arxiv.org/abs/2212.11972) from -3 to 3."""
    ends = torch.tensor([-3.0, 3.0]).sigmoid().double()  # float32, as published
    places = torch.linspace(0, NUM_TIMES, NUM_TIMES + 1, dtype=torch.float64) / NUM_TIMES
    shares = (ends[1] - (6 * places - 3).sigmoid()) / (ends[1] - ends[0])
    shares /= shares[0].clone()
    noise_added = (1 - shares[1:] / shares[:-1]).clamp(0, 0.999).float()
    return (1 - noise_added).cumprod(0)


@functools.cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ᾱ of the times 0 to 999 and -1, and the levels halfway between those of two times, on a device."""
    # The first caller may be a sampler in inference mode, and the next one a learner.
    with torch.inference_mode(False):
        shares = data_shares()
        levels = flow_level(shares)
        return torch.cat([shares, torch.ones(1)]).to(device), ((levels[1:] + levels[:-1]) / 2).to(device)


def step_times(num_steps: int) -> Tensor:
    """Return the times of a sampler's steps from 999 down, int64 [num_steps + 1]; the last is -1, without noise."""
    return torch.linspace(-1, NUM_TIMES - 1, num_steps + 1).int().flip(0).long()


def share_at(times: Tensor) -> Tensor:
    """Return ᾱ of times, float32 like `times`; 1 for the time -1."""
    return _tables(times.device)[0][times]


def ddim_step(latents: Tensor, v: Tensor, share: Tensor, next_share: Tensor) -> Tensor:
    """Take a DDIM step (https://arxiv.org/abs/2010.02502, η = 0); the shares ᾱ broadcast against the latents."""
    alpha, sigma = share.sqrt(), (1 - share).sqrt()
    data, noise = alpha * latents - sigma * v, sigma * latents + alpha * v
    return next_share.sqrt() * data + (1 - next_share).sqrt() * noise


def flow_level(share: Tensor) -> Tensor:
    """Return the level s of shares ᾱ."""
    alpha, sigma = share.sqrt(), (1 - share).sqrt()
    return sigma / (alpha + sigma)


def times_of(levels: Tensor) -> Tensor:
    """Return the time whose level is nearest, int64 like `levels`; -1 for the level 0, which has no noise."""
    return torch.where(levels > 0, torch.bucketize(levels.contiguous(), _tables(levels.device)[1]), -1)


def from_flow(latents: Tensor, share: Tensor) -> Tensor:
    """Return a flow model's latents in a diffusion model's variables; the shares broadcast against the latents."""
    return latents * (share.sqrt() + (1 - share).sqrt())


def flow_velocity(latents: Tensor, v: Tensor, share: Tensor) -> Tensor:
    """Return noise - data, the velocity of a flow model, from the diffusion model's latents and v."""
    alpha, sigma = share.sqrt(), (1 - share).sqrt()
    return (sigma - alpha) * latents + (alpha + sigma) * v
