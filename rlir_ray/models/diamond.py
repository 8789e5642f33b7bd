"""DIAMOND's world model of Atari games (eloialonso/diamond): denoises the next frame, given four frames and actions.

Parameters have the published names behind `denoiser.inner_model.`. Pictures are floats in [-1, 1].
Legend: B rows, n past frames, H W pixels, K steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from rlir_ray.algorithm.karras_steps import conditioners, karras_sigmas
from rlir_ray.data.files import Json
from rlir_ray.models.diamond_network import GroupNorm, NoiseEmbedding, ResidualBlock, SelfAttention, UNet
from rlir_ray.spaces.diamond import diamond_layout


class DiamondWorldModel(ModelMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]  # as diffusers' own models
    """DIAMOND's denoiser; a `diffusers` model. The defaults are the published sizes, for all 18 actions of Atari.

    Args:
        height, width: H, W; the published weights fit any size, and were trained on 64 x 64.
        num_actions: actions of the game.
        num_steps_conditioning: n.
        cond_channels: width of the condition; a multiple of n and of 2.
        depths, channels, attn_depths: of each level of the U-Net, number of blocks, channels, and 1 for attention.
        sigma_data: standard deviation of the frames.
        sigma_offset_noise: standard deviation of the noise of training that is equal in all pixels of a channel.
        action_space: plain values of the space of the actions (`ActionSpace.to_plain`); None: that of Gymnasium's
            `Discrete(num_actions)`.
    """

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers does not annotate it
    def __init__(
        self,
        height: int = 64,
        width: int = 64,
        num_actions: int = 18,
        num_steps_conditioning: int = 4,
        cond_channels: int = 256,
        depths: tuple[int, ...] = (2, 2, 2, 2),
        channels: tuple[int, ...] = (64, 64, 64, 64),
        attn_depths: tuple[int, ...] = (0, 0, 0, 0),
        sigma_data: float = 0.5,
        sigma_offset_noise: float = 0.3,
        action_space: Json | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # diffusers does not annotate it
        num_past = num_steps_conditioning
        if num_past < 1 or cond_channels % num_past or cond_channels % 2:
            raise ValueError(
                f"cond_channels must be a multiple of num_steps_conditioning={num_past} and of 2, got {cond_channels}; "
                "for example 256 and 4"
            )
        if not len(depths) == len(channels) == len(attn_depths) >= 1:
            raise ValueError(
                f"depths, channels and attn_depths must have one number a level, got {len(depths)}, {len(channels)} "
                f"and {len(attn_depths)}; give lists of one length"
            )
        self.layout = diamond_layout(num_actions, action_space)
        self.noise_emb = NoiseEmbedding(cond_channels)
        self.act_emb = nn.Sequential(nn.Embedding(num_actions, cond_channels // num_past), nn.Flatten())
        self.cond_proj = nn.Sequential(
            nn.Linear(cond_channels, cond_channels), nn.SiLU(), nn.Linear(cond_channels, cond_channels)
        )
        self.conv_in = nn.Conv2d(3 * (num_past + 1), channels[0], 3, padding=1)
        self.unet = UNet(cond_channels, depths, channels, [bool(attends) for attends in attn_depths])
        self.norm_out = GroupNorm(channels[0])
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        """Start the output as zero, and every residual branch too."""
        branches = [part.conv2 for part in self.modules() if isinstance(part, ResidualBlock)]
        branches += [part.out_proj for part in self.modules() if isinstance(part, SelfAttention)]
        for layer in (*branches, self.conv_out):
            nn.init.zeros_(layer.get_parameter("weight"))
            nn.init.zeros_(layer.get_parameter("bias"))

    def forward(self, noisy: Tensor, sigma: Tensor, history: Tensor, actions: Tensor) -> Tensor:
        """Denoise as `denoise` does."""
        return self.denoise(noisy, sigma, history, actions)

    def denoise(self, noisy: Tensor, sigma: Tensor, history: Tensor, actions: Tensor) -> Tensor:
        """Predict the clean next frame D, without the published cut to bytes (`cut_to_bytes`).

        Args:
            noisy: float [B, 3, H, W], the next frame plus σ noise.
            sigma: float [B], σ.
            history: float [B, n, 3, H, W], the frames before, the oldest first.
            actions: int64 [B, n], the action taken AT each of these frames; the last one leads into the next frame.

        Returns:
            float32 [B, 3, H, W], differentiable, not clamped.
        """
        factors = conditioners(sigma, self.config["sigma_data"], self.config["sigma_offset_noise"])
        c_skip, c_out = factors.c_skip[:, None, None, None], factors.c_out[:, None, None, None]
        return c_skip * noisy.float() + c_out * self.network_output(noisy, sigma, history, actions)

    def network_output(self, noisy: Tensor, sigma: Tensor, history: Tensor, actions: Tensor) -> Tensor:
        """Return the network's output F, float32 [B, 3, H, W]; arguments as of `denoise`."""
        factors = conditioners(sigma, self.config["sigma_data"], self.config["sigma_offset_noise"])
        past = history.float().flatten(1, 2) / self.config["sigma_data"]
        x = torch.cat([past, factors.c_in[:, None, None, None] * noisy.float()], 1).to(self.dtype)
        embedded = self.noise_emb(factors.c_noise) + self.act_emb(actions)
        condition = self.cond_proj(embedded.to(self.dtype))
        x = self.norm_out(self.unet(self.conv_in(x), condition))
        out: Tensor = self.conv_out(functional.silu(x))
        return out.float()


def cut_to_bytes(pictures: Tensor) -> Tensor:
    """Cut pictures in [-1, 1] down to the values that bytes have, as published; values outside are clamped.

    Not idempotent: of the 256 values, 63 fall by one when cut again.
    """
    return ((pictures.float().clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8).float() / 255 * 2 - 1


@dataclass(frozen=True, slots=True)
class Churn:
    """Noise that the published sampler can add before a step (https://arxiv.org/abs/2206.00364, algorithm 2)."""

    strength: float
    """Divided by the number of steps: the relative growth of σ."""
    sigma_min: float
    sigma_max: float
    """Only steps whose σ lies between these two add noise."""
    noise_scale: float
    """Factor of the added noise."""


@torch.inference_mode()
def sample_published(
    model: DiamondWorldModel,
    history: Tensor,
    actions: Tensor,
    noise: Tensor,
    sigmas: Tensor | None = None,
    *,
    order: int = 1,
    churn: Churn | None = None,
    churn_noise: Tensor | None = None,
    quantises: bool = True,
) -> tuple[Tensor, Tensor]:
    """Sample the next frame as the published sampler does.

    Args:
        model: the world model.
        history: [B, n, 3, H, W], the frames before, the oldest first.
        actions: int64 [B, n], the action taken at each of them.
        noise: [B, 3, H, W], standard normal; the sampler starts here, NOT at σ times this noise.
        sigmas: [K + 1], falling to 0; None: the published three steps.
        order: 1, Euler; 2, Heun.
        churn: noise added before steps; None: no noise.
        churn_noise: [B, steps that add noise, 3, H, W], standard normal; needed with `churn`.
        quantises: cut each prediction to bytes, as published.

    Returns:
        Start and result of each step, [B, K + 1, 3, H, W], of which the last is the frame; all predictions of the
        clean frame, [B, calls of the model, 3, H, W].
    """
    sigmas = karras_sigmas(3) if sigmas is None else sigmas
    num_steps, added = len(sigmas) - 1, 0
    x, predictions = noise, []
    trajectory = [x]

    def denoised(x: Tensor, sigma: float) -> Tensor:
        found = model.denoise(x, torch.full((len(x),), sigma, device=x.device), history, actions)
        predictions.append(cut_to_bytes(found) if quantises else found)
        return predictions[-1]

    for sigma, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        raised = sigma
        if churn is not None and churn.sigma_min <= sigma <= churn.sigma_max:
            assert churn_noise is not None, "churn needs its noise"
            raised = sigma * (1 + min(churn.strength / num_steps, math.sqrt(2) - 1))
            x = x + churn.noise_scale * math.sqrt(raised**2 - sigma**2) * churn_noise[:, added]
            added += 1
        # The model is told σ, but the slope is that at the raised σ.
        slope, step = (x - denoised(x, sigma)) / raised, following - raised
        if order == 1 or following == 0:
            x = x + step * slope
        else:
            ahead = x + step * slope
            x = x + step * (slope + (ahead - denoised(ahead, following)) / following) / 2
        trajectory.append(x)
    return torch.stack(trajectory, 1), torch.stack(predictions, 1)
