"""Action dropout: training hides the action of each frame alone, so that a model also knows frames without an action.

Action guidance needs such a model (Vid2World, https://arxiv.org/abs/2505.14357).
Legend: B windows, W frames of a window.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def hidden_actions(probability: float, seed: int, step: int, shape: tuple[int, int]) -> Tensor:
    """Draw which actions a step hides, each alone.

    Args:
        probability: chance that an action is hidden.
        seed: seed of the training.
        step: number of earlier updates, so that a resumed training hides the same actions.
        shape: (B, W - 1); no action leads into the first frame.

    Returns:
        bool [B, W - 1].
    """
    return torch.from_numpy(np.random.default_rng([seed, step, 1]).random(shape) < probability)
