"""`Following` in evaluation.json: its figures, and the actions from which they are computed again.

Classes are a line for each clip, with a word for each frame and base-36 digits for each field.
Legend: P clips, F generated frames, K fields, A axes among them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rlir_ray.data.files import Json
from rlir_ray.evaluation.following import Following
from rlir_ray.rewards.classification import or_none
from rlir_ray.rewards.field_scores import FieldValues
from rlir_ray.spaces.fields import ActionField, Axis
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import VPT_SPACE


def following_to_json(following: Following) -> dict[str, object]:
    """Return the figures (null if undefined) and the actions from which `following_from_json` computes them again."""
    fields = following.fields
    figures = [name for each in following.headline for name in (each, f"{each}_se")]
    axes = [column for column, field in enumerate(fields) if isinstance(field, Axis)]
    num_digits = 1 if max(field.num_classes for field in fields) <= 36 else 2
    content: dict[str, object] = {name: or_none(getattr(following, name)) for name in figures}
    content["per_group"] = {
        name: {figure: or_none(value) for figure, value in part.items()} for name, part in following.per_group.items()
    }
    content |= {"groups": list(following.groups), "space": ActionSpace(fields).to_plain()}
    for side, values in (("commanded", following.commanded), ("recovered", following.recovered)):
        content[side] = _to_text(values.classes, num_digits)
        content[f"{side}_values"] = _numbers(values.values[..., axes])
    return content


def following_from_json(content: Json) -> Following:
    """Read what `following_to_json` wrote; evaluations of earlier versions are of VPT's space."""
    names = tuple(content["groups"])
    fields = ActionSpace.from_plain(content["space"]).fields if "space" in content else VPT_SPACE.select(names)
    commanded, recovered = (_values(content, side, fields) for side in ("commanded", "recovered"))
    return Following(fields=fields, commanded=commanded, recovered=recovered)


def _values(content: Json, side: str, fields: Sequence[ActionField]) -> FieldValues:
    """Read classes and values; where only the classes are known, an axis has the centres of its bins."""
    classes = _from_text(content[side], len(fields))
    values = np.stack([field.centres(classes[..., column]) for column, field in enumerate(fields)], -1)
    axes = [column for column, field in enumerate(fields) if isinstance(field, Axis)]
    if known := content.get(f"{side}_values"):
        values[..., axes] = np.array(known).reshape(*classes.shape[:2], len(axes))
    return FieldValues(classes, values.astype(np.float32))


def _numbers(values: npt.NDArray[np.float32]) -> list[list[list[float]]]:
    """Return the shortest numbers that become these again in float32."""
    return [[[float(str(number)) for number in frame] for frame in clip] for clip in values]


def _to_text(classes: npt.NDArray[np.int64], num_digits: int) -> list[str]:
    return [
        " ".join("".join(np.base_repr(index, 36).rjust(num_digits, "0") for index in frame) for frame in clip)
        for clip in classes
    ]


def _from_text(lines: Sequence[str], num_fields: int) -> npt.NDArray[np.int64]:
    def classes(word: str) -> list[int]:
        num_digits = len(word) // num_fields
        return [int(word[place : place + num_digits], 36) for place in range(0, len(word), num_digits)]

    return np.array([[classes(word) for word in line.split()] for line in lines], np.int64)
