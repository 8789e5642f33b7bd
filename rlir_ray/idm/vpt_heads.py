"""VPT's heads: one a button and one a camera axis (arXiv 2206.11795), and the classes of VPT's fields that they give.

Contradicting buttons cancel each other, exactly as in the commands (`rlir_ray.spaces.vpt`).
Legend: B clips, F frames, K classes of a field, n buttons that decide the field, M = 2^n combinations of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rlir_ray.idm.base import Reading, one_hot_classes
from rlir_ray.idm.heads import Heads, Logits
from rlir_ray.spaces.layouts import check_space
from rlir_ray.spaces.space import Actions
from rlir_ray.spaces.vpt import (
    BUTTON_INDEX,
    BUTTONS,
    CAMERA,
    CONTRADICTIONS,
    GROUPS,
    IDM_BUTTONS,
    VPT_CAMERA,
    VPT_SPACE,
    actions_from_buttons,
    buttons_of,
)

NUM_BUTTONS, NUM_BINS = len(IDM_BUTTONS), VPT_CAMERA.num_classes


class VptHeads(Heads):
    """Heads with the published parameter names: 20 buttons x 2 and 2 camera axes x 11 bins.

    Three buttons have no head (`BUTTONS` after `IDM_BUTTONS`); they are read as released.
    """

    space = VPT_SPACE
    readable = (*(name for name, members in GROUPS.items() if set(members) <= set(IDM_BUTTONS)), *CAMERA)
    num_classes = {"buttons": 2, "camera": NUM_BINS}  # noqa: RUF012 - the type of the base class

    def __init__(self, hidden: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.buttons = nn.ModuleDict({"linear_layer": nn.Linear(hidden, NUM_BUTTONS * 2)})
        self.camera = nn.ModuleDict({"linear_layer": nn.Linear(hidden, 2 * NUM_BINS)})

    def forward(self, x: Tensor) -> Logits:
        buttons = self.buttons["linear_layer"](x).unflatten(-1, (NUM_BUTTONS, 2)).float()
        camera = self.camera["linear_layer"](x).unflatten(-1, (2, NUM_BINS)).float()
        return {
            "buttons": (buttons / self.temperature).log_softmax(-1),
            "camera": (camera / self.temperature).log_softmax(-1),
        }

    def labels(self, actions: Actions) -> dict[str, npt.NDArray[np.int64]]:
        check_space(VPT_SPACE, actions.space, "the inverse dynamics model", "the recordings")
        pressed = buttons_of(actions.classes)[:, :NUM_BUTTONS]
        return {"buttons": pressed.astype(np.int64), "camera": actions.classes_of(CAMERA)}

    def used(self, names: Sequence[str]) -> dict[str, npt.NDArray[np.bool_]]:
        wanted = {button for name in names for button in GROUPS.get(name, ())}
        return {
            "buttons": np.array([button in wanted for button in IDM_BUTTONS]),
            "camera": np.array([axis in names for axis in CAMERA]),
        }

    def read(self, logits: Mapping[str, Tensor], names: Sequence[str]) -> Reading:
        return read_heads(logits, names)


def read_heads(logits: Mapping[str, Tensor], names: Sequence[str]) -> Reading:
    """Decode the fields of these names of `VPT_SPACE`.

    Args:
        logits: buttons [B, F, 20, 2] and camera [B, F, 2, 11].
        names: names of `VPT_SPACE`.

    Raises:
        ValueError: `VPT_SPACE` has no field of a name.
    """
    VPT_SPACE.columns(names)
    classes = recovered_classes(logits, names)
    return Reading(group_probabilities(logits, names), dict(zip(names, classes.unbind(-1), strict=True)))


def recovered_classes(logits: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Decode the class of each field in each frame: every head's most probable value, contradictions cancelled.

    Args:
        logits, names: as in `read_heads`.

    Returns:
        int64 [B, F, len(names)], on the CPU.
    """
    buttons, camera = (logits[head].argmax(-1).cpu().numpy() for head in ("buttons", "camera"))
    pressed = np.zeros((buttons[..., 0].size, len(BUTTONS)), np.bool_)
    pressed[:, :NUM_BUTTONS] = buttons.reshape(-1, NUM_BUTTONS) != 0
    actions = actions_from_buttons(pressed, VPT_CAMERA.centres(camera.reshape(-1, 2)).astype(np.float32))
    classes: Tensor = torch.from_numpy(actions.classes_of(names)).unflatten(0, buttons.shape[:2])
    return classes


def group_probabilities(logits: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Compute the class probabilities of the fields; the heads are treated as independent.

    The probability of a class is the sum over all combinations of buttons that give the class after contradictions are
    cancelled. Example forward/back: p(forward) (1 - p(back)), p(back) (1 - p(forward)), and the rest for class 0.

    Args:
        logits, names: as in `read_heads`.

    Returns:
        Field -> float32 [B, F, K], summing to 1 over the classes.
    """
    bits = logits["buttons"].float().log_softmax(-1)
    camera = logits["camera"].float().softmax(-1)
    probabilities = {}
    for name in names:
        if name in CAMERA:
            probabilities[name] = camera[..., CAMERA.index(name), :]
            continue
        table = _combinations(name)
        released, pressed = bits[..., table.columns, :].unbind(-1)  # [B, F, n]
        held = torch.from_numpy(table.pressed).to(bits)  # [M, n]
        combined = (pressed @ held.T + released @ (1 - held).T).exp()  # [B, F, M]
        probabilities[name] = combined @ one_hot_classes(table.classes, VPT_SPACE.select([name]))[name].to(bits)
    return probabilities


@dataclass(frozen=True)
class _Combinations:
    """Combinations of the buttons that decide a field: columns [n], pressed float32 [M, n], classes int64 [M, 1]."""

    columns: list[int]
    pressed: npt.NDArray[np.float32]
    classes: Tensor


@cache
def _combinations(name: str) -> _Combinations:
    # A button can cancel a member of the field, and a third button can cancel this button: follow all pairs.
    involved = set(GROUPS[name])
    while more := {b for pair in CONTRADICTIONS if involved & set(pair) for b in pair} - involved:
        involved |= more
    columns = sorted(BUTTON_INDEX[button] for button in involved & set(IDM_BUTTONS))
    pressed = (np.arange(2 ** len(columns))[:, None] >> np.arange(len(columns))) & 1
    buttons = np.zeros((len(pressed), len(BUTTONS)), np.bool_)
    buttons[:, columns] = pressed
    actions = actions_from_buttons(buttons, np.zeros((len(pressed), 2), np.float32))
    return _Combinations(columns, pressed.astype(np.float32), torch.from_numpy(actions.classes_of([name])))
