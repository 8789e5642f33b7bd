"""Decoding of an inverse dynamics model's heads: the class of each action group, or the probabilities of its classes.

Contradicting buttons cancel each other, exactly as in the commands (`rlir_ray.spaces.actions`).
Legend: B clips, F frames, K classes of an action group, n buttons that decide the group, M = 2^n combinations of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from rlir_ray.spaces.actions import (
    BUTTON_INDEX,
    BUTTONS,
    CONTRADICTIONS,
    GROUPS,
    Actions,
    group_classes,
    recovered_actions,
)

Logits = Mapping[str, Tensor]


def recovered_classes(logits: Logits, groups: Sequence[str]) -> Tensor:
    """Decode the class of each group in each frame: every head's most probable value, contradictions cancelled.

    Args:
        logits: buttons [B, F, 20, 2] and camera [B, F, 2, 11].
        groups: names from `rlir_ray.spaces.actions.GROUPS`.

    Returns:
        int64 [B, F, len(groups)], on the CPU.
    """
    buttons, camera = (logits[head].argmax(-1).cpu().numpy() for head in ("buttons", "camera"))
    actions = recovered_actions(buttons.reshape(-1, buttons.shape[-1]), camera.reshape(-1, 2))
    classes: Tensor = torch.from_numpy(group_classes(actions, groups)).unflatten(0, buttons.shape[:2])
    return classes


def one_hot_classes(classes: Tensor, groups: Sequence[str]) -> dict[str, Tensor]:
    """Encode classes int [..., len(groups)] one-hot: action group -> float32 [..., K]."""
    return {
        name: functional.one_hot(classes[..., column].long(), GROUPS[name].num_classes).float()
        for column, name in enumerate(groups)
    }


def group_probabilities(logits: Logits, groups: Sequence[str]) -> dict[str, Tensor]:
    """Compute the class probabilities of the groups; the heads are treated as independent.

    The probability of a class is the sum over all combinations of buttons that give the class after contradictions are
    cancelled. Example forward/back: p(forward) (1 - p(back)), p(back) (1 - p(forward)), and the rest for class 0.

    Args:
        logits: buttons [B, F, 20, 2] and camera [B, F, 2, 11].
        groups: names from `rlir_ray.spaces.actions.GROUPS`.

    Returns:
        Action group -> float32 [B, F, K], summing to 1 over the classes.
    """
    bits = logits["buttons"].float().log_softmax(-1)
    camera = logits["camera"].float().softmax(-1)
    probabilities = {}
    for name in groups:
        axis = GROUPS[name].camera_axis
        if axis is not None:
            probabilities[name] = camera[..., axis, :]
            continue
        space = _combinations(name)
        released, pressed = bits[..., space.columns, :].unbind(-1)  # [B, F, n]
        held = torch.from_numpy(space.pressed).to(bits)  # [M, n]
        combined = (pressed @ held.T + released @ (1 - held).T).exp()  # [B, F, M]
        probabilities[name] = combined @ one_hot_classes(space.classes, (name,))[name].to(bits)
    return probabilities


@dataclass(frozen=True)
class _Combinations:
    """Combinations of the buttons that decide a group: columns [n], pressed float32 [M, n], classes int64 [M, 1]."""

    columns: list[int]
    pressed: npt.NDArray[np.float32]
    classes: Tensor


@cache
def _combinations(name: str) -> _Combinations:
    # A button can cancel a member of the group, and a third button can cancel this button: follow all pairs.
    involved = set(GROUPS[name].members)
    while more := {b for pair in CONTRADICTIONS if involved & set(pair) for b in pair} - involved:
        involved |= more
    columns = sorted(BUTTON_INDEX[button] for button in involved)
    pressed = (np.arange(2 ** len(columns))[:, None] >> np.arange(len(columns))) & 1
    buttons = np.zeros((len(pressed), len(BUTTONS)), np.bool_)
    buttons[:, columns] = pressed
    actions = Actions.from_buttons(buttons, np.zeros((len(pressed), 2), np.float32))
    return _Combinations(columns, pressed.astype(np.float32), torch.from_numpy(group_classes(actions, (name,))))
