"""A term of the reward: the base class of terms, and what a term sees of a group of clips.

Legend: G trajectories of a group, C context frames, F generated frames, H W pixels, K classes of a field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from rlir_ray.spaces.space import Actions

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Recovered:
    """What the reward's inverse dynamics model reads in the clips of a group; index k belongs to frame k."""

    probabilities: Mapping[str, Tensor]
    """Field of world.groups -> float32 [G, C + F, K], on the CPU."""
    classes: Tensor
    """int64 [G, C + F, fields], the most probable classes, in the order of world.groups."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupClips:
    """The decoded clips of one group. All terms of a reward share one decoding and one reading.

    Example: 8 clips of 1 context frame and 8 generated frames: ``frames [8, 9, 48, 64, 3]``, ``len(commanded) == 8``.
    """

    frames: Tensor
    """uint8 [G, C + F, H, W, 3], context frames first, on the reward's device; for a term with a `runtime_env` a numpy
    array."""
    num_context: int
    actions: Actions
    """C - 1 + F actions, the same for all clips; action i leads into frame i + 1."""
    policy_version: int = 0
    """Version of the weights that sampled: the number of the policy's optimiser steps."""
    recorded: Tensor | None = None
    """uint8 [F, H, W, 3], the recorded future through the codec; None: no term has `reads_recorded`."""
    recovered: Recovered | None = None
    """What the inverse dynamics model reads; None: no term has `reads_idm`."""

    @property
    def generated(self) -> Tensor:
        """The generated frames, uint8 [G, F, H, W, 3]."""
        return self.frames[:, self.num_context :]

    @property
    def commanded(self) -> Actions:
        """The F commanded actions; action i leads into generated frame i."""
        return self.actions[self.num_context - 1 :]


class Term:
    """Base class of the members of the axis `rewards`: one number for each generated frame, higher is better.

    A run names a term in `reward.terms`; each replica of the reward pool builds it by `Class(**args)`, or by
    `Class.from_context(context, **args)` if the class has this method. A term must give a group the same rewards alone
    and together with other groups; `rlir_ray.testing.check_reward_term` checks it.
    """

    reads_idm: ClassVar[bool] = False
    """Whether `score` needs `GroupClips.recovered`, which models.reward_idm reads."""
    reads_recorded: ClassVar[bool] = False
    """Whether `score` needs `GroupClips.recorded`, the recorded future of the prompt."""
    reads_real: ClassVar[bool] = False
    """Whether `from_context` calls `RewardContext.real` for real clips."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Names of the arguments that are paths. A run makes them absolute, because a replica may run in another folder."""

    def score(self, clips: GroupClips) -> npt.NDArray[np.floating] | Tensor:
        """Return a number for each generated frame of each clip, float [G, F]."""
        raise NotImplementedError(f"{type(self).__name__} must have score(clips) -> [G, F]")
