"""Compare recovered actions with commanded actions: the rules of inverse rewards (RLIR, arXiv 2509.23958).

`agreement` is the one place where they are compared: `rule` says how groups and buttons count together, the accepted
classes say which camera bins obey. Tensors in, tensors out; knows nothing of models or videos.
Legend: G trajectories of a group, F frames, K classes of one action group.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.config import CAMERA_MATCHES, RULES
from rlir_ray.idm.decoding import class_tables
from rlir_ray.spaces.actions import DEGREES_PER_PIXEL, GROUPS, VPT_CAMERA, Actions, CameraBins, group_classes
from rlir_ray.spaces.mineworld import token_camera_bins

# Bounds of a class weight before normalisation: a class of one frame in a thousand must not dominate the reward.
MIN_WEIGHT, MAX_WEIGHT = 0.2, 5.0
# All angles of the recorders, whose mouse moves by pixels.
ANGLES = np.arange(-600, 601) * DEGREES_PER_PIXEL


def agreement(
    tables: Mapping[str, Tensor],
    accepted: Mapping[str, Tensor],
    *,
    rule: str,
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Compute the reward of each generated frame: agreement of the recovered with the commanded action.

    Args:
        tables: action group -> float [G, F, K], the judge's score of each class; sums to 1 over K. Probabilities
            give the soft reward; 1 at the recovered class (`models.readings.class_tables`) the exact one.
        accepted: action group -> bool [F, K], the classes that agree with the command (see `accepted_classes`);
            the groups named here are the ones compared.
        rule: ``groups``: mean over the action groups; ``joint``: all of them at once (their product); ``fields``:
            mean over the single buttons of the groups and the camera axes, where a button agrees if it is pressed or
            released as commanded.
        weights: action group -> float [F], factors of the groups' agreement in each frame (see `frame_weights`).

    Returns:
        float32 [G, F], in [0, 1] without weights.

    Raises:
        ValueError: weights with another rule than ``groups``.
    """
    if weights is not None and rule != "groups":
        raise ValueError(f"class weights need reward.rule=groups, got {rule!r}; set reward.balance=none")
    if rule == "fields":
        return torch.cat([_fields(name, tables[name], accepted[name]) for name in accepted], -1).mean(-1)
    held = {name: (tables[name].float() * accepted[name]).sum(-1) for name in accepted}  # of [G, F]
    if weights is not None:
        held = {name: value * weights[name] for name, value in held.items()}
    stacked = torch.stack(list(held.values()), -1)  # [G, F, groups]
    return stacked.prod(-1) if rule == "joint" else stacked.mean(-1)


def compare(
    commanded: Actions,
    recovered: Actions,
    groups: Sequence[str],
    *,
    rule: str = "groups",
    camera: str = "exact",
    tolerance: int = 1,
    camera_bins: CameraBins = token_camera_bins,
) -> npt.NDArray[np.float32]:
    """Compute the agreement of F recovered with F commanded actions, for callers without a model's heads.

    Args:
        commanded, recovered: contradictions are cancelled in both; what no judge can see (ESC, swapHands, pickItem)
            belongs to no group and never counts.
        groups: names out of `rlir_ray.spaces.actions.GROUPS`.
        rule: as in `agreement`.
        camera, tolerance, camera_bins: as in `accepted_classes`.

    Returns:
        float32 [F], in [0, 1].
    """
    classes = torch.from_numpy(group_classes(recovered, groups))[None]  # [1, F, groups]
    accepted = accepted_classes(commanded, groups, camera=camera, tolerance=tolerance, camera_bins=camera_bins)
    return agreement(class_tables(classes, groups), accepted, rule=rule)[0].numpy()


def every_rule(
    exact: Mapping[str, Tensor],
    soft: Mapping[str, Tensor],
    commanded: Actions,
    *,
    camera: str,
    tolerance: int,
    camera_bins: CameraBins = token_camera_bins,
) -> dict[str, float]:
    """Compute the mean agreement under every rule, for the log.

    Args:
        exact, soft: tables of the recovered classes and of their probabilities, as in `agreement`.
        commanded: F actions.
        camera, tolerance, camera_bins: the configured ones.

    Returns:
        ``groups``, ``joint`` and ``fields`` by the recovered classes and ``soft`` (groups, by probability) with the
        configured camera; where a camera axis is in use also ``RULE/CAMERA`` for every other way to compare it.
    """
    groups = tuple(exact)
    accept = functools.partial(accepted_classes, commanded, groups, tolerance=tolerance, camera_bins=camera_bins)
    accepted = accept(camera=camera)
    found = {rule: float(agreement(exact, accepted, rule=rule).mean()) for rule in RULES}
    found["soft"] = float(agreement(soft, accepted, rule="groups").mean())
    axes = [name for name in groups if GROUPS[name].camera_axis is not None]
    for other in CAMERA_MATCHES if axes else ():
        if other == camera or (other == "ignore" and len(axes) == len(groups)):
            continue
        accepted = accept(camera=other)
        found |= {f"{rule}/{other}": float(agreement(exact, accepted, rule=rule).mean()) for rule in RULES}
    return found


def _fields(name: str, table: Tensor, accepted: Tensor) -> Tensor:
    """[G, F, fields]: a camera axis is one field, a group of buttons one for each button."""
    if GROUPS[name].camera_axis is not None:
        return (table.float() * accepted).sum(-1, keepdim=True)
    # Class 0 is "none of them", class i means that button i alone is pressed.
    pressed = table[..., 1:].float()
    return torch.where(accepted[..., 1:], pressed, 1 - pressed)


def accepted_classes(
    actions: Actions,
    groups: Sequence[str],
    *,
    camera: str = "exact",
    tolerance: int = 1,
    camera_bins: CameraBins = token_camera_bins,
) -> dict[str, Tensor]:
    """Find the classes that count as obeying a command.

    Args:
        actions: the F commanded actions.
        groups: names out of `rlir_ray.spaces.actions.GROUPS`.
        camera: of the judge's 11 bins an axis: ``exact``: the bin of the commanded angle; ``within``: at most
            `tolerance` bins from it; ``cell``: the bins of all angles that the world model is told alike, which it
            cannot tell apart; ``ignore``: camera axes are not compared.
        tolerance: bins, for ``within``.
        camera_bins: degrees to the bins in which the world model gets an angle, for ``cell``.

    Returns:
        Action group -> bool [F, K]; camera axes are left out with ``ignore``.

    Raises:
        ValueError: no group is left to compare.
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
            table = _accepted_bins(table, actions.camera[:, group.camera_axis], camera, tolerance, camera_bins)
        accepted[name] = torch.from_numpy(table)
    return accepted


def _accepted_bins(
    exact: npt.NDArray[np.bool_],
    degrees: npt.NDArray[np.float32],
    camera: str,
    tolerance: int,
    camera_bins: CameraBins,
) -> npt.NDArray[np.bool_]:
    bins = np.arange(VPT_CAMERA.num_bins)
    if camera == "within":
        near: npt.NDArray[np.bool_] = np.abs(bins - exact.argmax(1)[:, None]) <= tolerance
        return near
    if camera == "cell":
        alike = camera_bins(ANGLES) == camera_bins(degrees)[:, None]  # [F, angles]
        read = VPT_CAMERA.bins(ANGLES)[:, None] == bins  # [angles, K]
        same: npt.NDArray[np.bool_] = exact | (alike.astype(np.float32) @ read > 0)
        return same
    return exact


def class_weights(share: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Compute inverse-frequency weights of the classes of one action group.

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
    weights: npt.NDArray[np.float32] = (raw / (raw * shares).sum()).astype(np.float32)
    return weights


def frame_weights(
    actions: Actions, groups: Sequence[str], weights: Mapping[str, npt.NDArray[np.float32]]
) -> dict[str, Tensor]:
    """Look up the weight of the commanded class in each frame: action group -> float32 [F]."""
    classes = group_classes(actions, groups)
    return {name: torch.from_numpy(weights[name][classes[:, column]]) for column, name in enumerate(groups)}
