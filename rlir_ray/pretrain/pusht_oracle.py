"""Upper bound for inverse dynamics models of PushT: recover the actions from the agent's true displacement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from rlir_ray.rewards.regression import r2

AXES = ("dx", "dy")


def oracle_r2(train: Path, validation: Path) -> dict[str, float]:
    """Fit a line from displacement to action on training episodes; return its R² on validation episodes.

    Args:
        train, validation: LeRobot datasets whose `observation.state` begins with the agent's position.
    """
    (fitted, targets), (moved, commands) = _pairs(train), _pairs(validation)
    found = {}
    for axis, name in enumerate(AXES):
        slope, offset = np.polyfit(fitted[:, axis], targets[:, axis], 1)
        found[name] = r2(slope * moved[:, axis] + offset, commands[:, axis])
    return found


def _pairs(dataset: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the displacements and the actions that led to them, [n, 2] each."""
    moved, commands = [], []
    for path in sorted(dataset.glob("data/*/*.parquet")):
        table = pq.read_table(path, columns=["observation.state", "action", "episode_index"])
        states, actions = (np.stack(table[name].to_numpy()) for name in ("observation.state", "action"))
        episodes = table["episode_index"].to_numpy()
        # LeRobot's row t holds the action that leads into row t + 1.
        inside = episodes[1:] == episodes[:-1]
        moved.append(np.diff(states[:, :2], axis=0)[inside])
        commands.append(actions[:-1][inside])
    return np.concatenate(moved).astype(np.float64), np.concatenate(commands).astype(np.float64)
