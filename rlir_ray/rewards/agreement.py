"""Compare recovered actions with commanded actions: the rules of inverse rewards (RLIR, arXiv 2509.23958).

`agreement` compares them: its `rule` combines the fields of the action space, and the credit of each class says how
well the class obeys a command. Tensors in, tensors out; no models and no videos.
Legend: G trajectories of a group, F frames, K classes (bins) of one field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.config import AXIS_MATCHES, RULES, RewardConfig
from rlir_ray.idm.base import one_hot_classes
from rlir_ray.spaces.fields import ActionField, Axis, Choice
from rlir_ray.spaces.layouts import Cells
from rlir_ray.spaces.space import Actions

# Bounds of a class weight before normalisation: a class of one frame in a thousand must not dominate the reward.
MIN_WEIGHT, MAX_WEIGHT = 0.2, 5.0


@dataclass(frozen=True, kw_only=True)
class AxisMatch:
    """Which bins of an axis obey a command, and how well.

    Args:
        kind: ``exact``: the bin of the command; ``within``: bins at a distance of at most `tolerance`; ``cell``: the
            bins of all values that the world model gets as the same input, because it cannot tell them apart;
            ``smooth``: every bin, by exp(-|error| / scale); ``ignore``: do not compare axes.
        tolerance: distance, for ``within``.
        in_bins: whether `tolerance` counts bins; otherwise it has the unit of the axis.
        scale: error at which the credit falls to 1/e, as a share of the axis's range, for ``smooth``.
        cells: the world model's inputs, for ``cell``; None: its inputs are the bins.
    """

    kind: str = "exact"
    tolerance: float = 1.0
    in_bins: bool = True
    scale: float = 0.1
    cells: Cells | None = None

    @classmethod
    def of(cls, config: RewardConfig, cells: Cells | None) -> AxisMatch:
        return cls(
            kind=config.axis,
            tolerance=config.axis_tolerance,
            in_bins=config.axis_tolerance_in == "bins",
            scale=config.axis_scale,
            cells=cells,
        )

    def credit(self, axis: Axis, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return how well each bin obeys each commanded value, [F] to float32 [F, K] in [0, 1]."""
        bins = np.arange(axis.num_classes)
        exact = axis.bins(values)[:, None] == bins
        # A command beyond the range of a clipped axis means the end of the range.
        error = np.abs(axis.centres(bins) - np.clip(values, axis.low, axis.high)[:, None])
        if self.kind == "within":
            near = np.abs(bins - axis.bins(values)[:, None]) if self.in_bins else error
            return np.asarray(near <= self.tolerance, np.float32)
        if self.kind == "cell" and self.cells is not None:
            return np.asarray(exact | self.cells(axis, values), np.float32)
        if self.kind == "smooth":
            return np.asarray(np.exp(-error / (self.scale * (axis.high - axis.low))), np.float32)
        return np.asarray(exact, np.float32)


EXACT = AxisMatch()


def agreement(
    tables: Mapping[str, Tensor],
    credit: Mapping[str, Tensor],
    *,
    rule: str,
    fields: Mapping[str, ActionField],
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Compute the reward of each generated frame: agreement of the recovered with the commanded action.

    Args:
        tables: field -> float [G, F, K], the judge's score of each class; the scores sum to 1 over K. Probabilities
            give the expected credit (the soft reward); 1 at the recovered class (`idm.base.one_hot_classes`) gives the
            exact reward.
        credit: field -> float [F, K], how well each class obeys the command (see `class_credit`); only these fields are
            compared.
        rule: ``groups``: mean over the fields; ``joint``: product over the fields; ``fields``: mean over the axes and
            over the alternatives of the choices, where an alternative agrees if it is taken or left as commanded.
        fields: name -> field of the action space.
        weights: field -> float [F], factors of the field's agreement in each frame (see `frame_weights`).

    Returns:
        float32 [G, F], in [0, 1] without weights.

    Raises:
        ValueError: weights are given with another rule than ``groups``.
    """
    if weights is not None and rule != "groups":
        raise ValueError(f"class weights need reward.rule=groups, got {rule!r}; set reward.balance=none")
    if rule == "fields":
        return torch.cat([_alternatives(fields[name], tables[name], credit[name]) for name in credit], -1).mean(-1)
    by_field = {name: (tables[name].float() * credit[name]).sum(-1) for name in credit}  # [G, F] each
    if weights is not None:
        by_field = {name: value * weights[name] for name, value in by_field.items()}
    stacked = torch.stack(list(by_field.values()), -1)  # [G, F, fields]
    return stacked.prod(-1) if rule == "joint" else stacked.mean(-1)


def compare(
    commanded: Actions, recovered: Actions, names: Sequence[str], *, rule: str = "groups", match: AxisMatch = EXACT
) -> npt.NDArray[np.float32]:
    """Compute the agreement of F recovered actions with F commanded actions, without a model's heads.

    Args:
        commanded, recovered: actions of one space.
        names: fields to compare.
        rule: as in `agreement`.
        match: comparison of axes.

    Returns:
        float32 [F], in [0, 1].
    """
    fields = commanded.space.select(names)
    classes = torch.from_numpy(recovered.classes_of(names))[None]  # [1, F, fields]
    credit = class_credit(commanded, names, match)
    tables = one_hot_classes(classes, fields)
    return agreement(tables, credit, rule=rule, fields=dict(zip(names, fields, strict=True)))[0].numpy()


def every_rule(
    exact: Mapping[str, Tensor], soft: Mapping[str, Tensor], commanded: Actions, match: AxisMatch
) -> dict[str, float]:
    """Compute the mean agreement under every rule, for the log.

    Args:
        exact: tables of the recovered classes, as in `agreement`.
        soft: tables of the probabilities, as in `agreement`.
        commanded: the F commanded actions.
        match: the configured comparison of axes.

    Returns:
        With the configured comparison: ``groups``, ``joint`` and ``fields`` of the recovered classes, and ``soft``, the
        rule ``groups`` of the probabilities. If the fields include an axis, also ``RULE/KIND`` for every other kind of
        comparison.
    """
    names = tuple(exact)
    fields = dict(zip(names, commanded.space.select(names), strict=True))
    credit = class_credit(commanded, names, match)
    found = {rule: float(agreement(exact, credit, rule=rule, fields=fields).mean()) for rule in RULES}
    found["soft"] = float(agreement(soft, credit, rule="groups", fields=fields).mean())
    axes = [field for field in fields.values() if isinstance(field, Axis)]
    for other in AXIS_MATCHES if axes else ():
        if other == match.kind or (other == "ignore" and len(axes) == len(fields)):
            continue
        credit = class_credit(commanded, names, replace(match, kind=other))
        found |= {f"{rule}/{other}": float(agreement(exact, credit, rule=rule, fields=fields).mean()) for rule in RULES}
    return found


def _alternatives(field: ActionField, table: Tensor, credit: Tensor) -> Tensor:
    """Return the agreement of each alternative, [G, F, alternatives]; an axis counts as one alternative."""
    if isinstance(field, Axis):
        return (table.float() * credit).sum(-1, keepdim=True)
    # The class that does nothing is no alternative: each of the others says by itself whether it is taken.
    acting = [number for number in range(field.num_classes) if number != field.null_class]
    taken, wanted = table[..., acting].float(), credit[..., acting]
    return torch.where(wanted > 0, taken, 1 - taken)


def class_credit(actions: Actions, names: Sequence[str], match: AxisMatch = EXACT) -> dict[str, Tensor]:
    """Say how well each class obeys each command.

    Args:
        actions: the F commanded actions.
        names: fields of their space.
        match: comparison of axes; of a choice, only the commanded class obeys.

    Returns:
        Field -> float32 [F, K], in [0, 1]; without axes for ``ignore``.

    Raises:
        ValueError: no field is left to compare.
    """
    kept = [field for field in actions.space.select(names) if match.kind != "ignore" or isinstance(field, Choice)]
    if not kept:
        raise ValueError(
            f"reward.axis=ignore must leave a field to compare, got world.groups={','.join(names)}; add a choice or "
            "set reward.axis=exact"
        )
    credit = {}
    for field in kept:
        values = actions.values_of([field.name])[:, 0]
        if isinstance(field, Axis):
            credit[field.name] = torch.from_numpy(match.credit(field, values))
        else:
            taken = field.bins(values)[:, None] == np.arange(field.num_classes)
            credit[field.name] = torch.from_numpy(taken.astype(np.float32))
    return credit


def class_weights(share: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Compute inverse-frequency weights of the classes of one field.

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
    actions: Actions, names: Sequence[str], weights: Mapping[str, npt.NDArray[np.float32]]
) -> dict[str, Tensor]:
    """Look up the weight of each frame's commanded class: field -> float32 [F]."""
    classes = actions.classes_of(names)
    return {name: torch.from_numpy(weights[name][classes[:, column]]) for column, name in enumerate(names)}
