"""The state of an engine: whole float32 weights and AdamW moments by name.

A state is a flat mapping: `weight/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME` of each parameter that trains, and
`num_updates`. All engines, numbers of ranks and ZeRO stages write and read this same format.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import numpy.typing as npt
from torch import nn

from rlir_ray.transfer.weights import Weights

State = Mapping[str, npt.NDArray[np.generic]]

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")
NUM_UPDATES = "num_updates"


class Part(State):
    """Some entries of a state, read on demand, because a state may be a file that is larger than a rank's memory."""

    def __init__(self, whole: State, names: Collection[str]) -> None:
        self._whole, self._names = whole, names

    def __getitem__(self, name: str) -> npt.NDArray[np.generic]:
        if name not in self._names:
            raise KeyError(name)
        return self._whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that train, by name."""
    return {name: weight for name, weight in module.named_parameters() if weight.requires_grad}


def check_fits(state: State, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a state fits a policy whose trained parameters have these names and shapes.

    Raises:
        ValueError: the state belongs to another policy.
    """
    expected = {f"{part}/{name}" for part in (WEIGHT, *MOMENTS) for name in shapes} | {NUM_UPDATES}
    if differing := sorted(expected ^ set(state)):
        raise ValueError(
            f"a checkpoint must hold the {len(expected)} arrays that the policy trains, got {len(state)}, first "
            f"difference {differing[0]!r}; use the models and the adapter of the checkpoint"
        )
    for name, shape in shapes.items():
        if (got := state[f"{WEIGHT}/{name}"].shape) != shape:
            raise ValueError(f"a checkpoint's {name} must be {shape}, got {got}; use the models of the checkpoint")


def num_updates(state: State) -> int:
    """Return the number of updates of a state."""
    return int(state[NUM_UPDATES])


def with_count(state: Weights, count: int) -> Weights:
    """Add the number of updates to a state."""
    return state | {NUM_UPDATES: np.array(count, np.int64)}
