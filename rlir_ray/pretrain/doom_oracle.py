"""Upper bound for inverse dynamics models: recover the actions from the player's exact displacement, not from pixels.

The bound shows whether a world's actions can be recovered at all. Attack is excluded because it moves no player.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rlir_ray.rewards.classification import confusion, macro_f1
from rlir_ray.spaces.doom import DOOM_FIELDS
from rlir_ray.spaces.vpt import Event, actions_from_events

ORACLE_GROUPS = tuple(name for name in DOOM_FIELDS if name != "use_attack")
NEIGHBORS = 2
# Divisors that bring map units and degrees to about one: the player walks some 30 units and turns up to 10 degrees a
# frame.
SCALES = np.array([20.0, 20.0, 20.0, 5.0], np.float32)


def displacement_features(events: Sequence[Event], neighbors: int = NEIGHBORS) -> npt.NDArray[np.float32]:
    """Return the change of the player's pose around each frame.

    Args:
        events: F events with xpos, ypos, zpos (map units) and yaw (degrees, clockwise).
        neighbors: number of frames on either side whose displacement is included.

    Returns:
        float32 [F, 4 * (2 * neighbors + 1)]: forward, sideways, up and turn of each frame of the window, scaled; zeros
        beyond the ends of the recording.
    """
    pose = np.array([[event["xpos"], event["ypos"], event["zpos"], event["yaw"]] for event in events], np.float64)
    step = np.diff(pose, axis=0, prepend=pose[:1])
    turn = (step[:, 3] + 180) % 360 - 180
    # Direction in which the player looks; x is east, y is north, yaw is clockwise from east.
    heading = -np.radians(pose[:, 3])
    forward = step[:, 0] * np.cos(heading) + step[:, 1] * np.sin(heading)
    side = step[:, 0] * np.sin(heading) - step[:, 1] * np.cos(heading)
    moved = np.stack([forward, side, step[:, 2], turn], 1).astype(np.float32) / SCALES
    padded = np.pad(moved, ((neighbors, neighbors), (0, 0)))
    return np.concatenate([padded[offset : offset + len(moved)] for offset in range(2 * neighbors + 1)], axis=1)


def oracle_macro_f1(
    train: Sequence[Sequence[Event]],
    validation: Sequence[Sequence[Event]],
    *,
    num_steps: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Train a small network on displacements, and return its macro-F1 on the validation recordings.

    Args:
        train: events of each training recording.
        validation: events of recordings that are not in `train`.
        num_steps: number of batches of 512 frames.
        seed: seed of the weights and batches.

    Returns:
        Field of `ORACLE_GROUPS` -> macro-F1.
    """
    features, classes = _examples(train)
    num_classes = [int(column.max()) + 1 for column in classes.T]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(features.shape[1], 128),
            nn.GELU(),
            nn.Linear(128, 128),
            nn.GELU(),
            nn.Linear(128, sum(num_classes)),
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    inputs, targets = torch.from_numpy(features), torch.from_numpy(classes)
    for _ in range(num_steps):
        rows = torch.randint(len(inputs), (512,), generator=generator)
        outputs = model(inputs[rows]).split(num_classes, dim=1)
        losses = [nn.functional.cross_entropy(out, targets[rows, i]) for i, out in enumerate(outputs)]
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    features, classes = _examples(validation)
    with torch.no_grad():
        outputs = model(torch.from_numpy(features)).split(num_classes, dim=1)
    return {
        group: float(macro_f1(confusion(output.argmax(1).numpy(), column, output.shape[1])))
        for group, output, column in zip(ORACLE_GROUPS, outputs, classes.T, strict=True)
    }


def _examples(recordings: Sequence[Sequence[Event]]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Return features [N, D] and classes [N, 3] of all frames whose neighbours lie within the recording."""
    inside = slice(NEIGHBORS + 1, -NEIGHBORS)
    features = np.concatenate([displacement_features(events)[inside] for events in recordings])
    classes = np.concatenate([actions_from_events(events).classes_of(ORACLE_GROUPS)[inside] for events in recordings])
    return features, classes
