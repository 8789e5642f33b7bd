"""Steps of a flow model's sampler: noise levels, the ODE step, and the SDE step, which is drawn or rescored.

A level s runs from 1 (noise) to 0 (data): x = (1 - s) data + s noise. A velocity is noise - data. Tensors and floats
only; no models. All arithmetic is float32, because drawn and rescored log-probabilities (means over hundreds of
numbers) must agree to 1e-5.
Legend: ... any leading dimensions, D h w a latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NEARLY_NOISE = 0.999
"""Above this level, the denominator of Flow-GRPO's step holds the next level."""


@dataclass(frozen=True, slots=True)
class FlowStep:
    """One SDE step."""

    latents: Tensor
    """[..., D, h, w], the next latents: given or drawn."""
    mean: Tensor
    """[..., D, h, w], mean of the next latents."""
    std: Tensor
    """[..., 1, 1, 1], standard deviation of each number."""
    logprobs: Tensor
    """[...], mean log-probability over the latent's numbers."""


def noise_levels(num_steps: int, shift: float = 1.0) -> Tensor:
    """Return the levels of a sampler of `num_steps` steps, float32 [num_steps + 1], from 1 to 0.

    Args:
        num_steps: at least 1.
        shift: above 1, more steps lie at high levels (Stable Diffusion 3, https://arxiv.org/abs/2403.03206, eq. 23).
    """
    levels = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    return (shift * levels / (1 + (shift - 1) * levels)).float()


def interpolate(latents: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Mix latents and noise [..., D, h, w] at levels [...]; the result is [..., D, h, w]."""
    share = levels[..., None, None, None]
    return (1 - share) * latents + share * noise


def ode_step(latents: Tensor, velocity: Tensor, level: Tensor, next_level: Tensor) -> Tensor:
    """Take Euler's step between two levels, [...] each."""
    return latents.float() + _wide(next_level - level) * velocity.float()


def sde_step(
    kind: str,
    latents: Tensor,
    velocity: Tensor,
    level: Tensor,
    next_level: Tensor,
    noise_level: float,
    *,
    noise: Tensor | None = None,
    next_latents: Tensor | None = None,
) -> FlowStep:
    """Draw an SDE step, or score a drawn one. Both use the same arithmetic, so that the first ratio is 1.

    Args:
        kind: a key of `SDE_KINDS`.
        latents: [..., D, h, w], before the step.
        velocity: [..., D, h, w], the model's velocity at `latents`.
        level, next_level: [...], `next_level` is lower.
        noise_level: strength of the noise, in each kind's own unit.
        noise: [..., D, h, w], standard normal; draw the next latents with this noise.
        next_latents: [..., D, h, w], score these latents. Give exactly one of `noise` and `next_latents`.

    Returns:
        The step; `logprobs` carries the gradient of `velocity`.
    """
    if (noise is None) == (next_latents is None):
        raise ValueError("an SDE step is either drawn or scored; give noise or next_latents, not both")
    x, v, s, s_next = latents.float(), velocity.float(), _wide(level), _wide(next_level)
    rule = SDE_KINDS[kind]
    mean, std = rule.distribution(x, v, s, s_next, noise_level)
    drawn = mean + std * noise.float() if noise is not None else None
    following = next_latents.float() if next_latents is not None else drawn
    assert following is not None
    # The drawn latents are a constant: only their probability carries the gradient.
    logprobs = rule.logprobs(following.detach() - mean, std).mean((-3, -2, -1))
    return FlowStep(following, mean, std, logprobs)


def _wide(levels: Tensor) -> Tensor:
    """Reshape [...] to [..., 1, 1, 1]."""
    return levels.float()[..., None, None, None]


def _flow_grpo(x: Tensor, v: Tensor, s: Tensor, s_next: Tensor, noise_level: float) -> tuple[Tensor, Tensor]:
    """Compute Flow-GRPO's distribution (https://arxiv.org/abs/2505.05470, eq. 9)."""
    dt = s_next - s
    # At level 1 the formula divides by zero; like the authors' code, use the next level there, and at levels so near to
    # 1 that the noise would exceed the latents many times: Oasis' first level is .99945.
    rate = torch.sqrt(s / (1 - torch.where(s > NEARLY_NOISE, s_next, s))) * noise_level
    mean = x * (1 + rate**2 / (2 * s) * dt) + v * (1 + rate**2 * (1 - s) / (2 * s)) * dt
    return mean, rate * torch.sqrt(-dt)


def _dance_grpo(x: Tensor, v: Tensor, s: Tensor, s_next: Tensor, noise_level: float) -> tuple[Tensor, Tensor]:
    """Compute DanceGRPO's distribution (https://arxiv.org/abs/2505.07818, eq. 8)."""
    dt = s_next - s
    data = x - s * v
    score = -(x - (1 - s) * data) / s**2
    mean = x + dt * v - 0.5 * noise_level**2 * score * dt
    return mean, noise_level * torch.sqrt(-dt)


def _cps(x: Tensor, v: Tensor, s: Tensor, s_next: Tensor, noise_level: float) -> tuple[Tensor, Tensor]:
    """Compute the distribution of coefficients-preserving sampling (https://arxiv.org/abs/2509.05952).

    The next latents hold exactly as much noise as the next level says.
    """
    data, noise = x - s * v, x + (1 - s) * v
    angle = noise_level * math.pi / 2
    return (1 - s_next) * data + s_next * math.cos(angle) * noise, s_next * math.sin(angle)


def _normal(error: Tensor, std: Tensor) -> Tensor:
    """Compute the logarithm of the normal density."""
    return -(error**2) / (2 * std**2) - torch.log(std) - 0.5 * math.log(2 * math.pi)


def _squared(error: Tensor, std: Tensor) -> Tensor:
    """Score a step as the authors of CPS do, without the density's constants: the last step's std is zero."""
    return -(error**2)


@dataclass(frozen=True, slots=True)
class SdeKind:
    """A form of the SDE step."""

    distribution: Callable[[Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    """Takes latents, velocity, level, next level and noise level; returns mean and deviation of the next latents."""
    logprobs: Callable[[Tensor, Tensor], Tensor]
    """Takes error and standard deviation; returns the log-probability of each number."""


SDE_KINDS = {
    "flow_grpo": SdeKind(_flow_grpo, _normal),
    "dance_grpo": SdeKind(_dance_grpo, _normal),
    "cps": SdeKind(_cps, _squared),
}
