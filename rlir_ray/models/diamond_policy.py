"""DIAMOND's world model as a member of the flow family: the interface of `FlowWorldModel`, in its variables.

A frame with noise σ is at level s = σ / (1 + σ): see `algorithm.karras_steps`. The model has no cache of keys and
values: each noisy frame is one row of a batch, with the frames before it. Frames without noise are only history.
The sampler and rescoring cut a clip into the windows of `span` frames that the model reads.

The published sampler cuts each prediction to bytes, which has no gradient and would make log-probabilities depend on
rounding. Here a prediction is not cut but lies half a byte lower, as a cut one does on average, and frames are rounded
to bytes when they become history; this gives the same bytes as the published cut of the same prediction.
Legend: B clips, M frames of a pass, R of them noisy, n past frames, H W pixels.
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
    """Frames without noise, which stand in for a cache of keys and values."""

    frames: Tensor
    """float32 [B, K, 3, H, W], rounded to bytes."""
    actions: Tensor
    """int64 [B, K, 1], leading into each frame."""

    def repeat(self, times: int) -> FrameHistory:
        """Repeat each clip's frames `times` times, copies of a clip side by side."""
        return FrameHistory(*(part.repeat_interleave(times, 0) for part in (self.frames, self.actions)))

    def append(self, other: FrameHistory) -> FrameHistory:
        """Add later frames."""
        return FrameHistory(torch.cat([self.frames, other.frames], 1), torch.cat([self.actions, other.actions], 1))


class DiamondPolicy(DiamondWorldModel):
    """A `DiamondWorldModel` that reads and predicts a flow model's variables; its arguments are the same."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(3, H, W): latents are pixels."""
        return (3, self.config["height"], self.config["width"])

    @property
    def span(self) -> int:
        """Frames that the model reads at once, see `rescoring.first_read`: n past ones and the new one."""
        num_past: int = self.config["num_steps_conditioning"]
        return num_past + 1

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
            places: not read: a noisy frame comes after all frames without noise.
            visible: bool [M, cached + M] on the CPU, which frames (columns) each frame (row) may read; None: all.
            cache: the frames that were read before.

        Raises:
            ValueError: there are not exactly n frames without noise, or a noisy frame may not read one of them.
        """
        # The rows of the batch must be known here, so a GPU is waited for once a pass.
        is_noisy = (levels[0] > 0).cpu()
        rows = is_noisy.nonzero()[:, 0].to(latents.device)
        read = FrameHistory(round_to_bytes(latents), actions)
        velocities = torch.zeros(latents.shape, device=latents.device)
        if len(rows):
            known = read if cache is None else cache.append(read)
            clean = torch.cat([torch.ones(known.frames.shape[1] - len(is_noisy), dtype=torch.bool), ~is_noisy])
            self._check_past(clean, clean.expand(len(rows), -1) if visible is None else visible[is_noisy] & clean)
            past = clean.nonzero()[:, 0].to(latents.device)
            history = FrameHistory(known.frames[:, past], known.actions[:, past])
            found = self._velocities(latents[:, rows], levels[:, rows], actions[:, rows], history)
            velocities = velocities.index_copy(1, rows, found)
        return velocities, read

    def _check_past(self, clean: Tensor, allowed: Tensor) -> None:
        """Check that n frames are without noise, bool [K], and that each noisy frame may read them all, bool [R, K]."""
        counts = [int(clean.sum()), *allowed.sum(1).tolist()]
        wrong = [count for count in counts if count != self.span - 1]
        if wrong:
            raise ValueError(
                f"a noisy frame of a DIAMOND model needs exactly {self.span - 1} earlier frames, without noise, got "
                f"{wrong[0]}; give {self.span - 1} or more context frames, and set flow.history_noise=0"
            )

    def _velocities(self, latents: Tensor, levels: Tensor, actions: Tensor, past: FrameHistory) -> Tensor:
        """Compute the velocities of noisy frames [B, R, 3, H, W], each after the same n frames."""
        num_rows = latents.shape[1]
        sigma = sigma_of(levels.float())[..., None, None, None]  # [B, R, 1, 1, 1]
        x = latents.float() * (1 + sigma)
        # The action taken at a frame is the one that leads into the next: each action moves back by one frame.
        before = past.actions[:, None, 1:, 0].expand(-1, num_rows, -1)
        taken = torch.cat([before, actions], -1)  # [B, R, n]
        frames = past.frames[:, None].expand(-1, num_rows, *[-1] * 4)
        parts = (x, sigma[..., 0, 0, 0], frames, taken)
        denoised = self.denoise(*(part.flatten(0, 1) for part in parts)).unflatten(0, levels.shape) - HALF_BYTE
        return flow_velocity(x, denoised, sigma)


def round_to_bytes(pictures: Tensor) -> Tensor:
    """Round pictures to the nearest values that bytes have, float32 in [-1, 1]."""
    return ((pictures.float() + 1) * 127.5).round().clamp(0, 255) / 255 * 2 - 1


def open_diamond_policy(folder: Path | str) -> DiamondPolicy:
    """Open a folder that `convert diamond` or a run wrote, in float32 and evaluation mode, on the CPU.

    Raises:
        ValueError: the config has unknown fields, or the weights do not fit the config or are not finite.
    """
    model: DiamondPolicy = open_diffusers_model(DiamondPolicy, folder, "the policy")
    return model
