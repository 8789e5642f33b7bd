"""Oasis' world model as a member of the flow family: the interface of `FlowWorldModel`, in its variables.

A frame at level s and time t, with s = σ / (α + σ): see `algorithm.diffusion_steps`. Levels between those of the
thousand times are rounded to the nearest. A frame without noise, level 0, is context: the model is told a little noise,
as by the published sampler.
Legend: B clips, M frames of a pass, C h w a latent.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rlir_ray.algorithm.diffusion_steps import (
    flow_level,
    flow_velocity,
    from_flow,
    share_at,
    step_times,
    times_of,
)
from rlir_ray.models.checkpoints import open_diffusers_model
from rlir_ray.models.flow import FrameCache, without_hidden
from rlir_ray.models.oasis import CONTEXT_TIME, OasisWorldModel
from rlir_ray.spaces.layouts import OasisLayout
from rlir_ray.spaces.oasis import OFFSETS, SCALES


class OasisPolicy(OasisWorldModel):
    """An `OasisWorldModel` that reads and predicts a flow model's variables; its arguments are the same."""

    layout = OasisLayout()

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return (self.config["in_channels"], self.config["input_h"], self.config["input_w"])

    @property
    def span(self) -> int:
        """Most frames that the model reads at once, see `rescoring.first_read`."""
        found: int = self.config["max_frames"]
        return found

    def sampling_levels(self, num_steps: int, shift: float) -> Tensor:
        """Return the levels of the published sampler's steps, float32 [num_steps + 1], from .99945 to 0.

        Args:
            num_steps: steps of a frame.
            shift: 1, because the steps are evenly spaced times.
        """
        assert shift == 1, "the check of the world refuses another shift"
        return flow_level(share_at(step_times(num_steps)))

    def start_std(self, level: Tensor) -> Tensor:
        """Return the standard deviation of the latents with which sampling starts at a level."""
        return level

    def exact_levels(self, levels: Tensor) -> Tensor:
        """Return the levels, nearest to the given ones, that the model can be told: those of its thousand times."""
        return flow_level(share_at(times_of(levels)))

    # The same tensors as of the base class, but levels for times and classes for numbers.
    def read(
        self,
        latents: Tensor,
        timesteps: Tensor,
        actions: Tensor,
        places: Tensor | None = None,
        visible: Tensor | None = None,
        cache: FrameCache | None = None,
    ) -> tuple[Tensor, FrameCache]:
        """Compute the velocities of frames, and their cache entries.

        Args:
            latents: float [B, M, C, h, w], noisy latents of a flow model.
            timesteps: float [B, M], noise levels in [0, 1].
            actions: int64 [B, M, 25], classes of the layout `oasis`; `NO_ACTION`: the action is hidden.
            places, visible, cache: as in `OasisWorldModel.forward`.

        Returns:
            float32 [B, M, C, h, w], and the cache entries.

        Raises:
            ValueError: a place lies outside the window.
        """
        last = latents.shape[1] - 1 if places is None else int(places.max())
        if last >= self.span:
            raise ValueError(
                f"places must lie below the {self.span} frames of the model's window, got {last}; let places count "
                "from the first frame of the window"
            )
        times = times_of(timesteps)
        share = share_at(times)[..., None, None, None]
        told = torch.where(times < 0, CONTEXT_TIME, times)
        noisy = from_flow(latents.float(), share)
        v, kept = super().read(noisy, told, actions, places, visible, cache)
        return flow_velocity(noisy, v, share), kept

    def embed_actions(self, actions: Tensor) -> Tensor:
        """Embed classes of the layout `oasis`, int64 [B, M, 25], as [B, M, E]; hidden actions as zero."""
        offsets, scales = (torch.from_numpy(part).to(actions.device) for part in (OFFSETS, SCALES))
        return without_hidden(super().embed_actions((actions - offsets) / scales), actions)


def open_oasis_policy(folder: Path | str) -> OasisPolicy:
    """Open a folder that `convert oasis` or a run wrote, in float32 and evaluation mode, on the CPU.

    Raises:
        ValueError: the config has unknown fields, or the weights do not fit the config or are not finite.
    """
    model: OasisPolicy = open_diffusers_model(OasisPolicy, folder, "the policy")
    return model
