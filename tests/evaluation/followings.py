"""Followings of classes that a test spells out, for tests of figures, reports and results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rlir_ray.evaluation.following import Following
from rlir_ray.rewards.field_scores import FieldValues
from rlir_ray.spaces.fields import ActionField, Axis, Choice, Uniform
from rlir_ray.spaces.vpt import VPT_SPACE

GROUPS = ("forward_back", "jump")
# Four bins of 2 with the centres -3, -1, 1, 3; and forty narrow ones, which need two digits each in JSON.
STEER = Axis(name="steer", low=-4, high=4, unit="degrees", quantizer=Uniform(num_bins=4), direction="right")
LIFT = Axis(name="lift", low=0, high=1, quantizer=Uniform(num_bins=40), direction="down")
GEAR = Choice(name="gear", classes=("back", "idle", "on"), null_class=1)


def field_values(fields: Sequence[ActionField], classes: npt.ArrayLike) -> FieldValues:
    """Classes [P, F, K], with the centres of the bins as the values of axes."""
    found = np.asarray(classes, np.int64)
    values = [field.centres(found[..., column]) for column, field in enumerate(fields)]
    return FieldValues(found, np.stack(values, -1).astype(np.float32))


def read_values(fields: Sequence[ActionField], values: npt.ArrayLike) -> FieldValues:
    """Values [P, F, K], with the bins of axes as their classes."""
    found = np.asarray(values, np.float32)
    classes = [field.bins(found[..., column]) for column, field in enumerate(fields)]
    return FieldValues(np.stack(classes, -1), found)


def vpt_following(groups: Sequence[str], commanded: npt.ArrayLike, recovered: npt.ArrayLike) -> Following:
    """Classes [P, F, K] of some fields of VPT's space."""
    fields = VPT_SPACE.select(groups)
    return Following(
        fields=fields, commanded=field_values(fields, commanded), recovered=field_values(fields, recovered)
    )


def following(fields: Sequence[ActionField], commanded: npt.ArrayLike, recovered: npt.ArrayLike) -> Following:
    """Values [P, F, K] of some fields."""
    return Following(
        fields=tuple(fields), commanded=read_values(fields, commanded), recovered=read_values(fields, recovered)
    )
