"""The loss of inverse dynamics models: weighted cross-entropy of their heads.

Legend: B clips, F frames, N frames of all recordings. Index 0 of a clip has no frame before it and is never scored.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.idm.vpt_network import Logits
from rlir_ray.pretrain.windows import NUM_BUTTONS
from rlir_ray.spaces.actions import GROUPS


def class_weights(labels: npt.NDArray[np.int64], num_classes: int) -> Tensor:
    """Square root of the inverse frequency, within 0.5..3, so that rare classes are learnt.

    Args:
        labels: int64 [N, heads].

    Returns:
        float32 [heads, num_classes]; 1 for a class that never occurs.
    """
    counts = np.stack([np.bincount(column, minlength=num_classes) for column in labels.T])
    frequency = np.maximum(counts, 1) / len(labels)
    seen = (counts > 0).sum(1, keepdims=True)
    weights = np.clip((1 / (seen * frequency)) ** 0.5, 0.5, 3)
    return torch.from_numpy(np.where(counts > 0, weights, 1)).float()


def head_weights(groups: Sequence[str], idle: float) -> tuple[Tensor, Tensor]:
    """1 for the heads that the groups read and `idle` for the others: buttons [20], camera [2]."""
    buttons, camera = torch.full((NUM_BUTTONS,), idle), torch.full((2,), idle)
    for group in map(GROUPS.__getitem__, groups):
        if group.camera_axis is not None:
            camera[group.camera_axis] = 1
        buttons[group.columns] = 1
    return buttons, camera


def inverse_dynamics_loss(
    logits: Logits,
    buttons: Tensor,
    camera: Tensor,
    button_weights: Tensor,
    camera_weights: Tensor,
) -> Tensor:
    """Weighted cross-entropy of all heads, summed over heads, averaged over frames 1..F-1.

    Args:
        logits: buttons [B, F, 20, 2] and camera [B, F, 2, 11], log-probabilities.
        buttons: int64 [B, F, 20].
        camera: int64 [B, F, 2].
        button_weights: [20, 2].
        camera_weights: [2, 11].
    """
    total = logits["buttons"].new_zeros(())
    pairs = ((logits["buttons"], buttons, button_weights), (logits["camera"], camera, camera_weights))
    for log_probabilities, labels, weights in pairs:
        picked = log_probabilities.gather(-1, labels[..., None])[..., 0]
        weight = weights[torch.arange(len(weights), device=labels.device), labels]  # [B, F, heads]
        total = total - (weight * picked)[:, 1:].sum(-1).mean()
    return total
