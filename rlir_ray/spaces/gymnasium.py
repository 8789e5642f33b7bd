"""Gymnasium action spaces as fields of an `ActionSpace`.

The order of the fields is that of the space object: it is stored with recordings and never derived again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from rlir_ray.spaces.space import Axis, Choice, Uniform

if TYPE_CHECKING:
    import gymnasium

    # Any: the type of the space's actions, which differs with each space.
    Space = gymnasium.Space[Any]


def fields_of(space: Space, num_bins: int, name: str = "") -> Iterator[Choice | Axis]:
    """Yield the fields of a space, members of a Dict or Tuple by their path.

    Args:
        num_bins: bins of the axes of a Box.
        name: path of the space in the outermost space.

    Raises:
        ValueError: an unbounded Box, or a space without a fixed number of values.
    """
    from gymnasium import spaces

    path = name or "action"
    if isinstance(space, spaces.Discrete):
        yield _choice(path, int(space.n))
    elif isinstance(space, spaces.MultiDiscrete):
        for index, count in enumerate(np.asarray(space.nvec).reshape(-1)):
            yield _choice(f"{path}/{index}", int(count))
    elif isinstance(space, spaces.MultiBinary):
        for index in range(int(np.prod(space.shape))):
            yield Choice(name=f"{path}/{index}", classes=("off", "on"))
    elif isinstance(space, spaces.Box):
        low, high = (np.asarray(bound, np.float64).reshape(-1) for bound in (space.low, space.high))
        for index, (least, most) in enumerate(zip(low, high, strict=True)):
            if not np.isfinite([least, most]).all():
                raise ValueError(
                    f"a Box must be bounded, got {path}/{index} from {least:g} to {most:g}; wrap the environment in "
                    "gymnasium.wrappers.RescaleAction, or give ActionSpace an Axis with the range of your data"
                )
            quantizer = Uniform(num_bins=num_bins)
            yield Axis(name=f"{path}/{index}", low=float(least), high=float(most), quantizer=quantizer)
    elif isinstance(space, spaces.Dict):
        for key, member in space.spaces.items():
            yield from fields_of(member, num_bins, f"{name}/{key}" if name else str(key))
    elif isinstance(space, spaces.Tuple):
        for index, member in enumerate(space.spaces):
            yield from fields_of(member, num_bins, f"{name}/{index}" if name else str(index))
    else:
        raise ValueError(
            f"an action space must have a fixed number of values, got {type(space).__name__} at {path}; wrap the "
            "environment so that it takes Discrete, MultiDiscrete, MultiBinary, Box, Dict or Tuple"
        )


def _choice(name: str, count: int) -> Choice:
    # Gymnasium does not say which class does nothing.
    return Choice(name=name, classes=tuple(str(index) for index in range(count)), null_class=None)
