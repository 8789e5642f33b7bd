"""Gymnasium action spaces as fields of an `ActionSpace`, and actions of an environment as rows of values.

The order of the fields is that of the space object: it is stored with recordings and never derived again.
Legend: D fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rlir_ray.spaces.fields import Axis, Choice, Uniform

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
            yield _axis(f"{path}/{index}", least, most, num_bins, is_integer=np.issubdtype(space.dtype, np.integer))
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


def _axis(name: str, least: float, most: float, num_bins: int, *, is_integer: bool) -> Axis:
    """Return the axis of one number of a Box; with a bin for each integer, the bins' centres are the integers."""
    if not np.isfinite([least, most]).all():
        raise ValueError(
            f"a Box must be bounded, got {name} from {least:g} to {most:g}; wrap the environment in "
            "gymnasium.wrappers.RescaleAction, or give ActionSpace an Axis with the range of your data"
        )
    if is_integer:
        num_bins = min(num_bins, max(2, round(most - least) + 1))
        least, most = least - 0.5, most + 0.5
    return Axis(name=name, low=float(least), high=float(most), quantizer=Uniform(num_bins=num_bins))


def to_row(space: Space, action: Any) -> npt.NDArray[np.float32]:
    """Convert an action of an environment to values, float32 [D]; the numbers of a Box may have any number type.

    Raises:
        ValueError: the space does not contain the action.
    """
    try:
        return np.asarray(list(_values(space, action)), np.float32)
    except (TypeError, ValueError, KeyError, IndexError):
        line = " ".join(f"an action must be in {space}, got {action!r}; correct the policy".split())
        raise ValueError(line) from None


def _values(space: Space, action: Any) -> Iterator[float]:
    """Yield the values of an action; raise any of the errors that `to_row` catches if it is not in the space."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        if set(action) != set(space.spaces):
            raise KeyError
        for key, member in space.spaces.items():
            yield from _values(member, action[key])
    elif isinstance(space, spaces.Tuple):
        for member, part in zip(space.spaces, action, strict=True):
            yield from _values(member, part)
    else:
        if isinstance(space, spaces.Box):
            # `contains` refuses float64 in a Box of float32, which every sum with a Python number gives.
            action = np.asarray(action).astype(space.dtype, casting="same_kind")
        if not space.contains(action):
            raise ValueError
        start = np.asarray(getattr(space, "start", 0))
        yield from (np.asarray(action) - start).reshape(-1).astype(np.float64)


def from_row(space: Space, row: npt.NDArray[np.float32]) -> Any:
    """Convert values float32 [D] to an action that the environment's `step` takes; the inverse of `to_row`."""
    action, used = _action(space, row)
    assert used == len(row), f"{len(row)} values for a space of {used}"
    return action


def _action(space: Space, row: npt.NDArray[np.float32]) -> tuple[Any, int]:
    """Return the action of the first values of a row, and their number."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict | spaces.Tuple):
        keyed = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        parts: dict[Any, Any] = {}
        used = 0
        for key, member in keyed:
            parts[key], count = _action(member, row[used:])
            used += count
        return (parts if isinstance(space, spaces.Dict) else tuple(parts.values())), used
    start = np.asarray(getattr(space, "start", 0))
    if isinstance(space, spaces.Discrete):
        return int(row[0]) + int(start), 1
    count = int(np.prod(space.shape or ()))
    values = row[:count].reshape(space.shape or ())
    if isinstance(space, spaces.Box):
        # float32 rounds some bounds of a Box of float64 to values outside, and an integer's bin ends between integers.
        values = np.clip(np.rint(values) if np.issubdtype(space.dtype, np.integer) else values, space.low, space.high)
    return (values + start).astype(space.dtype), count
