"""The ceiling of any inverse dynamics model: actions read from the player's exact displacement instead of pixels.

Says whether a world's actions can be seen at all; attack moves nobody and is left out. Knows nothing of pictures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rlir_ray.rewards.classification import confusion, macro_f1
from rlir_ray.spaces.actions import Actions, Event, group_classes

ORACLE_GROUPS = ("forward_back", "jump", "yaw")
NEIGHBORS = 2
# Map units and degrees brought to about one; a walked frame is some 30 units, a turn up to 10 degrees.
SCALES = np.array([20.0, 20.0, 20.0, 5.0], np.float32)


def displacement_features(events: Sequence[Event], neighbors: int = NEIGHBORS) -> npt.NDArray[np.float32]:
    """What the player's pose did around each frame.

    Args:
        events: F events with xpos, ypos, zpos (map units) and yaw (degrees, clockwise).
        neighbors: frames on either side whose displacement is seen too.

    Returns:
        float32 [F, 4 * (2 * neighbors + 1)]: forward, sideways, up and turn of each frame of the window, scaled; zeros
        beyond the recording's ends.
    """
    pose = np.array([[event["xpos"], event["ypos"], event["zpos"], event["yaw"]] for event in events], np.float64)
    step = np.diff(pose, axis=0, prepend=pose[:1])
    turn = (step[:, 3] + 180) % 360 - 180
    # The heading in which the player walked; x is east, y north, yaw clockwise from east.
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
    """Macro-F1 of each group on the validation recordings, after training on the others.

    Args:
        train: the events of each recording.
        validation: the same, of recordings that are not in `train`.
        num_steps: batches of 512 frames.
        seed: of the weights and batches.

    Returns:
        Macro-F1 by group out of `ORACLE_GROUPS`.
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
    """Features [N, D] and classes [N, 3] of all frames that have both neighbours within their recording."""
    inside = slice(NEIGHBORS + 1, -NEIGHBORS)
    features = np.concatenate([displacement_features(events)[inside] for events in recordings])
    classes = np.concatenate(
        [group_classes(Actions.from_events(events), ORACLE_GROUPS)[inside] for events in recordings]
    )
    return features, classes
