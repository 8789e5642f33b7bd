"""The supervised part of a step: the pretraining loss of the recorded clip of each group's prompt.

Legend: B groups of a micro-batch, C context and F generated frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.algorithm.batching import MicroBatch, micro_batches
from rlir_ray.algorithm.seeds import trajectory_seed
from rlir_ray.learner.objectives import Metrics
from rlir_ray.models.clip_losses import ClipLoss
from rlir_ray.models.rescoring import Forward
from rlir_ray.trajectory import TrajectoryGroup

SUPERVISED = "loss/supervised"


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedClips:
    """The recorded clips of one rank's groups in a step.

    Each clip counts once, however many trajectories its group has.
    """

    groups: Sequence[TrajectoryGroup]
    clip_loss: ClipLoss
    """Of the policy's family."""
    coefficient: float
    """Weight of the mean loss over the clips of the whole step."""
    num_clips: int
    """Clips of the whole step, over all ranks."""
    step: int
    """Number of the learner's step, for the draws."""

    def __post_init__(self) -> None:
        if bare := [group.group_id for group in self.groups if group.recorded is None]:
            raise ValueError(
                f"train.supervised_coefficient needs groups with a recorded clip, got none in group {bare[0]}; give "
                "your prompts their recorded frames (Prompt.recorded), and let your sampler keep them"
            )

    def batches(self, decision_budget: int, num_batches: int | None = None) -> list[MicroBatch]:
        """Cut the clips into micro-batches of one row a group; see `micro_batches`."""
        shapes = [(1, group.loss_mask.shape[1], _layout(group)) for group in self.groups]
        return micro_batches(shapes, decision_budget, num_batches)

    def loss(self, forward: Forward, micro: MicroBatch, device: torch.device) -> tuple[Tensor, Metrics]:
        """Return the weighted loss of a micro-batch, to be summed over micro-batches and ranks, and its metric.

        The metric is this part of the mean loss over the clips of the step, before its coefficient.
        """
        groups = [self.groups[row.group] for row in micro.rows]
        # The rollouts of a group have the same context and actions: take its first one.
        rollouts = {
            entry.name: [getattr(group.record, entry.name) for group in groups]
            for entry in dataclasses.fields(groups[0].record)
        }
        columns = {
            name: None if whole[0] is None else _stack([each[0] for each in whole], device)
            for name, whole in rollouts.items()
        }
        # The draws of a clip need a row that no trajectory has.
        seeds = [trajectory_seed(group.seed, group.group_size, self.step) for group in groups]
        record = type(groups[0].record)(**columns)  # type: ignore[arg-type]  # tensors of the same class's columns
        recorded = _stack([group.recorded for group in groups if group.recorded is not None], device)
        errors = self.clip_loss(forward, record, recorded, seeds)
        mean = errors.sum() * (0.0 if micro.is_empty else 1 / self.num_clips)
        return self.coefficient * mean, {SUPERVISED: mean.detach()}


def _layout(group: TrajectoryGroup) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a group's clip; only clips with equal shapes can be stacked."""
    assert group.recorded is not None
    columns = (getattr(group.record, entry.name) for entry in dataclasses.fields(group.record))
    return group.recorded.shape, *(column.shape[1:] for column in columns if column is not None)


def _stack(arrays: Sequence[npt.NDArray[np.generic]], device: torch.device) -> Tensor:
    stacked = np.stack(arrays)
    # Torch has few operations on unsigned and short numbers.
    wide = stacked.astype(np.float32 if stacked.dtype.kind == "f" else np.int64)
    return torch.from_numpy(wide).to(device)
