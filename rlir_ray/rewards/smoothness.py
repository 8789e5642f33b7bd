"""The term `smoothness`: recovered axes that move evenly, after the kinematic reward of EVA (arXiv 2603.17808).

Legend: G trajectories of a group, C context frames, F generated frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlir_ray.config import require
from rlir_ray.idm.base import axis_values
from rlir_ray.rewards.term import GroupClips, Term
from rlir_ray.spaces.fields import Axis

if TYPE_CHECKING:
    from rlir_ray.rewards.base import RewardContext


class SmoothnessTerm(Term):
    """Minus the weighted sizes of the first, second and third differences of the recovered axes.

    The inverse dynamics model gives the expected value of each axis in each frame, as a share of the axis's range. If
    an axis is a position, as in a robot's action, the differences are its velocity, acceleration and jerk a frame.

    Args:
        axes: fields of world.groups that are axes.
        velocity, acceleration, jerk: weights, 0 or more, one of them above 0.
    """

    reads_idm = True

    def __init__(
        self, axes: Sequence[str], velocity: float = 1.0, acceleration: float = 1.0, jerk: float = 1.0
    ) -> None:
        self.axes, self.weights = tuple(axes), (velocity, acceleration, jerk)
        require(
            min(self.weights) >= 0 < max(self.weights),
            "args of the term smoothness",
            "must have weights >= 0, one of them > 0",
            self.weights,
            "use velocity: 1",
        )

    @classmethod
    def from_context(
        cls, context: RewardContext, velocity: float = 1.0, acceleration: float = 1.0, jerk: float = 1.0
    ) -> SmoothnessTerm:
        return cls(context.config.world.groups, velocity, acceleration, jerk)

    def score(self, clips: GroupClips) -> Tensor:
        """Return minus the cost of each generated frame, [G, F], averaged over the axes.

        A difference that needs the action into the clip's first frame, or an earlier one, counts as 0.

        Raises:
            ValueError: world.groups names no axis.
        """
        assert clips.recovered is not None
        fields = [field for field in clips.actions.space.select(self.axes) if isinstance(field, Axis)]
        require(
            bool(fields),
            "world.groups",
            "must name an axis for the term smoothness",
            ",".join(self.axes),
            "leave the term out, or add an axis",
        )
        tables = clips.recovered.probabilities
        shares = torch.stack(
            [axis_values(tables[field.name], field) / (field.high - field.low) for field in fields], -1
        )  # [G, C + F, axes]
        costs = torch.zeros(shares.shape[:2])
        difference = shares[:, 1:]  # no action leads into the first frame
        for order, weight in enumerate(self.weights, start=1):
            difference = difference.diff(dim=1)
            if not difference.shape[1]:
                break
            costs[:, 1 + order :] += weight * difference.abs().mean(-1)
        return -costs[:, clips.num_context :]
