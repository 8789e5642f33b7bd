"""Steppers: draw clips one frame at a time, for callers that choose the next action when they have seen the last frame.

A sampler draws whole clips for training; a stepper serves `generate`, the page and the environment.
Legend: B clips, C context frames, N tokens a frame, D h w a latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from rlir_ray.spaces.space import Actions
    from rlir_ray.trajectory import EncodedClips


class Stepper(Protocol):
    """A world model that draws B clips together, frame by frame."""

    num_frames: int
    """Most frames of a clip, context included; a longer clip starts again with its last frames."""
    num_kept: int
    """Frames with which a longer clip starts again."""
    uncertainty: npt.NDArray[np.float64] | None
    """[B], of the last step: minus the mean log-probability of the drawn tokens, in nats; None: the model has none."""

    def start(self, context: EncodedClips, actions: Sequence[Actions], seeds: Sequence[Sequence[int]]) -> None:
        """Read the frames with which B clips begin.

        Args:
            context: C frames of each clip, C below `num_frames`.
            actions: C actions of each clip; action i leads into frame i. Some models do not read the first.
            seeds: C seeds of each clip, one for the draws of each frame.
        """

    def step(self, actions: Sequence[Actions], seeds: Sequence[int]) -> Tensor:
        """Draw the next frame of each clip.

        Args:
            actions: one action of each clip, which leads into the new frame.
            seeds: one seed of each clip, for all draws of the new frame.

        Returns:
            The codes of the frames, int64 [B, N] or float32 [B, D, h, w].
        """
