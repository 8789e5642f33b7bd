"""Flow matching on sampled clips: noise is added to clean latents, and a policy's velocities are compared with it.

This needs the clean latents of a clip only, so that any solver may have sampled it, in few steps too.
Legend: B clips, F generated frames, K levels of a sampler, S pairs of a level and a noise for each frame, N numbers of
a latent, D h w a latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlir_ray.algorithm.flow_losses import matching_errors
from rlir_ray.algorithm.flow_steps import interpolate
from rlir_ray.config import FlowConfig
from rlir_ray.models.rescoring import Forward, Scores, stream_velocities
from rlir_ray.trajectory import FlowRecord


def draw_pairs(seeds: Sequence[int], clean: Tensor, levels: Tensor, num_pairs: int) -> tuple[Tensor, Tensor]:
    """Draw levels and noise of each clip's frames from the clip's seed, whatever clips share the call.

    Args:
        seeds: [B].
        clean: [B, F, 1, D, h, w].
        levels: [K]; each pair takes one of them, all with the same probability.
        num_pairs: S.

    Returns:
        Levels [B, F, S] and noise [B, F, S, D, h, w], on the device of `clean`.
    """
    num_frames, parts = clean.shape[1], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        picks = torch.randint(len(levels), (num_frames, num_pairs), generator=generator)
        parts.append((levels[picks], torch.randn(num_frames, num_pairs, *clean.shape[3:], generator=generator)))
    drawn, noises = (torch.stack(column).to(clean.device) for column in zip(*parts, strict=True))
    return drawn, noises


@dataclass(frozen=True, slots=True)
class FlowMatcher:
    """Scores clean clips by their flow-matching errors; as a `Rescore`, at the pairs of the record's own seeds."""

    levels: Tensor
    """[K], the levels of the sampler's steps, all above 0."""
    num_pairs: int
    """S."""
    error: str = "velocity"
    """As for `matching_errors`."""
    span: int | None = None
    """Of the policy, see `first_read`."""

    @classmethod
    def of(cls, policy: nn.Module, flow: FlowConfig, num_pairs: int, error: str = "velocity") -> FlowMatcher:
        """Return the matcher of a policy at the levels of its sampler."""
        # Any: a policy of the flow family has these attributes.
        model: Any = policy
        return cls(model.sampling_levels(flow.num_steps, flow.shift)[:-1], num_pairs, error, model.span)

    def __call__(self, forward: Forward, record: FlowRecord[Tensor], num_decisions: int) -> Scores:
        assert record.pair_seeds is not None and num_decisions == record.latents.shape[1] * self.num_pairs
        return self.scores(forward, record, record.pair_seeds.tolist())

    def scores(self, forward: Forward, record: FlowRecord[Tensor], seeds: Sequence[int]) -> Scores:
        """Score clips at the pairs that their seeds draw.

        Args:
            forward: the forward pass of the policy or the reference.
            record: the clips, B rows.
            seeds: [B].

        Returns:
            `logprobs` [B, F * S] are the negative errors, which are no log-probabilities but fall with them; `means`
            [B, F * S, N] are the velocities.
        """
        clean = record.latents[:, :, -1:]  # [B, F, 1, D, h, w]
        levels, noise = draw_pairs(seeds, clean, self.levels, self.num_pairs)
        velocities = stream_velocities(forward, record, interpolate(clean, noise, levels), levels, self.span)
        velocities, noise = velocities.flatten(3), noise.flatten(3)  # [B, F, S, N]
        errors = matching_errors(velocities, clean.flatten(3), noise, levels, self.error)
        return Scores(logprobs=-errors.flatten(1), means=velocities.flatten(1, 2))
