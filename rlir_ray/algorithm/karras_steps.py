"""Steps of a diffusion model that predicts the clean picture, and the change of variables that makes it a flow model.

x = data + σ noise (https://arxiv.org/abs/2206.00364). As a flow model, the same latents are x / (1 + σ) at the level
s = σ / (1 + σ); Euler's step in σ is Euler's step in s. Tensors and floats only; no models.
Legend: ... any leading dimensions, B rows, K steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of DIAMOND's published sampler.
SIGMA_MAX, SIGMA_MIN, RHO = 5.0, 2e-3, 7


@dataclass(frozen=True, slots=True)
class Conditioners:
    """Factors around a network F: D(x) = c_skip x + c_out F(c_in x, c_noise); each [B]."""

    c_in: Tensor
    c_out: Tensor
    c_skip: Tensor
    c_noise: Tensor


def conditioners(sigma: Tensor, sigma_data: float, sigma_offset: float) -> Conditioners:
    """Return the factors at noise σ, float32 [B].

    Args:
        sigma: [B].
        sigma_data: standard deviation of the data.
        sigma_offset: deviation of the offset noise of training, which the factors count as noise too.
    """
    total = (sigma.float() ** 2 + sigma_offset**2).sqrt()
    c_skip = sigma_data**2 / (total**2 + sigma_data**2)
    return Conditioners(
        c_in=1 / (total**2 + sigma_data**2).sqrt(),
        c_out=total * c_skip.sqrt(),
        c_skip=c_skip,
        c_noise=total.log() / 4,
    )


def karras_sigmas(
    num_steps: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> Tensor:
    """Return the noise of a sampler's steps, float32 [num_steps + 1]: `num_steps` falling numbers, then 0.

    Args:
        num_steps: at least 1; one step starts at `sigma_max`.
        sigma_min, sigma_max: the last and the first number.
        rho: larger gives more steps at little noise (https://arxiv.org/abs/2206.00364, eq. 5).
    """
    least, most = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (most + torch.linspace(0, 1, num_steps) * (least - most)) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def level_of(sigma: Tensor) -> Tensor:
    """Return the flow level s of noise σ."""
    return sigma / (1 + sigma)


def sigma_of(level: Tensor) -> Tensor:
    """Return the noise σ of flow levels s below 1, the inverse of `level_of`."""
    return level / (1 - level)


def flow_velocity(x: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """Return noise - data, the velocity of a flow model.

    Args:
        x: data + σ noise, in the variables of the diffusion model.
        denoised: D(x), of the same shape.
        sigma: above 0; broadcasts against x.
    """
    return (x - denoised) / sigma - denoised
