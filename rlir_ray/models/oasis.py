"""Oasis-500M's form of world model (etched-ai/open-oasis): a spatio-temporal transformer that predicts v.

Attention within a frame and attention over time, at one place of the picture each, take turns. Each frame has its own
noise level and action; no frame attends to later ones. Parameters have the published names.
Legend: B clips, M frames of a pass, C h w a latent, N tokens a frame, E width, H heads, A numbers of an action.
"""

from __future__ import annotations

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from rlir_ray.algorithm.diffusion_steps import ddim_step, share_at, step_times
from rlir_ray.models.flow import (
    NUM_FREQUENCIES,
    FrameCache,
    frame_mask,
    gated,
    modulate,
    normalise,
    read_blocks,
    wave_embedding,
)
from rlir_ray.models.oasis_autoencoder import Mlp, OasisAutoencoder
from rlir_ray.models.rescoring import first_read
from rlir_ray.models.rotary import grid_turns, line_rates, rotate_pairs, turns_by

__all__ = ["CONTEXT_TIME", "OasisAutoencoder", "OasisWorldModel", "sample_published"]

CONTEXT_TIME = 14
"""The time that the model is told for frames without noise, as the published sampler does."""
# The published sampler clamps its initial noise.
MAX_NOISE = 20.0


class OasisWorldModel(ModelMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]  # as diffusers' own models
    """Oasis' world model; a `diffusers` model whose arguments have the published names.

    Args:
        input_h, input_w: h, w.
        patch_size: side of a patch in latents; one token is one patch.
        in_channels: C.
        hidden_size: E.
        depth: number of blocks.
        num_heads: H; the head size E / H must be a multiple of 4.
        mlp_ratio: inner size of the MLPs divided by E.
        external_cond_dim: A.
        max_frames: frames of the window on which the model was trained, at least 2.
        action_dropout: share of the actions that were hidden in training, see `FlowWorldModel`.
    """

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers does not annotate it
    def __init__(
        self,
        input_h: int = 18,
        input_w: int = 32,
        patch_size: int = 2,
        in_channels: int = 16,
        hidden_size: int = 1024,
        depth: int = 16,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        external_cond_dim: int = 25,
        max_frames: int = 32,
        action_dropout: float = 0.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # diffusers does not annotate it
        if input_h % patch_size or input_w % patch_size:
            raise ValueError(
                f"patch_size must divide the latent's height and width, got {patch_size} for {input_h}x{input_w}; use "
                "1 or 2"
            )
        if hidden_size % num_heads or hidden_size // num_heads % 4:
            raise ValueError(
                f"num_heads must divide hidden_size into heads of a multiple of 4, got {num_heads} and {hidden_size}; "
                "for example 16 heads and width 1024"
            )
        if max_frames < 2:
            raise ValueError(f"max_frames must be at least 2, a frame and the one before it, got {max_frames}; use 32")
        self.grid = (input_h // patch_size, input_w // patch_size)
        self.head_size = hidden_size // num_heads
        self.gradient_checkpointing = False
        self.x_embedder = PatchEmbedding(in_channels, hidden_size, patch_size)
        self.t_embedder = TimeEmbedding(hidden_size)
        self.external_cond = nn.Linear(external_cond_dim, hidden_size)
        inner = int(mlp_ratio * hidden_size)
        self.blocks = nn.ModuleList([OasisBlock(hidden_size, num_heads, inner) for _ in range(depth)])
        self.final_layer = FinalLayer(hidden_size, in_channels * patch_size**2)
        self._initialise()

    def _initialise(self) -> None:
        """Start every block as the identity and v as zero (adaLN-zero, https://arxiv.org/abs/2212.09748)."""
        for name, weight in self.named_parameters():
            if "adaLN_modulation" in name or name.startswith("final_layer.linear"):
                nn.init.zeros_(weight)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        actions: Tensor,
        places: Tensor | None = None,
        visible: Tensor | None = None,
        cache: FrameCache | None = None,
    ) -> Tensor:
        """Predict v of each frame.

        Args:
            latents: float [B, M, C, h, w], noisy latents.
            timesteps: int [B, M], the noise of each frame, 0 to 999.
            actions: float [B, M, A], the action that leads into each frame.
            places: int64 [M] on the CPU, index of each frame in the window; None: 0, 1, 2, ...
            visible: bool [M, cached + M] on the CPU, which frames (columns) each frame (row) attends to; None: itself
                and the frames at earlier places, in the cache and in the pass.
            cache: keys and values of the frames that were read before.

        Returns:
            float32 [B, M, C, h, w], differentiable.
        """
        return self.read(latents, timesteps, actions, places, visible, cache)[0]

    def read(
        self,
        latents: Tensor,
        timesteps: Tensor,
        actions: Tensor,
        places: Tensor | None = None,
        visible: Tensor | None = None,
        cache: FrameCache | None = None,
    ) -> tuple[Tensor, FrameCache]:
        """Predict v as `forward` does; also return the cache entries of these frames, of temporal attention alone."""
        places = torch.arange(latents.shape[1]) if places is None else places
        across, along = (part.to(latents.device) for part in self._turns(places))
        condition = self.t_embedder(timesteps, self.dtype) + self.embed_actions(actions)  # [B, M, E]
        condition = functional.silu(condition)
        x = self.x_embedder(latents.to(self.dtype))  # [B, M * N, E]
        # Attention over time has one token a frame.
        mask = frame_mask(visible, places, cache, x, tokens_per_frame=1)
        x, kept = read_blocks(self, x, (condition, across, along, mask), places, cache)
        return self._latents(self.final_layer(x, condition).float(), latents.shape[1]), kept

    def embed_actions(self, actions: Tensor) -> Tensor:
        """Embed the actions [B, M, A] as [B, M, E]."""
        embedded: Tensor = self.external_cond(actions.to(self.dtype))
        return embedded

    def rotary_rates(self) -> tuple[Tensor, Tensor]:
        """Return the rotary frequencies of rows and columns, [head size / 4], and of frames, [head size / 2]."""
        num_pairs = self.head_size // 2
        return torch.linspace(1, 128, num_pairs // 2) * math.pi, line_rates(num_pairs)

    def _turns(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rotations of a frame's tokens, [N, head size / 2], and of the frames, [M, head size / 2]."""
        across, along = self.rotary_rates()
        return grid_turns(self.grid, across), turns_by(places[:, None].float() * along)

    def _latents(self, tokens: Tensor, num_frames: int) -> Tensor:
        """Join tokens [B, M * N, patch² * C], each ordered (row, column, channel), to latents [B, M, C, h, w]."""
        size = self.config["patch_size"]
        patches = tokens.unflatten(-1, (size**2, -1)).transpose(-1, -2).flatten(-2)  # (channel, row, column)
        folded = patches.reshape(len(tokens) * num_frames, *self.grid, -1).permute(0, 3, 1, 2)
        latents: Tensor = functional.pixel_shuffle(folded, size).unflatten(0, (len(tokens), num_frames))
        return latents


class PatchEmbedding(nn.Module):
    """Patches of latents as tokens."""

    def __init__(self, channels: int, width: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, size, size)

    def forward(self, latents: Tensor) -> Tensor:
        """Map [B, M, C, h, w] to [B, M * N, E]."""
        tokens: Tensor = self.proj(latents.flatten(0, 1)).flatten(2).transpose(1, 2)
        return tokens.reshape(len(latents), -1, tokens.shape[-1])


class TimeEmbedding(nn.Module):
    """A time as cosines and sines, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * NUM_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: Tensor, dtype: torch.dtype) -> Tensor:
        """Map int [B, M] to [B, M, E]."""
        embedded: Tensor = self.mlp(wave_embedding(times).to(dtype))
        return embedded


class RotaryAttention(nn.Module):
    """Attention within each of R rows of L tokens."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, turns: Tensor, mask: Tensor | None = None, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map x [B, R, L, E]; mask [L, past + L] is added to the scores; keys and values are [B, R * H, L, E / H]."""
        qkv = self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = (part.transpose(2, 3).flatten(1, 2) for part in qkv.unbind(3))
        queries, keys = rotate_pairs(queries, turns), rotate_pairs(keys, turns)
        all_keys, all_values = (
            (keys, values) if past is None else (torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2))
        )
        mixed = functional.scaled_dot_product_attention(queries, all_keys, all_values, attn_mask=mask)
        heads = mixed.unflatten(1, (x.shape[1], -1)).transpose(2, 3).flatten(3)
        return self.to_out(heads), keys, values


class OasisBlock(nn.Module):
    """Attention within frames and an MLP, then attention over time and an MLP, each modulated by the condition."""

    def __init__(self, width: int, num_heads: int, inner: int) -> None:
        super().__init__()
        self.s_attn, self.t_attn = RotaryAttention(width, num_heads), RotaryAttention(width, num_heads)
        self.s_mlp, self.t_mlp = Mlp(width, inner, "tanh"), Mlp(width, inner, "tanh")
        # The first entry keeps the published names; the activation is computed once for all blocks.
        self.s_adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, 6 * width))
        self.t_adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, 6 * width))

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        across: Tensor,
        along: Tensor,
        mask: Tensor | None,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map x [B, M * N, E] by condition [B, M, E]; add keys and values of temporal attention [B, N * H, M, E / H].

        Args:
            across, along: rotations of a frame's tokens and of the frames.
            mask: [M, past + M], added to the scores of temporal attention.
            past: keys and values of earlier frames.
        """
        num_frames = condition.shape[1]
        shift, scale, gate, *mlp = self.s_adaLN_modulation(condition).chunk(6, -1)
        frames = modulate(normalise(x), shift, scale).unflatten(1, (num_frames, -1))  # [B, M, N, E]
        x = gated(x, gate, self.s_attn(frames, across)[0].flatten(1, 2))
        x = gated(x, mlp[2], self.s_mlp(modulate(normalise(x), mlp[0], mlp[1])))

        shift, scale, gate, *mlp = self.t_adaLN_modulation(condition).chunk(6, -1)
        places = modulate(normalise(x), shift, scale).unflatten(1, (num_frames, -1)).transpose(1, 2)  # [B, N, M, E]
        mixed, keys, values = self.t_attn(places, along, mask, past)
        x = gated(x, gate, mixed.transpose(1, 2).flatten(1, 2))
        return gated(x, mlp[2], self.t_mlp(modulate(normalise(x), mlp[0], mlp[1]))), keys, values


class FinalLayer(nn.Module):
    """Tokens to patches."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, patch)
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, -1)
        out: Tensor = self.linear(modulate(normalise(x), shift, scale))
        return out


@torch.inference_mode()
def sample_published(model: OasisWorldModel, prompt: Tensor, actions: Tensor, noise: Tensor, num_steps: int) -> Tensor:
    """Sample frames exactly as the published sampler does: DDIM, one frame after another, without a cache.

    Args:
        model: the world model.
        prompt: [B, P, C, h, w], latents of the context frames.
        actions: [B, T, A], the action that leads into each frame.
        noise: [B, T - P, C, h, w], where each new frame starts.
        num_steps: denoising steps of a frame.

    Returns:
        [B, T, C, h, w], latents with the prompt in front.
    """
    frames = prompt
    times = step_times(num_steps).to(prompt.device)
    shares = share_at(times)
    for number in range(prompt.shape[1], actions.shape[1]):
        start = first_read(number, model.config["max_frames"])
        x = noise[:, number - prompt.shape[1], None].clamp(-MAX_NOISE, MAX_NOISE)
        past = frames[:, start:]
        told = torch.full((len(prompt), past.shape[1] + 1), CONTEXT_TIME, device=prompt.device)
        for time, share, next_share in zip(times, shares[:-1], shares[1:], strict=False):
            told[:, -1] = time
            v = model(torch.cat([past, x], 1), told, actions[:, start : number + 1])[:, -1:]
            x = ddim_step(x, v, share, next_share)
        frames = torch.cat([frames, x], 1)
    return frames
