"""Compare recovered actions with commanded actions: the rules of inverse rewards (RLIR, arXiv 2509.23958).

`agreement` compares them: its `rule` combines action groups and buttons, and the accepted classes define which camera
bins obey a command. Tensors in, tensors out; no models and no videos.
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
from rlir_ray.idm.decoding import one_hot_classes
from rlir_ray.spaces.actions import DEGREES_PER_PIXEL, GROUPS, VPT_CAMERA, Actions, CameraBins, group_classes
from rlir_ray.spaces.mineworld import token_camera_bins

# Bounds of a class weight before normalisation: a class of one frame in a thousand must not dominate the reward.
MIN_WEIGHT, MAX_WEIGHT = 0.2, 5.0
# All camera angles that recordings contain: the recorders' mouse moves by whole pixels.
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
        tables: action group -> float [G, F, K], the judge's score of each class; the scores sum to 1 over K.
            Probabilities give the soft reward; 1 at the recovered class (`idm.decoding.one_hot_classes`) gives the
            exact reward.
        accepted: action group -> bool [F, K], the classes that agree with the command (see `accepted_classes`); only
            these groups are compared.
        rule: ``groups``: mean over the action groups; ``joint``: product over the action groups; ``fields``: mean over
            the buttons and the camera axes, where a button agrees if it is pressed or released as commanded.
        weights: action group -> float [F], factors of the groups' agreement in each frame (see `frame_weights`).

    Returns:
        float32 [G, F], in [0, 1] without weights.

    Raises:
        ValueError: weights are given with another rule than ``groups``.
    """
    if weights is not None and rule != "groups":
        raise ValueError(f"class weights need reward.rule=groups, got {rule!r}; set reward.balance=none")
    if rule == "fields":
        return torch.cat([_fields(name, tables[name], accepted[name]) for name in accepted], -1).mean(-1)
    by_group = {name: (tables[name].float() * accepted[name]).sum(-1) for name in accepted}  # [G, F] each
    if weights is not None:
        by_group = {name: value * weights[name] for name, value in by_group.items()}
    stacked = torch.stack(list(by_group.values()), -1)  # [G, F, groups]
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
    """Compute the agreement of F recovered actions with F commanded actions, without a model's heads.

    Contradictory buttons cancel each other in both. Buttons without a visible effect (ESC, swapHands, pickItem) belong
    to no group and never count.

    Args:
        commanded: the commanded actions.
        recovered: the recovered actions.
        groups: names in `rlir_ray.spaces.actions.GROUPS`.
        rule: as in `agreement`.
        camera, tolerance, camera_bins: as in `accepted_classes`.

    Returns:
        float32 [F], in [0, 1].
    """
    classes = torch.from_numpy(group_classes(recovered, groups))[None]  # [1, F, groups]
    accepted = accepted_classes(commanded, groups, camera=camera, tolerance=tolerance, camera_bins=camera_bins)
    return agreement(one_hot_classes(classes, groups), accepted, rule=rule)[0].numpy()


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
        exact: tables of the recovered classes, as in `agreement`.
        soft: tables of the probabilities, as in `agreement`.
        commanded: the F commanded actions.
        camera, tolerance, camera_bins: the configured comparison of the camera, as in `accepted_classes`.

    Returns:
        With the configured camera: ``groups``, ``joint`` and ``fields`` of the recovered classes, and ``soft``, the
        rule ``groups`` of the probabilities. If the groups include a camera axis, also ``RULE/CAMERA`` for every other
        value of `camera`.
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
    """Return the agreement of each field, [G, F, fields]: a camera axis is one field, and so is each button."""
    if GROUPS[name].camera_axis is not None:
        return (table.float() * accepted).sum(-1, keepdim=True)
    # Class 0 means that no button of the group is pressed, class i that only button i is pressed.
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
    """Find the classes that obey each command.

    Args:
        actions: the F commanded actions.
        groups: names in `rlir_ray.spaces.actions.GROUPS`.
        camera: the accepted ones of the judge's 11 bins per axis: ``exact``: the bin of the commanded angle;
            ``within``: bins at a distance of at most `tolerance` from that bin; ``cell``: the bins of all angles that
            the world model gets as the same bin, because it cannot tell them apart; ``ignore``: do not compare camera
            axes.
        tolerance: number of bins, for ``within``.
        camera_bins: maps degrees to the bins in which the world model gets an angle, for ``cell``.

    Returns:
        Action group -> bool [F, K]; without camera axes for ``ignore``.

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

    w_c = clip(1 / (n share_c), 0.2, 5), where n is the number of classes that occur. The weights are then scaled to the
    mean 1 under the shares, so that balancing does not change the scale of the reward.

    Args:
        share: [K], how often each class is commanded; the shares need not sum to 1.

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
    """Look up the weight of each frame's commanded class: action group -> float32 [F]."""
    classes = group_classes(actions, groups)
    return {name: torch.from_numpy(weights[name][classes[:, column]]) for column, name in enumerate(groups)}
