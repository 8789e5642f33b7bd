"""The term `inverse`: compare the actions that an inverse dynamics model recovers with the commanded actions.

Legend: G trajectories of a group, C context frames, F generated frames, K classes of a field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlir_ray.idm.base import axis_values, one_hot_classes
from rlir_ray.rewards.agreement import AxisMatch, agreement, class_credit, class_weights, every_rule, frame_weights
from rlir_ray.rewards.classification import confusion
from rlir_ray.rewards.term import GroupClips, Recovered, Term
from rlir_ray.spaces.fields import Axis
from rlir_ray.spaces.layouts import Cells
from rlir_ray.spaces.space import Actions, ActionSpace

if TYPE_CHECKING:
    from rlir_ray.config import RewardConfig
    from rlir_ray.rewards.base import RewardContext


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipScores:
    """The scores of one clip of K frames; the first frame has no action."""

    agreement: npt.NDArray[np.float32]
    """[K - 1], agreement under the configured rule."""
    space: ActionSpace
    """The space of the actions."""
    commanded: dict[str, npt.NDArray[np.float32]]
    """Field -> [K - 1], commanded values."""
    recovered: dict[str, npt.NDArray[np.float32]]
    """Field -> [K - 1], the most probable class of a choice, the expected value of an axis."""
    by_field: dict[str, npt.NDArray[np.float32]]
    """Field -> [K - 1], agreement of the field: with match=soft the expected credit, with match=exact the credit of the
    recovered class."""


class InverseTerm(Term):
    """The inverse reward (RLIR, arXiv 2509.23958): agreement of the recovered with the commanded actions.

    Args:
        names: fields to compare.
        config: rule, axis, match and balance, and their schedule.
        class_shares: field -> frequency of each commanded class, for `balance=class`.
        cells: which bins the world model cannot tell apart, for `axis=cell`.

    Raises:
        ValueError: `balance=class` is set without shares, or with another rule than `groups`.
    """

    reads_idm = True

    def __init__(
        self,
        names: Sequence[str],
        config: RewardConfig,
        *,
        class_shares: Mapping[str, npt.NDArray[np.floating]] | None = None,
        cells: Cells | None = None,
    ) -> None:
        if config.balance == "class" and (class_shares is None or config.rule != "groups"):
            found = f"rule {config.rule!r} and {'no ' if class_shares is None else ''}class shares"
            raise ValueError(
                f"reward.balance=class needs reward.rule=groups and class shares, got {found}; set reward.balance=none"
            )
        self.names, self.config, self.cells = tuple(names), config, cells
        self.weights: dict[str, npt.NDArray[np.float32]] | None = None
        if config.balance == "class" and class_shares is not None:
            self.weights = {name: class_weights(class_shares[name]) for name in names}

    @classmethod
    def from_context(cls, context: RewardContext) -> InverseTerm:
        config = context.config
        return cls(config.world.groups, config.reward, class_shares=context.class_shares, cells=context.cells)

    def score(self, clips: GroupClips) -> npt.NDArray[np.float32]:
        """Return the agreement of each generated frame, [G, F], under the rule at the clips' policy version."""
        config, commanded = self.config.at_version(clips.policy_version), clips.commanded
        soft, exact = generated_tables(clips, self.names)
        credit = class_credit(commanded, self.names, AxisMatch.of(config, self.cells))
        weights = frame_weights(commanded, tuple(credit), self.weights) if self.weights else None
        fields = dict(zip(self.names, commanded.space.select(self.names), strict=True))
        tables = exact if config.match == "exact" else soft
        found = agreement(tables, credit, rule=config.rule, fields=fields, weights=weights)
        return found.numpy().astype(np.float32)

    def clip_scores(self, recovered: Recovered, actions: Actions) -> ClipScores:
        """Score one clip of frames.

        Args:
            recovered: the reading of one clip, G = 1 and K frames.
            actions: K - 1 actions; action i leads into frame i + 1.

        Raises:
            ValueError: `balance=class` is set, whose weights belong to the commands of a run.
        """
        if self.weights:
            raise ValueError("single clips need reward.balance=none, got 'class'; set reward.balance=none")
        config, names = self.config, self.names
        fields = dict(zip(names, actions.space.select(names), strict=True))
        soft = {name: table[:, 1:] for name, table in recovered.probabilities.items()}  # [1, K - 1, classes]
        classes = recovered.classes[:, 1:]  # [1, K - 1, fields]
        credit = class_credit(actions, names, AxisMatch.of(config, self.cells))
        tables = one_hot_classes(classes, tuple(fields.values())) if config.match == "exact" else soft
        values = {
            name: axis_values(soft[name][0], field) if isinstance(field, Axis) else classes[0, :, column]
            for column, (name, field) in enumerate(fields.items())
        }
        return ClipScores(
            agreement=agreement(tables, credit, rule=config.rule, fields=fields)[0].numpy().astype(np.float32),
            space=actions.space,
            commanded=dict(zip(names, actions.values_of(names).T, strict=True)),
            recovered={name: found.numpy().astype(np.float32) for name, found in values.items()},
            by_field={name: (tables[name].float() * credit[name]).sum(-1)[0].numpy() for name in credit},
        )


# ---------------------------------------------------------------------------------------------------------------------
# Figures for the log


@dataclass(frozen=True, kw_only=True, slots=True)
class Following:
    """How well a group follows its commands, whatever the reward; fields as those of `RewardScores`."""

    rules: dict[str, float]
    confusion: dict[str, npt.NDArray[np.int64]]
    null_classes: dict[str, int | None]
    axis_errors: dict[str, float]


def following(clips: GroupClips, names: Sequence[str], match: AxisMatch) -> Following:
    """Summarise what the inverse dynamics model reads in a group, for the log.

    Args:
        clips: with a reading.
        names: the compared fields.
        match: the configured comparison of axes.
    """
    commanded, (soft, exact) = clips.commanded, generated_tables(clips, names)
    assert clips.recovered is not None
    classes = clips.recovered.classes[:, clips.num_context :].numpy()  # [G, F, fields]
    return Following(
        rules=every_rule(exact, soft, commanded, match),
        confusion=field_confusion(classes, commanded, names),
        null_classes={field.name: field.null_class for field in commanded.space.select(names) if not field.is_graded},
        axis_errors=axis_errors(soft, commanded, names),
    )


def generated_tables(clips: GroupClips, names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the probabilities of the generated frames, and 1 at each recovered class: field -> float32 [G, F, K]."""
    assert clips.recovered is not None, "the term must have reads_idm = True"
    first = clips.num_context
    soft = {name: clips.recovered.probabilities[name][:, first:] for name in names}
    return soft, one_hot_classes(clips.recovered.classes[:, first:], clips.actions.space.select(names))


def field_confusion(
    recovered: npt.NDArray[np.int64], commanded: Actions, names: Sequence[str]
) -> dict[str, npt.NDArray[np.int64]]:
    """Count each pair of commanded (rows) and recovered (columns) classes, of every field but graded axes.

    Args:
        recovered: int64 [G, F, len(names)], recovered classes.
        commanded: F commanded actions, the same for all G clips.
        names: fields of their space.

    Returns:
        Field -> int64 [classes, classes].
    """
    classes = np.broadcast_to(commanded.classes_of(names), recovered.shape)
    return {
        field.name: confusion(recovered[..., column], classes[..., column], field.num_classes)
        for column, field in enumerate(commanded.space.select(names))
        if not field.is_graded
    }


def axis_errors(probabilities: Mapping[str, Tensor], commanded: Actions, names: Sequence[str]) -> dict[str, float]:
    """Average the distance of the expected from the commanded number, as a share of the range, of every graded axis.

    Args:
        probabilities: field -> [G, F, K].
        commanded: F commanded actions, the same for all G clips.
        names: fields of their space.
    """
    errors = {}
    for field in commanded.space.select(names):
        if isinstance(field, Axis) and field.is_graded:
            wanted = torch.from_numpy(commanded.values_of([field.name])[:, 0].clip(field.low, field.high))
            distance = (axis_values(probabilities[field.name], field) - wanted).abs().mean()
            errors[field.name] = float(distance) / (field.high - field.low)
    return errors
