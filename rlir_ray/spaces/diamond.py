"""The actions of DIAMOND's Atari games: one choice a frame.

DIAMOND's action t is taken at frame t and leads into frame t + 1; here the action at index k leads into frame k.
"""

from __future__ import annotations

from typing import Any

from rlir_ray.spaces.fields import Choice
from rlir_ray.spaces.layouts import FieldsLayout
from rlir_ray.spaces.space import ActionSpace

# A rollout's record holds classes as bytes.
MAX_ACTIONS = 256


# Any: the plain values of a config.json.
def diamond_layout(num_actions: int, action_space: dict[str, Any] | None = None) -> FieldsLayout:
    """Return how a DIAMOND model gets actions: the class of its only field.

    Args:
        num_actions: actions of the game.
        action_space: plain values of a space; None: that of Gymnasium's `Discrete(num_actions)`.

    Raises:
        ValueError: the space is not one choice of `num_actions`, or these are too few or too many.
    """
    if not 2 <= num_actions <= MAX_ACTIONS:
        raise ValueError(
            f"num_actions must be between 2 and {MAX_ACTIONS}, got {num_actions}; give the actions of the game"
        )
    if action_space is None:
        names = tuple(str(number) for number in range(num_actions))
        return FieldsLayout(ActionSpace((Choice(name="action", classes=names, null_class=None),)))
    space = ActionSpace.from_plain(action_space)
    fields = space.fields
    if len(fields) > 1 or not isinstance(fields[0], Choice) or fields[0].num_classes != num_actions:
        raise ValueError(
            f"the action space of a DIAMOND model must be one choice of num_actions={num_actions}, got "
            f"{', '.join(f'{field.name} ({field.kind} of {field.num_classes})' for field in fields)}; correct the "
            "config.json"
        )
    return FieldsLayout(space)
