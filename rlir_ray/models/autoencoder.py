"""Frame autoencoder, frames <-> continuous latents: a `diffusers.AutoencoderKL` with an optional pixel-unshuffle stem.

Encoded latents have zero mean and unit variance in each channel, which is the scale of a flow model's noise.
Legend: N frames, H W pixels, D channels of a latent, h w grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlir_ray.models.frame_codec import PictureCodec, block_settings

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution


class FrameAutoencoder(PictureCodec):
    """A variational autoencoder of single frames; its arguments are those of `PictureCodec`.

    The model's config holds the scale of the latents: `latents_mean` and `latents_std` (a number a channel), or else
    `shift_factor` and `scaling_factor` (Stable Diffusion's form).

    Example: 48 × 64 pixels, `pixel_unshuffle=4`, two blocks and 8 channels give latents of 8 × 6 × 8 numbers.
    """

    what = "autoencoder"
    model: AutoencoderKL

    @classmethod
    def model_class(cls) -> type[AutoencoderKL]:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        kind: type[AutoencoderKL] = AutoencoderKL
        return kind

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(D, h, w)."""
        return (int(self.model.config["latent_channels"]), *self.grid)

    def encode(self, frames: Tensor) -> Tensor:
        """Encode uint8 [N, H, W, 3] as float32 [N, D, h, w], the posterior's mean at unit scale."""
        return self._encode_parts(frames, lambda pixels: self._normalise(self.posterior(pixels).mode()))

    def decode(self, codes: Tensor) -> Tensor:
        """Decode float [N, D, h, w] at unit scale to uint8 [N, H, W, 3], rounded.

        Raises:
            ValueError: the latents have another shape or are not finite.
        """
        check_latents(codes, self.latent_shape)
        return self._decode_parts(codes, lambda part: self.pixels(self._denormalise(part.to(self.device, self.dtype))))

    # The differentiable steps of encoding and decoding, which training uses.

    def posterior(self, pixels: Tensor) -> DiagonalGaussianDistribution:
        """Encode [N, 3, H, W] in [-1, 1] as the model's unscaled distribution over latents (`mode`, `sample`, `kl`)."""
        distribution: DiagonalGaussianDistribution = self.model.encode(self.fold(pixels)).latent_dist
        return distribution

    def pixels(self, latents: Tensor) -> Tensor:
        """Decode unscaled latents [N, D, h, w] to [N, 3, H, W]."""
        return self.unfold(self.model.decode(latents).sample)

    def set_scale(self, mean: Tensor, std: Tensor) -> None:
        """Take the mean and standard deviation of each channel, [D] both, over the data."""
        self.model.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())

    def _scale(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, [D or 1, 1, 1] both."""
        config = self.model.config
        mean = config["latents_mean"] or [config["shift_factor"] or 0.0]
        std = config["latents_std"] or [1 / config["scaling_factor"]]
        first, second = (torch.tensor(v, device=self.device).view(-1, 1, 1) for v in (mean, std))
        return first, second

    def _normalise(self, latents: Tensor) -> Tensor:
        mean, std = self._scale()
        return (latents.float() - mean) / std

    def _denormalise(self, latents: Tensor) -> Tensor:
        mean, std = self._scale()
        return (latents * std + mean).to(self.dtype)


def check_latents(codes: Tensor, latent_shape: tuple[int, int, int]) -> None:
    """Check latents [N, D, h, w] before they are decoded.

    Raises:
        ValueError: the latents have another shape or are not finite.
    """
    if tuple(codes.shape[1:]) != latent_shape:
        raise ValueError(
            f"the autoencoder decodes latents [N, {latent_shape}], got {list(codes.shape)}; use latents of its own "
            "policy"
        )
    if not bool(torch.isfinite(codes).all()):
        raise ValueError("latents must be finite, got NaN or infinity; lower train.learning_rate or the noise level")


def build_autoencoder(
    *,
    height: int,
    width: int,
    latent_channels: int = 8,
    block_channels: tuple[int, ...] = (48, 96),
    layers_per_block: int = 1,
    norm_groups: int = 4,
    pixel_unshuffle: int = 4,
) -> FrameAutoencoder:
    """Return a fresh autoencoder with random weights (drawn from torch's global generator).

    Args:
        height, width: pixels of a frame.
        latent_channels: D.
        block_channels, layers_per_block, norm_groups, pixel_unshuffle: see `block_settings`.
    """
    model = FrameAutoencoder.model_class()(
        latent_channels=latent_channels,
        scaling_factor=1.0,
        force_upcast=False,
        **block_settings(block_channels, layers_per_block, norm_groups, pixel_unshuffle),
    )
    return FrameAutoencoder(model, height=height, width=width, pixel_unshuffle=pixel_unshuffle)
