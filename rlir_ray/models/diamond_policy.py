"""DIAMOND's world model as a member of the flow family: the interface of `FlowWorldModel`, in its variables.

A frame with noise σ is at level s = σ / (1 + σ): see `algorithm.karras_steps`. The model has no cache of keys and
values: each noisy frame is one row of a batch, with the frames before it. Frames without noise are only history.

The published sampler cuts each prediction to bytes, which has no gradient and would make log-probabilities depend on
rounding. Here a prediction is not cut but lies half a byte lower, as a cut one does on average, and frames are rounded
to bytes when they become history; this gives the same bytes as the published cut of the same prediction.
Legend: B clips, M frames of a pass, K known frames, R noisy frames, n past frames of each, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlir_ray.algorithm.karras_steps import flow_velocity, karras_sigmas, level_of, sigma_of
from rlir_ray.models.checkpoints import open_diffusers_model
from rlir_ray.models.diamond import DiamondWorldModel

HALF_BYTE = 1 / 255
"""Half the distance of two neighbouring bytes in [-1, 1]."""


@dataclass(frozen=True, slots=True)
class FrameHistory:
    """The last frames that were read, which stand in for a cache of keys and values."""

    frames: Tensor
    """float32 [B, K, 3, H, W], rounded to bytes."""
    actions: Tensor
    """int64 [B, K, 1], leading into each frame."""
    places: Tensor
    """int64 [K], indices of the frames in the clip; on the CPU."""
    span: int
    """Most frames that are kept: later frames read no earlier ones."""

    def repeat(self, times: int) -> FrameHistory:
        """Repeat each clip's frames `times` times, copies of a clip side by side."""
        frames, actions = (part.repeat_interleave(times, 0) for part in (self.frames, self.actions))
        return FrameHistory(frames, actions, self.places, self.span)

    def append(self, other: FrameHistory) -> FrameHistory:
        """Add later frames; the earliest ones are dropped."""
        pairs = ((self.frames, other.frames), (self.actions, other.actions))
        frames, actions = (torch.cat(pair, 1)[:, -self.span :] for pair in pairs)
        return FrameHistory(frames, actions, torch.cat([self.places, other.places])[-self.span :], self.span)


class DiamondPolicy(DiamondWorldModel):
    """A `DiamondWorldModel` that reads and predicts a flow model's variables; its arguments are the same."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(3, H, W): latents are pixels."""
        return (3, self.config["height"], self.config["width"])

    @property
    def span(self) -> int | None:
        """Most frames that the model is given at once: any number, of which it reads the last ones."""
        return None

    def sampling_levels(self, num_steps: int, shift: float) -> Tensor:
        """Return the levels of the published sampler's steps, float32 [num_steps + 1], from .83333 to 0.

        Args:
            num_steps: steps of a frame.
            shift: 1, because the steps are those of the published sampler.
        """
        assert shift == 1, "the check of the world refuses another shift"
        return level_of(karras_sigmas(num_steps))

    def start_std(self, level: Tensor) -> Tensor:
        """Return the deviation of the latents with which sampling starts at a level: 1 before the change of variables.

        The path of training would start with σ, five times as much; but the published sampler does not.
        """
        return 1 - level

    def exact_levels(self, levels: Tensor) -> Tensor:
        """Return the levels, nearest to the given ones, that the model can be told: any level below 1."""
        return levels

    def forward(  # type: ignore[override]  # the arguments of the family, where the world model has its own
        self,
        latents: Tensor,
        levels: Tensor,
        actions: Tensor,
        places: Tensor | None = None,
        visible: Tensor | None = None,
        cache: FrameHistory | None = None,
    ) -> Tensor:
        """Compute the velocity of each noisy frame; arguments as of `read`.

        Returns:
            float32 [B, M, 3, H, W], differentiable; 0 for frames without noise.
        """
        return self.read(latents, levels, actions, places, visible, cache)[0]

    def read(
        self,
        latents: Tensor,
        levels: Tensor,
        actions: Tensor,
        places: Tensor | None = None,
        visible: Tensor | None = None,
        cache: FrameHistory | None = None,
    ) -> tuple[Tensor, FrameHistory]:
        """Compute the velocities as `forward` does; also return these frames as history of later ones.

        Args:
            latents: float [B, M, 3, H, W], noisy frames.
            levels: float [B, M], noise levels from 0 to below 1; each frame is at level 0 in all clips or in none.
            actions: int64 [B, M, 1], the action that leads into each frame.
            places: int64 [M] on the CPU, index of each frame in the clip; None: 0, 1, 2, ...
            visible: bool [M, cached + M] on the CPU, which frames (columns) each noisy frame (row) may read; None: all.
                Of these, it reads the n frames just before it.
            cache: the frames that were read before.

        Raises:
            ValueError: a noisy frame has not exactly one frame without noise at each of the n places before it.
        """
        places = torch.arange(latents.shape[1]) if places is None else places
        read = FrameHistory(round_to_bytes(latents), actions, places, self.config["num_steps_conditioning"])
        # The rows of the batch must be known here, so a GPU is waited for once a pass.
        is_noisy = (levels[0] > 0).cpu()
        velocities = torch.zeros(latents.shape, device=latents.device)
        if bool(is_noisy.any()):
            known = read if cache is None else _join(cache, read)
            clean = torch.cat([torch.ones(len(known.places) - len(places), dtype=torch.bool), ~is_noisy])
            allowed = clean.expand(len(places), -1) if visible is None else visible & clean
            past = _past(allowed[is_noisy], known.places, places[is_noisy], known.span).to(latents.device)  # [R, n]
            rows = is_noisy.nonzero()[:, 0].to(latents.device)
            found = self._velocities(latents[:, rows], levels[:, rows], actions[:, rows], known, past)
            velocities = velocities.index_copy(1, rows, found)
        return velocities, read

    def _velocities(
        self, latents: Tensor, levels: Tensor, actions: Tensor, known: FrameHistory, past: Tensor
    ) -> Tensor:
        """Compute the velocities of noisy frames [B, R, 3, H, W], each after its past [R, n] among the known frames."""
        sigma = sigma_of(levels.float())[..., None, None, None]  # [B, R, 1, 1, 1]
        x = latents.float() * (1 + sigma)
        # The action taken at a frame is the one that leads into the next: each action moves back by one frame.
        taken = torch.cat([known.actions[:, past[:, 1:], 0], actions], -1)  # [B, R, n]
        parts = (x, sigma[..., 0, 0, 0], known.frames[:, past], taken)
        denoised = self.denoise(*(part.flatten(0, 1) for part in parts)).unflatten(0, levels.shape) - HALF_BYTE
        return flow_velocity(x, denoised, sigma)


def round_to_bytes(pictures: Tensor) -> Tensor:
    """Round pictures to the nearest values that bytes have, float32 in [-1, 1]."""
    return ((pictures.float() + 1) * 127.5).round().clamp(0, 255) / 255 * 2 - 1


def _join(cache: FrameHistory, read: FrameHistory) -> FrameHistory:
    """Return cached and new frames, all of them."""
    frames, actions = (torch.cat(pair, 1) for pair in ((cache.frames, read.frames), (cache.actions, read.actions)))
    return FrameHistory(frames, actions, torch.cat([cache.places, read.places]), read.span)


def _past(allowed: Tensor, known: Tensor, places: Tensor, span: int) -> Tensor:
    """Return which known frames lie just before each of R frames, int64 [R, span], the earliest first.

    Args:
        allowed: bool [R, K], known frames that each frame may read.
        known: int64 [K], their places.
        places: int64 [R].
        span: n.
    """
    wanted = places[:, None] - torch.arange(span, 0, -1)  # [R, n]
    matches = allowed[:, None] & (known == wanted[..., None])  # [R, n, K]
    counts = matches.sum(-1)
    if bool((counts != 1).any()):
        row = int((counts != 1).any(1).nonzero()[0])
        raise ValueError(
            f"a noisy frame of a DIAMOND model needs one frame without noise at each of the {span} places before it, "
            f"got {counts[row].tolist()} frames there for place {int(places[row])}; give {span} or more context "
            "frames, and set flow.history_noise=0"
        )
    return matches.int().argmax(-1)


def open_diamond_policy(folder: Path | str) -> DiamondPolicy:
    """Open a folder that `convert diamond` or a run wrote, in float32 and evaluation mode, on the CPU.

    Raises:
        ValueError: the config has unknown fields, or the weights do not fit the config or are not finite.
    """
    model: DiamondPolicy = open_diffusers_model(DiamondPolicy, folder, "the policy")
    return model
