"""Samplers: one file per engine. A sampler turns prompts into trajectory groups and takes new weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rlir_ray.trajectory import EncodedVideo, Prompt, TrajectoryGroup


class Sampler(Protocol):
    """What a rollout actor holds."""

    policy_version: int

    def sample(
        self, prompts: Sequence[Prompt], group_ids: Sequence[int], seeds: Sequence[int], group_size: int
    ) -> list[tuple[TrajectoryGroup, EncodedVideo]]: ...

    def load_weights(self, weights: dict[str, npt.NDArray[np.generic]], version: int) -> None: ...
