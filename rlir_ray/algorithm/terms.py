"""Combine the terms of a reward: as rewards, as advantages or as losses. Numpy only.

Legend: K terms, G trajectories of a group, F generated frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rlir_ray.algorithm.advantages import Floats, group_advantages, has_signal, returns


def weighted_rewards(
    terms: Sequence[Floats], weights: Sequence[float], by_group: Sequence[bool]
) -> npt.NDArray[np.float32]:
    """Sum the rewards of the terms.

    Args:
        terms: the rewards of each term, [G, F] each.
        weights: factor of each term.
        by_group: whether each term is normalised: subtract each frame's mean over the group and divide by the group's
            standard deviation, so that all terms have one scale.

    Returns:
        float32 [G, F].
    """
    scaled = [
        weight * (group_advantages(rewards, "grpo") if is_scaled else rewards)
        for rewards, weight, is_scaled in zip(terms, weights, by_group, strict=True)
    ]
    total: npt.NDArray[np.float64] = np.sum(np.stack(scaled), 0, dtype=np.float64)
    return total.astype(np.float32)


def term_advantages(
    terms: Sequence[Floats],
    by_group: Sequence[bool],
    *,
    credit: str,
    discount: float,
    min_reward_std: float,
    lookback: int = 0,
) -> npt.NDArray[np.float32] | None:
    """Compute the advantages of each term alone, without its weight, so that a large term cannot drown another.

    Args:
        terms: the rewards of each term, [G, F] each.
        by_group: whether each term is divided by its standard deviation within the group.
        credit, discount, lookback: as for `returns`.
        min_reward_std: a term whose returns vary less gets the advantages 0.

    Returns:
        float32 [K, G, F]; None: no term carries a signal.
    """
    found = []
    for rewards, is_scaled in zip(terms, by_group, strict=True):
        group_returns = returns(rewards, credit, discount, lookback)
        advantages = group_advantages(group_returns, "grpo" if is_scaled else "dr_grpo")
        found.append(advantages if has_signal(group_returns, min_reward_std) else np.zeros_like(advantages))
    return np.stack(found) if any(advantages.any() for advantages in found) else None


def weighted_sum(advantages: npt.NDArray[np.float32], weights: Sequence[float]) -> npt.NDArray[np.float32]:
    """Sum the advantages of the terms by their weights, [K, G, F] to [G, F]."""
    total: npt.NDArray[np.float32] = np.tensordot(np.asarray(weights, np.float32), advantages, axes=1)
    return total
