"""Action guidance: strengthen what the action changes in a prediction (Vid2World, https://arxiv.org/abs/2505.14357).

A model is asked twice for a frame: with the action that leads into the frame, and without this action alone. Tensors
and floats only; no models.
"""

from __future__ import annotations

from torch import Tensor

NO_GUIDANCE = 1.0
"""The scale at which a prediction is that with the action."""
# A model that predicts zeros has no deviation to divide by.
LEAST_STD = 1e-8


def guided(action: Tensor, null: Tensor, scale: float) -> Tensor:
    """Move a prediction away from that without the action.

    Of logits, the result is log p_null + scale (log p_action - log p_null) up to a constant, so that a softmax
    normalises it.

    Args:
        action, null: predictions with and without the action, of one shape.
        scale: 1: the prediction with the action; above 1: the action acts more strongly.

    Returns:
        The same shape.
    """
    return null + scale * (action - null)


def guided_velocity(action: Tensor, null: Tensor, scale: float, rescale: float = 0.0) -> Tensor:
    """Guide a velocity, and pull its standard deviation towards that of the velocity with the action.

    The rescaling (https://arxiv.org/abs/2305.08891, section 3.4) counters pictures with too much contrast.

    Args:
        action, null: [..., D, h, w], velocities with and without the action.
        scale: see `guided`.
        rescale: share of the rescaled velocity in the result; 0: do not rescale.

    Returns:
        [..., D, h, w].
    """
    velocity = guided(action, null, scale)
    if not rescale:
        return velocity
    wanted, found = (part.std((-3, -2, -1), keepdim=True) for part in (action, velocity))
    return velocity * (rescale * wanted / found.clamp(min=LEAST_STD) + 1 - rescale)
