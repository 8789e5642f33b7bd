"""Line charts as SVG text: curves of a run inside one self-contained page, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 340, 180
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 34, 22
COLORS = ("#1a56db", "#c2410c", "#15803d", "#7e22ce", "#6b7280")


def line_chart(title: str, steps: Sequence[float], series: Mapping[str, Sequence[float]], *, zero: bool = False) -> str:
    """Draw curves over steps as an SVG element.

    Args:
        title: stands above.
        steps: x, rising.
        series: label -> y for each step; values that are not finite are left out. Several are labelled.
        zero: let the y axis begin at 0.
    """
    values = [value for curve in series.values() for value in curve if math.isfinite(value)]
    ticks = nice_ticks(min([0.0] if zero else values), max(values))
    low, high, first, last = ticks[0], ticks[-1], steps[0], steps[-1]

    def place(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (step - first) / max(last - first, 1e-9) * (WIDTH - LEFT - RIGHT)
        return x, HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="0" y="12" class="title">{escape(title)}</text>', *_grid(ticks, place(0, low)[1], low, high)]
    parts += [
        f'<text x="{place(step, low)[0]:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{prefix}{step:g}</text>'
        for step, anchor, prefix in ((first, "start", "step "), (last, "end", ""))
    ]
    legend = LEFT
    for (label, curve), color in zip(series.items(), COLORS, strict=False):
        points = [place(*pair) for pair in zip(steps, curve, strict=True) if math.isfinite(pair[1])]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{color}"/>' for x, y in points[-1:]]
        if len(series) > 1:
            parts.append(f'<text x="{legend}" y="27" style="fill:{color}">{escape(label)}</text>')
            legend += 9 + 6 * len(label)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _grid(ticks: Sequence[float], bottom: float, low: float, high: float) -> list[str]:
    parts = []
    for tick in ticks:
        y = bottom - (tick - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick:.6g}</text>')
    return parts


def nice_ticks(low: float, high: float, count: int = 3) -> list[float]:
    """Return ticks that enclose low..high, about `count` steps of 1, 2 or 5 times a power of ten.

    Example: ``nice_ticks(0.62, 0.71)`` is ``[0.6, 0.65, 0.7, 0.75]``.
    """
    value_range = high - low
    if value_range <= 0:
        value_range = abs(high) or 1.0
    raw = value_range / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [round(index * step, 12) for index in range(first, last + 1)]
