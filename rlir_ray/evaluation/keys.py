"""Pictures of one frame's actions: keys below the frame, and a target on the frame. Independent of files and models.

Legend: K fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rlir_ray.spaces.fields import ActionField, Axis
from rlir_ray.spaces.space import ActionSpace
from rlir_ray.spaces.vpt import KEY_LABELS, VPT_SPACE

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

INK, PAPER, GREEN, RED = (32, 33, 36), (255, 255, 255), (24, 128, 56), (197, 34, 31)
# The largest value of an axis reaches this share of the way from the frame's centre to its edge.
TARGET_REACH = 0.6
# A label of more alternatives than these names only the first and the last.
MAX_LABELS = 3


def label_font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont as fonts

    return fonts.load_default(size)


def draw_target(
    draw: ImageDraw,
    size: tuple[int, int],
    space: ActionSpace,
    commanded: npt.NDArray[np.float32],
    recovered: npt.NDArray[np.float32] | None,
) -> None:
    """Draw two graded axes, one to the right and one down, as a target seen from the centre of the frame.

    A green disc is the commanded target, a red ring the recovered one. Other spaces are not drawn.

    Args:
        draw, size: canvas of the frame, and its width and height in pixels.
        space, commanded, recovered: the K fields, and their values [K].
    """
    axes = target_axes(space.fields)
    if not axes:
        return
    columns = space.columns([axis.name for axis in axes])
    centre = (size[0] / 2, size[1] / 2)
    for values, color, is_ring in ((commanded, GREEN, False), (recovered, RED, True)):
        if values is None:
            continue
        x, y = (
            middle * (1 + TARGET_REACH * _offset(axis, float(value)))
            for middle, axis, value in zip(centre, axes, values[columns], strict=True)
        )
        draw.line((*centre, x, y), fill=color, width=2)
        radius = 7 if is_ring else 5
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=None if is_ring else color, outline=color, width=2)


def target_axes(fields: Sequence[ActionField]) -> list[Axis]:
    """Return the graded axes to the right and down that make a target; empty: there is no such pair."""
    graded = [field for field in fields if isinstance(field, Axis) and field.is_graded]
    axes = [axis for direction in ("right", "down") for axis in graded if axis.direction == direction]
    return axes if [axis.direction for axis in axes] == ["right", "down"] else []


def _offset(axis: Axis, value: float) -> float:
    """Return how far a value lies from zero, as a share of the longer way to an end of the axis.

    A range on one side of zero, as of a position in pixels, counts from its middle.
    """
    origin = 0.0 if axis.low < 0 < axis.high else (axis.low + axis.high) / 2
    return (value - origin) / max(axis.high - origin, origin - axis.low)


def draw_keys(
    draw: ImageDraw,
    box: tuple[float, float, float, float],
    fields: Sequence[ActionField],
    commanded: npt.NDArray[np.float32],
    recovered: npt.NDArray[np.float32] | None,
) -> None:
    """Draw a key for each field: filled if an action is commanded, else outlined.

    Green: the judge recovered the action. Red: the judge did not. Black: no judge read the clip.

    Args:
        draw: canvas of the picture.
        box: left, top, right, bottom in pixels.
        fields, commanded, recovered: K fields, and their values [K].
    """
    left, top, right, bottom = box
    width = (right - left) / len(fields)
    for column, field in enumerate(fields):
        value, read = float(commanded[column]), None if recovered is None else float(recovered[column])
        color = INK if read is None else GREEN if _agree(field, value, read) else RED
        label, idle = key_label(field, value)
        key = (left + column * width + 1, top, left + (column + 1) * width - 4, bottom)
        draw.rounded_rectangle(key, 5, fill=PAPER if idle else color, outline=color, width=1 if idle else 0)
        center = ((key[0] + key[2]) / 2, (top + bottom) / 2)
        if isinstance(field, Axis) and field.direction != "none" and not idle and _offset(field, value):
            _draw_arrow(draw, center, field, value)
        else:
            draw.text(center, label, color if idle else PAPER, label_font(13), anchor="mm")


def _agree(field: ActionField, commanded: float, recovered: float) -> bool:
    """Return whether a reading shows the command; a reading of a graded axis may be one bin off."""
    distance = abs(int(field.bins(commanded)) - int(field.bins(recovered)))
    return distance <= (1 if field.is_graded else 0)


def key_label(field: ActionField, value: float) -> tuple[str, bool]:
    """Return the label of a field's key and whether no action is commanded; an idle field shows all its keys."""
    idle = int(field.bins(value)) == field.null_class
    if isinstance(field, Axis):
        return (field.name if idle else field.words(value)), idle
    labels = KEY_LABELS if field in VPT_SPACE.fields else {}
    if not idle:
        return labels.get(field.words(value), field.words(value)), False
    keys = [labels.get(name, name) for number, name in enumerate(field.classes) if number != field.null_class]
    return ("/".join(keys) if len(keys) <= MAX_LABELS else f"{keys[0]}-{keys[-1]}"), True


def _draw_arrow(draw: ImageDraw, center: tuple[float, float], axis: Axis, value: float) -> None:
    """Draw an arrow whose length shows a value, to the right or down where the value is positive."""
    offset = _offset(axis, value)
    if not axis.is_graded:
        # The bins of a mu-law are finer around zero, and show small turns better than their numbers.
        offset = 2 * int(axis.bins(value)) / (axis.num_classes - 1) - 1
    sign, half = (1 if offset > 0 else -1), 7 + 8 * min(abs(offset), 1)
    neck = half - 7
    points = np.array([[-half, -2], [neck, -2], [neck, -6], [half, 0], [neck, 6], [neck, 2], [-half, 2]]) * [sign, 1]
    if axis.direction == "down":
        points = points[:, ::-1] * [1, 0.7]
    draw.polygon([(center[0] + x, center[1] + y) for x, y in points], fill=PAPER)
