"""Group-relative advantages from per-frame rewards. Numpy only; knows nothing of tokens or steps.

Legend: G trajectories of a group, F generated frames.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def returns(frame_rewards: Floats, credit: str, discount: float) -> npt.NDArray[np.float64]:
    """What each frame's decisions are credited with.

    RLIR (https://arxiv.org/abs/2509.23958) credits a clip with its mean reward. A frame cannot change the rewards of
    the frames before it: crediting it with the later ones alone leaves the expected gradient the same and lowers its
    variance (reward-to-go, https://arxiv.org/abs/1506.02438, section 2).

    Args:
        frame_rewards: [G, F].
        credit: `clip`: every frame gets the clip's mean; `frame`: the discounted sum of the rewards from it on.
        discount: of a frame's successors, in [0, 1]; `frame` only.

    Returns:
        [G, F].
    """
    rewards = _matrix(frame_rewards).astype(np.float64)
    if credit == "clip":
        return np.repeat(rewards.mean(axis=1, keepdims=True), rewards.shape[1], axis=1)
    if credit != "frame":
        raise ValueError(f"reward.credit must be one of clip, frame, got {credit!r}; use clip")
    credited = rewards.copy()
    for frame in reversed(range(rewards.shape[1] - 1)):
        credited[:, frame] += discount * credited[:, frame + 1]
    return credited


def has_signal(group_returns: Floats, min_reward_std: float) -> bool:
    """Whether a group's trajectories differ by more than rounding; one that does not is dropped before the learner.

    Args:
        group_returns: [G, F], what is compared between trajectories: the result of `returns`.
        min_reward_std: the least standard deviation within the group that counts.
    """
    return _pooled_std(_centred(group_returns)) > min_reward_std


def group_advantages(group_returns: Floats, kind: str) -> npt.NDArray[np.float32]:
    """Returns relative to the group.

    Args:
        group_returns: [G, F].
        kind: `grpo` subtracts each frame's group mean and divides by the group's standard deviation
            (https://arxiv.org/abs/2402.03300); `dr_grpo` subtracts the mean only (https://arxiv.org/abs/2503.20783).

    Returns:
        [G, F], zeros where the group does not vary. The standard deviation is the population's, pooled over all frames,
        so that frames on which the group nearly agrees are not blown up.
    """
    centred = _centred(group_returns)
    if kind == "dr_grpo":
        return centred.astype(np.float32)
    if kind != "grpo":
        raise ValueError(f"train.advantage must be one of grpo, dr_grpo, got {kind!r}; use grpo")
    std = _pooled_std(centred)
    return (centred / std if std > 0 else np.zeros_like(centred)).astype(np.float32)


def advantages_from_rewards(
    frame_rewards: Floats, *, credit: str, discount: float, kind: str, min_reward_std: float
) -> npt.NDArray[np.float32] | None:
    """Rewards of one group to its advantages, [G, F] to [G, F]; None: the group carries no signal."""
    group_returns = returns(frame_rewards, credit, discount)
    return group_advantages(group_returns, kind) if has_signal(group_returns, min_reward_std) else None


def _matrix(values: Floats) -> Floats:
    if values.ndim != 2:
        raise ValueError(f"rewards must be [G, F], got {values.shape}; give one row a trajectory")
    return values


def _centred(group_returns: Floats) -> npt.NDArray[np.float64]:
    values = _matrix(group_returns).astype(np.float64)
    return values - values.mean(axis=0, keepdims=True)


def _pooled_std(centred: Floats) -> float:
    return float(np.sqrt(np.mean(centred**2)))
