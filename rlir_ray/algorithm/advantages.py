"""Group-relative advantages from per-frame rewards. Numpy only; independent of tokens and steps.

Legend: G trajectories of a group, F generated frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GroupAdvantages:
    """The trajectories of a group that train, and their advantages.

    Example: the best and the worst of eight clips of eight frames: ``rows == [3, 6]``, ``values [2, 8]``.
    """

    values: npt.NDArray[np.float32]
    """[rows, F], advantages of these trajectories."""
    rows: npt.NDArray[np.int64]
    """Row of each trajectory in the group."""
    terms: npt.NDArray[np.float32] | None = None
    """[K, rows, F], the weighted advantages of each term, whose losses are summed; None: one loss of `values`."""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.values) != len(self.rows) or not len(self.rows):
            raise ValueError(
                f"advantages must be [rows, F], got {self.values.shape} for {len(self.rows)} rows; align them"
            )

    @classmethod
    def of_all(cls, values: npt.NDArray[np.float32]) -> GroupAdvantages:
        """Train every trajectory; values [G, F]."""
        return cls(values, np.arange(len(values)))


def returns(frame_rewards: Floats, credit: str, discount: float, lookback: int = 0) -> npt.NDArray[np.float64]:
    """Compute the return that is credited to the decisions of each frame.

    RLIR (https://arxiv.org/abs/2509.23958) credits a clip with its mean reward. Credit by frame is reward-to-go
    (https://arxiv.org/abs/1506.02438, section 2), extended by `lookback` earlier frames. At discount 1 it keeps the
    expected gradient, up to the factor F, if a frame changes the rewards of no frames before these. So the lookback
    must be the reach of the IDM: if the IDM reads frame k from frames 0 to k + n, frame k + n also changes the reward
    of frame k, and n is the reach. With a smaller lookback or a discount below 1, credit by frame trades a bias for
    less variance.

    Args:
        frame_rewards: [G, F].
        credit: `clip`: every frame gets the clip's mean reward; `frame`: every frame gets the discounted sum of its
            own reward, the later ones, and those of `lookback` earlier frames.
        discount: factor for each frame of distance, in [0, 1]; `frame` only.
        lookback: number of earlier frames whose rewards a frame also earns, 0 or more; `frame` only.

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
    for distance in range(1, min(lookback, rewards.shape[1] - 1) + 1):
        credited[:, distance:] += discount**distance * rewards[:, :-distance]
    return credited


def has_signal(group_returns: Floats, min_reward_std: float) -> bool:
    """Return whether the trajectories of a group differ by more than rounding; other groups are dropped.

    Args:
        group_returns: [G, F], from `returns`.
        min_reward_std: a group must have a larger standard deviation than this.
    """
    return _pooled_std(_centred(group_returns)) > min_reward_std


def group_advantages(group_returns: Floats, kind: str) -> npt.NDArray[np.float32]:
    """Compute the returns relative to the group.

    Args:
        group_returns: [G, F].
        kind: a key of `KINDS`: `grpo` subtracts each frame's group mean and divides by the group's standard deviation
            (https://arxiv.org/abs/2402.03300); `dr_grpo` subtracts the mean only (https://arxiv.org/abs/2503.20783);
            `rloo` subtracts the mean of the other trajectories, which is the centred return times G / (G - 1)
            (https://arxiv.org/abs/2402.14740); `batch_std` subtracts the mean, and `step_advantages` divides by the
            standard deviation of the step. That is REINFORCE++'s baseline form (https://arxiv.org/abs/2501.03262): its
            code also subtracts the mean over the step, which is 0 here, because every trajectory has as many decisions.

    Returns:
        [G, F], zeros where the group does not vary. The standard deviation is the population's, pooled over all frames:
        dividing each frame by its own deviation would amplify frames on which the trajectories nearly agree.
    """
    centred = _centred(group_returns)
    if kind not in KINDS:
        raise ValueError(f"train.advantage must be one of {', '.join(KINDS)}, got {kind!r}; use grpo")
    return KINDS[kind](centred).astype(np.float32)


def _over_own_std(centred: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    std = _pooled_std(centred)
    return centred / std if std > 0 else np.zeros_like(centred)


KINDS: dict[str, Callable[[Doubles], Doubles]] = {
    "grpo": _over_own_std,
    "batch_std": lambda centred: centred,
    "dr_grpo": lambda centred: centred,
    "rloo": lambda centred: centred * len(centred) / max(len(centred) - 1, 1),
}
"""train.advantage -> function from a group's centred returns to its advantages."""


def step_advantages(
    groups: Sequence[npt.NDArray[np.float32]],
    *,
    kind: str,
    max_advantage: float = 0.0,
    num_best: int = 0,
    num_worst: int = 0,
    term_weights: Sequence[float] = (),
) -> list[GroupAdvantages]:
    """Compute the advantages of a step from all its groups: normalise, clamp and select.

    Args:
        groups: [G, F] each, from `group_advantages`; with `term_weights` [K, G, F] each, from `terms.term_advantages`.
        kind: as for `group_advantages`; `batch_std` divides by the standard deviation over all groups of the step.
        max_advantage: clamp to this size; 0: do not clamp.
        num_best, num_worst: train only this many of the best and of the worst trajectories of a group; both 0: all.
        term_weights: weight of each term whose loss is summed; each term is clamped alone, as in DanceGRPO
            (https://arxiv.org/abs/2505.07818). Empty: one loss.
    """
    scaled = over_batch_std(groups) if kind == "batch_std" else list(groups)
    if max_advantage > 0:
        scaled = [np.clip(group, -max_advantage, max_advantage) for group in scaled]
    if not term_weights:
        return [_select(group, None, num_best, num_worst) for group in scaled]
    weights = np.asarray(term_weights, np.float32)[:, None, None]
    return [_select((weights * group).sum(0), weights * group, num_best, num_worst) for group in scaled]


def _select(
    values: npt.NDArray[np.float32], terms: npt.NDArray[np.float32] | None, num_best: int, num_worst: int
) -> GroupAdvantages:
    """Select the trajectories of a group that train; values [G, F], terms [K, G, F]."""
    if not num_best + num_worst:
        return GroupAdvantages(values, np.arange(len(values)), terms)
    rows = best_and_worst_rows(values, num_best, num_worst)
    return GroupAdvantages(values[rows], rows, None if terms is None else terms[:, rows])


def over_batch_std(groups: Sequence[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
    """Divide centred returns by the standard deviation over all groups of a step, [G, F] each.

    A group with a small deviation weighs less than under `grpo`. Flow-GRPO (https://arxiv.org/abs/2505.05470) divides
    by the deviation of the raw rewards, which includes the differences between prompts; this function excludes them.
    """
    std = _pooled_std(np.concatenate([group.ravel() for group in groups]).astype(np.float64))
    return [(group / std).astype(np.float32) if std > 0 else np.zeros_like(group) for group in groups]


def best_and_worst_rows(group: Floats, num_best: int, num_worst: int) -> npt.NDArray[np.int64]:
    """Select the rows of [G, F] with the highest and the lowest means, in ascending order of row.

    DanceGRPO (https://arxiv.org/abs/2505.07818) trains these only: the rows between add little signal for their cost.
    """
    order = np.argsort(group.mean(axis=1), kind="stable")
    return np.sort(np.concatenate([order[:num_worst], order[len(order) - num_best :]]))


def advantages_from_rewards(
    frame_rewards: Floats, *, credit: str, discount: float, kind: str, min_reward_std: float, lookback: int = 0
) -> npt.NDArray[np.float32] | None:
    """Turn the rewards of one group into advantages, [G, F] to [G, F]; None: the group carries no signal."""
    group_returns = returns(frame_rewards, credit, discount, lookback)
    return group_advantages(group_returns, kind) if has_signal(group_returns, min_reward_std) else None


def _matrix(values: Floats) -> Floats:
    if values.ndim != 2:
        raise ValueError(f"rewards must be [G, F], got {values.shape}; give one row a trajectory")
    return values


def _centred(group_returns: Floats) -> npt.NDArray[np.float64]:
    values = _matrix(group_returns).astype(np.float64)
    centred: Doubles = values - values.mean(axis=0, keepdims=True)
    return centred


def _pooled_std(centred: Floats) -> float:
    return float(np.sqrt(np.mean(centred**2)))
