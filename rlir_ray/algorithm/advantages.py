"""Group-relative advantages from per-frame rewards. Numpy only; knows nothing of tokens or steps.

Legend: G trajectories of a group, F generated frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class GroupAdvantages:
    """Which trajectories of a group train, and how.

    Example: the best and the worst of eight clips of eight frames: ``rows == [3, 6]``, ``values [2, 8]``.
    """

    values: npt.NDArray[np.float32]
    """[rows, F]."""
    rows: npt.NDArray[np.int64]
    """Rows of the group."""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.values) != len(self.rows) or not len(self.rows):
            raise ValueError(
                f"advantages must be [rows, F], got {self.values.shape} for {len(self.rows)} rows; align them"
            )

    @classmethod
    def of_all(cls, values: npt.NDArray[np.float32]) -> GroupAdvantages:
        """Every trajectory trains; values [G, F]."""
        return cls(values, np.arange(len(values)))


def returns(frame_rewards: Floats, credit: str, discount: float) -> npt.NDArray[np.float64]:
    """What each frame's decisions are credited with.

    RLIR (https://arxiv.org/abs/2509.23958) credits a clip with its mean reward. Credit by frame is reward-to-go
    (https://arxiv.org/abs/1506.02438, section 2). It leaves the expected gradient the same, at discount 1 and up to
    the number of frames, only where a frame cannot change the rewards of the frames before it: under a judge that
    reads frame k from frames 0 to k alone. VPT's and ours also see later frames, so that there it is a bias for less
    variance: how a frame helps its predecessors to be read is not credited.

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
        kind: a key of `KINDS`: `grpo` subtracts each frame's group mean and divides by the group's standard deviation
            (https://arxiv.org/abs/2402.03300); `dr_grpo` subtracts the mean only (https://arxiv.org/abs/2503.20783);
            `batch_std` too, and `step_advantages` divides by the step's.

    Returns:
        [G, F], zeros where the group does not vary. The standard deviation is the population's, pooled over all frames,
        so that frames on which the group nearly agrees are not blown up.
    """
    centred = _centred(group_returns)
    if kind not in KINDS:
        raise ValueError(f"train.advantage must be one of {', '.join(KINDS)}, got {kind!r}; use grpo")
    return KINDS[kind](centred).astype(np.float32)


def _over_own_std(centred: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    std = _pooled_std(centred)
    return centred / std if std > 0 else np.zeros_like(centred)


KINDS = {"grpo": _over_own_std, "batch_std": lambda centred: centred, "dr_grpo": lambda centred: centred}
"""train.advantage -> what becomes of a group's centred returns."""


def step_advantages(
    groups: Sequence[npt.NDArray[np.float32]], *, kind: str, max_advantage: float = 0.0, best_and_worst: int = 0
) -> list[GroupAdvantages]:
    """What a step trains with, once all its groups are there.

    Args:
        groups: [G, F] each, of `group_advantages`.
        kind: of the same; `batch_std` divides by the standard deviation of all of them together.
        max_advantage: clamps, where above 0.
        best_and_worst: keeps so many of each end of a group, where above 0.
    """
    scaled = over_batch_std(groups) if kind == "batch_std" else list(groups)
    if max_advantage > 0:
        scaled = [np.clip(group, -max_advantage, max_advantage) for group in scaled]
    if not best_and_worst:
        return [GroupAdvantages.of_all(group) for group in scaled]
    chosen = [best_and_worst_rows(group, best_and_worst) for group in scaled]
    return [GroupAdvantages(group[rows], rows) for group, rows in zip(scaled, chosen, strict=True)]


def over_batch_std(groups: Sequence[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
    """Centred returns over the standard deviation of a step's groups together, [G, F] each.

    Groups that agree then weigh less than with their own deviation. Flow-GRPO (https://arxiv.org/abs/2505.05470)
    divides by that of the batch's raw rewards, in which the differences between prompts count too; here they do not.
    """
    std = _pooled_std(np.concatenate([group.ravel() for group in groups]).astype(np.float64))
    return [(group / std).astype(np.float32) if std > 0 else np.zeros_like(group) for group in groups]


def best_and_worst_rows(group: Floats, count: int) -> npt.NDArray[np.int64]:
    """Rows of the `count` highest and the `count` lowest of [G, F] by their mean, in order.

    DanceGRPO (https://arxiv.org/abs/2505.07818) trains those: the ones between say little for their cost.
    """
    order = np.argsort(group.mean(axis=1), kind="stable")
    return np.sort(np.concatenate([order[:count], order[len(order) - count :]]))


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
