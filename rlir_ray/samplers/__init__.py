"""Samplers: one file per engine. A sampler turns prompts into trajectory groups and takes new weights."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from rlir_ray.models.autoregressive import WorldModel
    from rlir_ray.trajectory import EncodedVideo, Prompt, TrajectoryGroup

# Engine -> module:class, imported when asked for, so that no engine's library loads with another.
SAMPLERS = {"torch": "rlir_ray.samplers.torch_sampler:TorchSampler"}


class Sampler(Protocol):
    """What a rollout actor holds."""

    policy_version: int

    def sample(
        self, prompts: Sequence[Prompt], group_ids: Sequence[int], seeds: Sequence[int], group_size: int
    ) -> list[tuple[TrajectoryGroup, EncodedVideo]]: ...

    def load_weights(self, weights: dict[str, npt.NDArray[np.generic]], version: int) -> None: ...


def make_sampler(engine: str, model: WorldModel, *, temperature: float, top_p: float = 1.0) -> Sampler:
    """The sampler of `rollout.engine`; rollouts keep `top_p` at 1."""
    if engine not in SAMPLERS:
        raise ValueError(f"rollout.engine must be one of {', '.join(SAMPLERS)}, got {engine!r}; try torch")
    module, name = SAMPLERS[engine].split(":")
    sampler: Any = getattr(importlib.import_module(module), name)
    return sampler(model, temperature=temperature, top_p=top_p)
