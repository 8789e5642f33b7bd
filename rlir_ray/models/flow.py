"""World models over continuous latents: a transformer that denoises a frame given earlier frames (NFD's form).

Next-Frame Diffusion (https://arxiv.org/abs/2506.01380): full attention within a frame, no attention to later frames;
each frame has its own noise level and action. Flow matching: at level s a latent is (1 - s) data + s noise, and the
model predicts noise - data.
Legend: B clips, M frames of a pass, D h w a latent, N tokens a frame, L = M * N, E width, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional

from rlir_ray.algorithm.flow_steps import noise_levels
from rlir_ray.data.files import Json
from rlir_ray.models.checkpoints import open_diffusers_model
from rlir_ray.models.rotary import rotate_pairs, turns_by
from rlir_ray.spaces.layouts import LAYOUT_KEY, NO_ACTION, SPACE_KEY, layout_of

# Frequencies of the noise level's embedding. The level is scaled to 0..1000, the step numbers of diffusion models.
NUM_FREQUENCIES, LEVEL_SCALE = 128, 1000.0
# Most classes of a field: a rollout's record holds them as bytes.
MAX_CLASSES = 256


@dataclass(frozen=True, slots=True)
class FrameCache:
    """Keys and values of the frames read so far, [B, H, frames * N, E / H] in each layer."""

    keys: list[Tensor]
    values: list[Tensor]
    places: Tensor
    """int64 [frames], indices of the frames in the clip; on the CPU, so that building a mask never waits for a GPU."""

    def repeat(self, times: int) -> FrameCache:
        """Repeat each clip's entries `times` times, copies of a clip side by side."""
        keys, values = ([part.repeat_interleave(times, 0) for part in parts] for parts in (self.keys, self.values))
        return FrameCache(keys, values, self.places)

    def append(self, other: FrameCache) -> FrameCache:
        return FrameCache(
            [torch.cat(pair, 2) for pair in zip(self.keys, other.keys, strict=True)],
            [torch.cat(pair, 2) for pair in zip(self.values, other.values, strict=True)],
            torch.cat([self.places, other.places]),
        )


class FlowWorldModel(ModelMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]  # as diffusers' own models
    """Flow world model; a `diffusers` model, so that any folder of `save_pretrained` opens.

    Args:
        latent_channels, latent_height, latent_width: D, h, w of the autoencoder's latents.
        patch_size: side of a patch in latents; one token is one patch.
        hidden_size: E.
        num_layers: number of blocks.
        num_heads: H; the head size E / H must be even and at least 6.
        mlp_ratio: inner size of the MLP divided by E.
        action_space: plain values of the space of the actions (`ActionSpace.to_plain`); None: MineWorld's classes of
            VPT's space.
        action_layout: how the model gets actions, a name in `spaces.layouts.LAYOUTS`; None: one class a field.
        action_dropout: share of the actions that were hidden in training; 0: the model does not know frames without
            an action, so that it cannot be guided.

    Example: latents 8 x 6 x 8 in patches of 2 are 12 tokens a frame of 32 numbers each.
    """

    _supports_gradient_checkpointing = True

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers does not annotate it
    def __init__(
        self,
        latent_channels: int = 8,
        latent_height: int = 6,
        latent_width: int = 8,
        patch_size: int = 2,
        hidden_size: int = 224,
        num_layers: int = 6,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        action_space: Json | None = None,
        action_layout: str | None = None,
        action_dropout: float = 0.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # diffusers does not annotate it
        if latent_height % patch_size or latent_width % patch_size:
            raise ValueError(
                f"patch_size must divide the latent's height and width, got {patch_size} for {latent_height}x"
                f"{latent_width}; use 1 or 2"
            )
        head_size, rest = divmod(hidden_size, num_heads)
        if rest or head_size % 2 or head_size < 6:
            raise ValueError(
                f"num_heads must divide hidden_size into even heads of 6 or more, got {num_heads} and {hidden_size}; "
                "for example 4 heads and width 224"
            )
        self.layout = layout_of({SPACE_KEY: action_space, LAYOUT_KEY: action_layout})
        if max(self.layout.class_counts) > MAX_CLASSES:
            raise ValueError(
                f"a field of a flow model's actions must have at most {MAX_CLASSES} classes, got "
                f"{max(self.layout.class_counts)}; give the quantizer of the axis fewer bins"
            )
        self.latent_shape = (latent_channels, latent_height, latent_width)
        self.patch_size = patch_size
        self.grid = (latent_height // patch_size, latent_width // patch_size)
        self.gradient_checkpointing = False
        patch = latent_channels * patch_size**2
        self.embed = nn.Linear(patch, hidden_size)
        self.level = nn.Sequential(
            nn.Linear(2 * NUM_FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )
        # One embedding a column of the layout's classes, summed.
        self.actions = nn.ModuleList([nn.Embedding(count, hidden_size) for count in self.layout.class_counts])
        self.head_size = head_size
        self.blocks = nn.ModuleList([Block(hidden_size, num_heads, mlp_ratio) for _ in range(num_layers)])
        self.final_modulation = nn.Linear(hidden_size, 2 * hidden_size)
        self.head = nn.Linear(hidden_size, patch)
        self._initialise()

    def _initialise(self) -> None:
        """Start every block as the identity and the velocity as zero (adaLN-zero, https://arxiv.org/abs/2212.09748)."""
        for table in self.actions:
            nn.init.normal_(table.get_parameter("weight"), std=0.02)
        for layer in (*(block.get_submodule("modulation") for block in self.blocks), self.final_modulation, self.head):
            nn.init.zeros_(layer.get_parameter("weight"))
            nn.init.zeros_(layer.get_parameter("bias"))

    @property
    def span(self) -> int | None:
        """Most frames that the model reads at once, see `rescoring.first_read`; None: any number."""
        return None

    @property
    def tokens_per_frame(self) -> int:
        """N."""
        return self.grid[0] * self.grid[1]

    def sampling_levels(self, num_steps: int, shift: float) -> Tensor:
        """Return the levels of a sampler's steps, float32 [num_steps + 1]; see `noise_levels`."""
        return noise_levels(num_steps, shift)

    def start_std(self, level: Tensor) -> Tensor:
        """Return the standard deviation of the latents with which sampling starts at a level."""
        return level

    def exact_levels(self, levels: Tensor) -> Tensor:
        """Return the levels, nearest to the given ones, that the model can be told: any level."""
        return levels

    def forward(
        self,
        latents: Tensor,
        levels: Tensor,
        actions: Tensor,
        places: Tensor | None = None,
        visible: Tensor | None = None,
        cache: FrameCache | None = None,
    ) -> Tensor:
        """Compute the velocity of each frame.

        Args:
            latents: float [B, M, D, h, w], noisy latents.
            levels: float [B, M], noise levels in [0, 1].
            actions: int64 [B, M, columns], the layout's classes of the action that leads into each frame; `NO_ACTION`:
                the action is hidden.
            places: int64 [M] on the CPU, index of each frame in the clip; None: 0, 1, 2, ...
            visible: bool [M, cached + M] on the CPU, which frames (columns) each frame (row) attends to; None: itself
                and the frames at earlier places, in the cache and in the pass.
            cache: keys and values of the frames that were read before.

        Returns:
            float32 [B, M, D, h, w], differentiable.
        """
        return self.read(latents, levels, actions, places, visible, cache)[0]

    def read(
        self,
        latents: Tensor,
        levels: Tensor,
        actions: Tensor,
        places: Tensor | None = None,
        visible: Tensor | None = None,
        cache: FrameCache | None = None,
    ) -> tuple[Tensor, FrameCache]:
        """Compute the velocities as `forward` does; also return the cache entries of these frames."""
        places = torch.arange(latents.shape[1]) if places is None else places
        turns = rotations(places, self.grid, self.head_size).to(latents.device)  # [L, head size / 2]
        condition = functional.silu(self._condition(levels, actions))  # [B, M, E]
        x = self.embed(self._patches(latents))  # [B, L, E]
        mask = frame_mask(visible, places, cache, x, self.tokens_per_frame)
        x, kept = read_blocks(self, x, (condition, turns, mask), places, cache)
        shift, scale = self.final_modulation(condition).chunk(2, -1)
        x = self.head(modulate(normalise(x), shift, scale))
        return self._latents(x.float(), latents.shape[1]), kept

    def _condition(self, levels: Tensor, actions: Tensor) -> Tensor:
        """Embed noise level and action of each frame, [B, M, E]."""
        waves = wave_embedding(levels.float() * LEVEL_SCALE).to(self.dtype)
        known = actions.clamp(min=0)
        tables = [table(known[..., column]) for column, table in enumerate(self.actions)]
        level: Tensor = self.level(waves)
        return level + without_hidden(torch.stack(tables).sum(0), actions)

    def _patches(self, latents: Tensor) -> Tensor:
        """Cut latents [B, M, D, h, w] into patches [B, L, D * patch²]."""
        folded = functional.pixel_unshuffle(latents.to(self.dtype).flatten(0, 1), self.patch_size)
        return folded.flatten(2).transpose(1, 2).reshape(len(latents), -1, folded.shape[1])

    def _latents(self, patches: Tensor, num_frames: int) -> Tensor:
        """Join patches to latents, the inverse of `_patches`."""
        folded = patches.reshape(len(patches) * num_frames, *self.grid, -1).permute(0, 3, 1, 2)
        latents: Tensor = functional.pixel_shuffle(folded, self.patch_size).unflatten(0, (len(patches), num_frames))
        return latents


class Block(nn.Module):
    """Attention and MLP, each modulated by the frame's condition (adaLN-zero)."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.modulation = nn.Linear(hidden_size, 6 * hidden_size)
        self.to_qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.query_scale = nn.Parameter(torch.ones(hidden_size // num_heads))
        self.key_scale = nn.Parameter(torch.ones(hidden_size // num_heads))
        self.to_out = nn.Linear(hidden_size, hidden_size)
        inner = int(mlp_ratio * hidden_size)
        self.mlp_in, self.mlp_out = nn.Linear(hidden_size, inner), nn.Linear(inner, hidden_size)

    def forward(
        self, x: Tensor, condition: Tensor, turns: Tensor, mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map x [B, L, E] by condition [B, M, E], turns [L, head size], mask [L, past + L]; add keys and values."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(condition).chunk(6, -1)
        qkv = self.to_qkv(modulate(normalise(x), shift, scale)).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = (part.transpose(1, 2) for part in qkv.unbind(2))  # [B, H, L, head size]
        queries, keys = apply_rotary(queries, self.query_scale, turns), apply_rotary(keys, self.key_scale, turns)
        all_keys, all_values = (
            (keys, values) if past is None else (torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2))
        )
        mixed = functional.scaled_dot_product_attention(queries, all_keys, all_values, attn_mask=mask)
        x = gated(x, gate, self.to_out(mixed.transpose(1, 2).flatten(2)))
        hidden = functional.gelu(self.mlp_in(modulate(normalise(x), mlp_shift, mlp_scale)), approximate="tanh")
        return gated(x, mlp_gate, self.mlp_out(hidden)), keys, values


def rotations(places: Tensor, grid: tuple[int, int], head_size: int) -> Tensor:
    """Compute a 3D rotary embedding, which divides a head's pairs among time, height and width.

    RoFormer (https://arxiv.org/abs/2104.09864) along three axes: height and width get a third of the pairs each, time
    gets the rest.

    Args:
        places: int64 [M], index of each frame in the clip.
        grid: rows and columns of a frame's tokens.
        head_size: E / H.

    Returns:
        complex64 [M * N, head_size / 2].
    """
    side = head_size // 6
    axes = torch.meshgrid(places, *(torch.arange(size) for size in grid), indexing="ij")
    angles = []
    for axis, num_pairs in zip(axes, (head_size // 2 - 2 * side, side, side), strict=True):
        # Base 100 instead of 10,000: with tens of frames and rows, slower rotations would not separate positions.
        rates = 100.0 ** -(torch.arange(num_pairs) / num_pairs)
        angles.append(axis.flatten()[:, None] * rates)
    return turns_by(torch.cat(angles, -1))


def apply_rotary(x: Tensor, scale: Tensor, rotation: Tensor) -> Tensor:
    """Normalise each head's vector and rotate its pairs, in float32.

    Args:
        x: [B, H, L, head size], queries or keys.
        scale: [head size], weight of the root-mean-square norm.
        rotation: complex64 [L, head size / 2].
    """
    normed = functional.rms_norm(x.float(), x.shape[-1:], scale.float(), eps=1e-6)
    return rotate_pairs(normed, rotation).to(x.dtype)


def earlier_frames(places: Tensor, cache: FrameCache | None) -> Tensor:
    """Return which frames each frame of a pass attends to: itself, and all at earlier places, bool [M, cached + M]."""
    known = places if cache is None else torch.cat([cache.places, places])
    visible = known < places[:, None]
    visible[:, len(known) - len(places) :] |= torch.eye(len(places), dtype=torch.bool)
    return visible


def frame_mask(
    visible: Tensor | None, places: Tensor, cache: FrameCache | None, like: Tensor, tokens_per_frame: int
) -> Tensor | None:
    """Return what is added to the scores of attention; None: all is visible.

    Computed once for all blocks, because attention would convert a boolean mask in each block. A pass over one frame
    and its past needs no mask, and the fast kernels require that there is none.

    Args:
        visible: bool [M, cached + M], which frames each frame attends to; None: `earlier_frames`.
        places: int64 [M], of the frames of the pass.
        cache: keys and values of the frames that were read before.
        like: gives device and dtype.
        tokens_per_frame: rows and columns of the result that belong to a frame.
    """
    visible = earlier_frames(places, cache) if visible is None else visible
    if bool(visible.all()):
        return None
    hidden = ~visible.to(like.device)
    added = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill(hidden, float("-inf"))
    return added.repeat_interleave(tokens_per_frame, 0).repeat_interleave(tokens_per_frame, 1)


# Any: a world model of any form, with diffusers' gradient checkpointing.
def read_blocks(
    model: Any, x: Tensor, inputs: Sequence[Tensor | None], places: Tensor, cache: FrameCache | None
) -> tuple[Tensor, FrameCache]:
    """Pass tokens through the blocks of a world model, and keep the keys and values of the frames.

    Args:
        model: has `blocks`, which map (x, *inputs, past keys and values) to x, keys and values.
        x: [B, M * N, E].
        inputs: of every block.
        places: int64 [M], of the frames of the pass.
        cache: keys and values of the frames that were read before.
    """
    kept = FrameCache([], [], places)
    for number, block in enumerate(model.blocks):
        past = (cache.keys[number], cache.values[number]) if cache is not None else None
        if model.gradient_checkpointing and torch.is_grad_enabled():
            # diffusers sets the function with the flag.
            x, keys, values = model._gradient_checkpointing_func(block, x, *inputs, past)
        else:
            x, keys, values = block(x, *inputs, past)
        kept.keys.append(keys)
        kept.values.append(values)
    return x, kept


def without_hidden(embedded: Tensor, actions: Tensor) -> Tensor:
    """Set the embeddings [B, M, E] of hidden actions to zero; actions are int [B, M, columns], see `NO_ACTION`."""
    return embedded.masked_fill((actions == NO_ACTION).any(-1, keepdim=True), 0)


def wave_embedding(numbers: Tensor) -> Tensor:
    """Embed numbers between 0 and 1000 as cosines, then sines, [...] to float32 [..., 2 * NUM_FREQUENCIES]."""
    exponents = torch.arange(NUM_FREQUENCIES, device=numbers.device, dtype=torch.float32) / NUM_FREQUENCIES
    angles = numbers.float()[..., None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], -1)


def normalise(x: Tensor) -> Tensor:
    """Apply a layer norm without weights."""
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift tokens [B, M * N, E] by each frame's factors [B, M, E]."""
    frames = x.unflatten(1, (shift.shape[1], -1))
    modulated: Tensor = frames * (1 + scale[:, :, None]) + shift[:, :, None]
    return modulated.flatten(1, 2)


def gated(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """Add a branch [B, M * N, E], times each frame's gate [B, M, E], to x."""
    frames: Tensor = branch.unflatten(1, (gate.shape[1], -1)) * gate[:, :, None]
    return x + frames.flatten(1, 2)


def open_flow_model(folder: Path | str) -> FlowWorldModel:
    """Open a folder that `save_pretrained` wrote, in float32 and evaluation mode, on the CPU.

    Raises:
        ValueError: the config has unknown fields, or the weights do not fit the config or are not finite.
    """
    model: FlowWorldModel = open_diffusers_model(FlowWorldModel, folder, "the policy")
    return model
