"""Action layouts: how a world model gets an action, as tokens (autoregressive) or as classes (flow).

A checkpoint's config.json holds the action space (`action_space`) and the name of the layout (`action_layout`); one
without them is of MineWorld's form.
Legend: F frames, D fields, K bins of an axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rlir_ray.spaces import mineworld, oasis, rlvr
from rlir_ray.spaces.fields import Axis
from rlir_ray.spaces.space import Actions, ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE

SPACE_KEY, LAYOUT_KEY = "action_space", "action_layout"
"""Keys of a checkpoint's config.json."""
NO_ACTION = -1
"""The class of every column of a hidden action, which is not the action of doing nothing."""
DROPOUT_KEY = "action_dropout"
"""Key of a checkpoint's config.json: the share of the actions that were hidden in training; missing: 0."""
# Most fields that an error describes; it always gives the total number.
NUM_NAMED = 3
Cells = Callable[[Axis, npt.NDArray[np.float32]], npt.NDArray[np.bool_]]
"""Which bins of an axis hold a value that a world model cannot tell from the commanded value: [F] to bool [F, K]."""


class ActionLayout(Protocol):
    """The form in which a world model gets actions."""

    @property
    def name(self) -> str:
        """Key of `LAYOUTS`."""

    @property
    def space(self) -> ActionSpace:
        """The space of the actions."""

    @property
    def num_tokens(self) -> int:
        """Tokens of an action."""

    @property
    def num_ids(self) -> int:
        """Ids of the vocabulary behind the image ids."""

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Classes of each column of `classes`."""

    def tokens(self, actions: Actions, first_id: int) -> npt.NDArray[np.int64]:
        """Return the tokens of F actions, int64 [F, num_tokens]; `first_id` is the size of the image vocabulary.

        Raises:
            ValueError: the actions are of another space.
        """

    def hidden_tokens(self, first_id: int) -> npt.NDArray[np.int64]:
        """Return the tokens of a hidden action, int64 [num_tokens], which no action has."""

    def classes(self, actions: Actions) -> npt.NDArray[np.int64]:
        """Return the classes of F actions, int64 [F, columns].

        Raises:
            ValueError: the actions are of another space.
        """

    def token_cells(self, axis: Axis, values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Return `Cells` of a model that gets tokens."""

    def class_cells(self, axis: Axis, values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Return `Cells` of a model that gets classes."""


class MineworldLayout:
    """The layout `mineworld` of VPT's space: 11 tokens, or nine classes (`spaces.mineworld`)."""

    name = "mineworld"
    space = VPT_SPACE
    num_tokens = mineworld.TOKENS_PER_ACTION
    num_ids = mineworld.NUM_ACTION_TOKENS + mineworld.NUM_UNUSED_IDS
    class_counts = mineworld.ACTION_CLASS_COUNTS

    def tokens(self, actions: Actions, first_id: int) -> npt.NDArray[np.int64]:
        _check_actions(self.space, actions)
        return mineworld.action_tokens(actions, first_id)

    def hidden_tokens(self, first_id: int) -> npt.NDArray[np.int64]:
        # NULL would not do: it is the token of a slot without a pressed button.
        return first_id + np.array([*[mineworld.BOS] * (self.num_tokens - 1), mineworld.EOS])

    def classes(self, actions: Actions) -> npt.NDArray[np.int64]:
        _check_actions(self.space, actions)
        return mineworld.action_classes(actions)

    def token_cells(self, axis: Axis, values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        return mineworld.token_cells(axis, values)

    def class_cells(self, axis: Axis, values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        return mineworld.class_cells(axis, values)


class FieldsLayout:
    """The layout `fields` of any space: BOS, one token a field, EOS; or one class a field.

    Example: a choice of three and an axis in nine bins are 4 tokens of 14 ids: BOS is 0, the choice has 1 to 3, the
    axis 4 to 12, EOS is 13, all behind the image ids. A hidden action is 0, 0, 0, 13.
    """

    name = "fields"

    def __init__(self, space: ActionSpace, class_counts: tuple[int, ...] = ()) -> None:
        self.space = space
        self.class_counts = class_counts or tuple(field.num_classes for field in space.fields)
        self.num_tokens, self.num_ids = len(self.class_counts) + 2, sum(self.class_counts) + 2
        # BOS has the first id and EOS the last; the classes of the columns lie between, column after column.
        self._offsets = 1 + np.cumsum([0, *self.class_counts[:-1]])

    def tokens(self, actions: Actions, first_id: int) -> npt.NDArray[np.int64]:
        tokens = np.empty((len(actions), self.num_tokens), np.int64)
        tokens[:, 0], tokens[:, -1] = 0, self.num_ids - 1
        tokens[:, 1:-1] = self.classes(actions) + self._offsets
        return tokens + first_id

    def hidden_tokens(self, first_id: int) -> npt.NDArray[np.int64]:
        return first_id + np.array([*[0] * (self.num_tokens - 1), self.num_ids - 1])

    def classes(self, actions: Actions) -> npt.NDArray[np.int64]:
        _check_actions(self.space, actions)
        return actions.classes

    def token_cells(self, axis: Axis, values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        cells: npt.NDArray[np.bool_] = axis.bins(values)[:, None] == np.arange(axis.num_classes)
        return cells

    class_cells = token_cells


class OasisLayout(FieldsLayout):
    """The layout `oasis` of VPT's space: 25 classes, the numbers of Oasis-500M (`spaces.oasis`)."""

    name = "oasis"

    def __init__(self) -> None:
        super().__init__(VPT_SPACE, oasis.CLASS_COUNTS)

    def classes(self, actions: Actions) -> npt.NDArray[np.int64]:
        _check_actions(self.space, actions)
        return oasis.oasis_classes(actions)


class RlvrLayout:
    """The layout `rlvr_world` of RT-1's space: 13 tokens of 256 ids that all numbers share (`spaces.rlvr`).

    The token of a number is its bin behind the image ids; two ids follow, BOS and EOS, which no action holds.
    """

    name = "rlvr_world"
    space = rlvr.RT1_SPACE
    num_tokens = len(rlvr.RT1_SPACE)
    num_ids = rlvr.NUM_BINS + rlvr.NUM_UNUSED_IDS
    class_counts = (rlvr.NUM_BINS,) * len(rlvr.RT1_SPACE)

    def tokens(self, actions: Actions, first_id: int) -> npt.NDArray[np.int64]:
        return self.classes(actions) + first_id

    def hidden_tokens(self, first_id: int) -> npt.NDArray[np.int64]:
        return np.full(self.num_tokens, first_id + rlvr.NUM_BINS)

    def classes(self, actions: Actions) -> npt.NDArray[np.int64]:
        _check_actions(self.space, actions)
        return rlvr.action_bins(actions.values)

    def token_cells(self, axis: Axis, values: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        return rlvr.action_cells(axis, values)

    class_cells = token_cells


def _of_one_space(kind: Callable[[], ActionLayout]) -> Callable[[ActionSpace], ActionLayout]:
    def layout(space: ActionSpace) -> ActionLayout:
        made = kind()
        check_space(made.space, space, f"the layout {made.name}", "the checkpoint")
        return made

    return layout


LAYOUTS: dict[str, Callable[[ActionSpace], ActionLayout]] = {
    "mineworld": _of_one_space(MineworldLayout),
    "fields": FieldsLayout,
    "oasis": _of_one_space(OasisLayout),
    "rlvr_world": _of_one_space(RlvrLayout),
}


def check_space(wanted: ActionSpace, given: ActionSpace, wants: str, gives: str) -> None:
    """Check that two parts of a run share one action space.

    Raises:
        ValueError: the spaces differ; the message describes the first fields that differ.
    """
    if wanted is not given and (found := wanted.differences(given)):
        more = [f"and {len(found) - NUM_NAMED} more"] if len(found) > NUM_NAMED else []
        raise ValueError(
            f"{gives} must have the action space of {wants}, got other fields "
            f"({'; '.join([*found[:NUM_NAMED], *more])}; here is {wants}, there is {gives}); choose parts that were "
            "made from one dataset"
        )


def _check_actions(space: ActionSpace, actions: Actions) -> None:
    check_space(space, actions.space, "the world model's checkpoint", "the commanded actions")


def check_layout(wanted: ActionLayout, given: ActionLayout, wants: str, gives: str) -> None:
    """Check that two parts of a run give a world model its actions in the same form.

    Raises:
        ValueError: the spaces differ (see `check_space`), or the layouts do.
    """
    check_space(wanted.space, given.space, wants, gives)
    if wanted.name != given.name:
        raise ValueError(
            f"{gives} must have the action layout of {wants}, {LAYOUT_KEY}={wanted.name}, got {given.name}; choose "
            "parts that were made from one dataset"
        )


# Any: the content of a config.json.
def layout_of(settings: Mapping[str, Any]) -> ActionLayout:
    """Return the layout that a world model's config.json states; without a statement MineWorld's.

    Raises:
        ValueError: the space cannot be read, or the layout is unknown or of another space.
    """
    # diffusers writes null for what was not given.
    if settings.get(SPACE_KEY) is None:
        return MineworldLayout()
    name = settings.get(LAYOUT_KEY) or FieldsLayout.name
    if name not in LAYOUTS:
        raise ValueError(f"{LAYOUT_KEY} must be one of {', '.join(LAYOUTS)}, got {name!r}; correct the config.json")
    return LAYOUTS[name](ActionSpace.from_plain(settings[SPACE_KEY]))


def layout_for(space: ActionSpace) -> ActionLayout:
    """Return the layout of a new world model: MineWorld's for VPT's space, otherwise one token a field."""
    return MineworldLayout() if space == VPT_SPACE else FieldsLayout(space)


def layout_settings(layout: ActionLayout) -> dict[str, Any]:
    """Return the entries of a config.json from which `layout_of` opens the layout; MineWorld's needs none."""
    if layout.name == MineworldLayout.name:
        return {}
    return {SPACE_KEY: layout.space.to_plain(), LAYOUT_KEY: layout.name}
