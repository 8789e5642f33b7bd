"""How well recovered actions agree with commanded ones: the rules of inverse rewards (RLIR, arXiv 2509.23958).

Tensors in, tensors out; knows nothing of models or videos.
Legend: G trajectories of a group, F frames, K classes of one action group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.actions import GROUPS, MINEWORLD_CAMERA, VPT_CAMERA, Actions, group_classes

# Bounds of a class weight before normalisation: a class of one frame in a thousand must not own the reward.
MIN_WEIGHT, MAX_WEIGHT = 0.2, 5.0


def agreement(
    probabilities: Mapping[str, Tensor],
    accepted: Mapping[str, Tensor],
    *,
    rule: str,
    match: str,
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The reward of each generated frame: agreement of the recovered with the commanded action.

    Args:
        probabilities: action group -> float [G, F, K], what the judge says of each class; sums to 1 over K.
        accepted: action group -> bool [F, K], the classes that agree with the command (see `accepted_classes`);
            the groups named here are the ones compared.
        rule: ``groups``: mean over the action groups; ``joint``: all of them at once (their product); ``fields``:
            mean over the single buttons of the groups and the camera axes.
        match: ``exact``: 1 where the most probable class is accepted, else 0; ``soft``: the probability of the
            accepted classes. A button of ``fields`` agrees where pressed or released as commanded; its soft form is
            the probability of that.
        weights: action group -> float [F], factors of the groups' agreement in each frame (see `frame_weights`).

    Returns:
        float32 [G, F], in [0, 1] without weights.

    Raises:
        ValueError: weights with another rule than ``groups``.
    """
    if weights is not None and rule != "groups":
        raise ValueError(f"class weights need reward.rule=groups, got {rule!r}; set reward.balance=none")
    tables = [(name, _sharpen(probabilities[name]) if match == "exact" else probabilities[name]) for name in accepted]
    if rule == "fields":
        return torch.cat([_fields(name, table, accepted[name]) for name, table in tables], -1).mean(-1)
    held = [(table.float() * accepted[name]).sum(-1) for name, table in tables]  # of [G, F]
    if weights is not None:
        held = [value * weights[name] for value, (name, _) in zip(held, tables, strict=True)]
    stacked = torch.stack(held, -1)  # [G, F, groups]
    return stacked.prod(-1) if rule == "joint" else stacked.mean(-1)


def _sharpen(table: Tensor) -> Tensor:
    """All probability on the most probable class, so that the soft formulas give the exact ones."""
    return torch.zeros_like(table).scatter_(-1, table.argmax(-1, keepdim=True), 1.0)


def _fields(name: str, table: Tensor, accepted: Tensor) -> Tensor:
    """[G, F, fields]: a camera axis is one field, a group of buttons one for each button."""
    if GROUPS[name].camera_axis is not None:
        return (table.float() * accepted).sum(-1, keepdim=True)
    # Class 0 is "none of them", class i means that button i alone is pressed.
    pressed = table[..., 1:].float()
    return torch.where(accepted[..., 1:], pressed, 1 - pressed)


def accepted_classes(
    actions: Actions, groups: Sequence[str], *, camera: str = "exact", tolerance: int = 1
) -> dict[str, Tensor]:
    """The classes that count as obeying a command.

    Args:
        actions: the F commanded actions.
        groups: names out of `rlir_ray.actions.GROUPS`.
        camera: of the judge's 11 bins an axis: ``exact``: the bin of the commanded angle; ``within``: at most
            `tolerance` bins from it; ``cell``: it and all bins whose centre lies in the command's bin of the world
            model's coarser quantiser, which cannot be told apart by a model that saw only its token; ``ignore``:
            camera axes are not compared.
        tolerance: bins, for ``within``.

    Returns:
        Action group -> bool [F, K]; camera axes are left out with ``ignore``.

    Raises:
        ValueError: nothing is left to compare.
    """
    names = [name for name in groups if camera != "ignore" or GROUPS[name].camera_axis is None]
    if not names:
        raise ValueError(
            f"reward.camera=ignore leaves no action group to compare, got world.groups={','.join(groups)}; "
            "add a group of buttons or set reward.camera=exact"
        )
    classes = group_classes(actions, names)  # [F, groups]
    accepted = {}
    for column, name in enumerate(names):
        group = GROUPS[name]
        table = classes[:, column, None] == np.arange(group.num_classes)
        if group.camera_axis is not None:
            table = _accepted_bins(table, actions.camera[:, group.camera_axis], camera, tolerance)
        accepted[name] = torch.from_numpy(table)
    return accepted


def _accepted_bins(
    exact: npt.NDArray[np.bool_], degrees: npt.NDArray[np.float32], camera: str, tolerance: int
) -> npt.NDArray[np.bool_]:
    bins = np.arange(VPT_CAMERA.num_bins)
    if camera == "within":
        return np.abs(bins - exact.argmax(1)[:, None]) <= tolerance
    if camera == "cell":
        # Whole degrees: MineWorld's tokens truncate the angle before they quantise it.
        command = MINEWORLD_CAMERA.bins(np.trunc(np.round(degrees.astype(np.float64), 4)))
        return exact | (MINEWORLD_CAMERA.bins(VPT_CAMERA.degrees(bins)) == command[:, None])
    return exact


def class_weights(share: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Inverse-frequency weights of the classes of one action group.

    w_c = clip(1 / (n share_c), 0.2, 5) with n the number of classes that occur, then scaled so that the mean weight
    under the shares is 1: balancing moves reward between classes and does not change its scale.

    Args:
        share: [K], how often each class is commanded; need not sum to 1.

    Returns:
        float32 [K].
    """
    counts = np.asarray(share, np.float64)
    if not counts.sum() > 0 or counts.min() < 0:
        raise ValueError(f"class shares must be >= 0 and some > 0, got {counts.tolist()}; count them over the prompts")
    shares = counts / counts.sum()
    raw = np.clip(1 / np.maximum((shares > 0).sum() * shares, 1e-9), MIN_WEIGHT, MAX_WEIGHT)
    return (raw / (raw * shares).sum()).astype(np.float32)


def frame_weights(
    actions: Actions, groups: Sequence[str], weights: Mapping[str, npt.NDArray[np.float32]]
) -> dict[str, Tensor]:
    """The weight of the commanded class in each frame: action group -> float32 [F]."""
    classes = group_classes(actions, groups)
    return {name: torch.from_numpy(weights[name][classes[:, column]]) for column, name in enumerate(groups)}
