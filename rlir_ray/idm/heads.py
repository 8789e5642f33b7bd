"""Heads of inverse dynamics models: from a frame's features to the classes of an action space's fields.

Legend: B clips, F frames, E features of a frame, h heads of one kind, K classes of such a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from rlir_ray.idm.base import Reading
from rlir_ray.spaces.layouts import check_space
from rlir_ray.spaces.space import Actions, ActionSpace

Logits = dict[str, Tensor]
"""Kind of head -> log-probabilities float32 [B, F, h, K]."""


class Heads(nn.Module, ABC):
    """The last layer of an inverse dynamics model, and what its training needs to know of it."""

    space: ActionSpace
    readable: tuple[str, ...]
    """Names of the fields that the heads decide."""
    num_classes: Mapping[str, int]
    """Kind of head -> K."""

    @abstractmethod
    def forward(self, x: Tensor) -> Logits:
        """Map features [B, F, E] to log-probabilities."""

    @abstractmethod
    def labels(self, actions: Actions) -> dict[str, npt.NDArray[np.int64]]:
        """Return what the heads should say about F actions: kind of head -> int64 [F, h].

        Raises:
            ValueError: the actions are of another space.
        """

    @abstractmethod
    def used(self, names: Sequence[str]) -> dict[str, npt.NDArray[np.bool_]]:
        """Return which heads decide the fields of these names: kind of head -> bool [h]."""

    @abstractmethod
    def read(self, logits: Mapping[str, Tensor], names: Sequence[str]) -> Reading:
        """Decode the fields of these names.

        Raises:
            ValueError: the space has no field of a name.
        """


class FieldHeads(Heads):
    """One softmax a field, for any action space; the most probable class is read."""

    def __init__(self, space: ActionSpace, hidden: int, temperature: float) -> None:
        super().__init__()
        self.space, self.temperature, self.readable = space, temperature, space.names
        self.num_classes = {field.name: field.num_classes for field in space.fields}
        self.linear_layer = nn.Linear(hidden, sum(self.num_classes.values()))

    def forward(self, x: Tensor) -> Logits:
        parts = self.linear_layer(x).float().split(list(self.num_classes.values()), dim=-1)
        return {
            name: (part / self.temperature).log_softmax(-1).unsqueeze(-2)
            for name, part in zip(self.num_classes, parts, strict=True)
        }

    def labels(self, actions: Actions) -> dict[str, npt.NDArray[np.int64]]:
        check_space(self.space, actions.space, "the inverse dynamics model", "the recordings")
        return {name: actions.classes[:, column : column + 1] for column, name in enumerate(self.space.names)}

    def used(self, names: Sequence[str]) -> dict[str, npt.NDArray[np.bool_]]:
        return {name: np.array([name in names]) for name in self.num_classes}

    def read(self, logits: Mapping[str, Tensor], names: Sequence[str]) -> Reading:
        self.space.columns(names)
        tables = {name: logits[name].squeeze(-2).float().softmax(-1) for name in names}
        return Reading(tables, {name: table.argmax(-1).cpu() for name, table in tables.items()})
