"""A row of figures below its titles, for a terminal. Independent of what the figures mean."""

from __future__ import annotations

from collections.abc import Mapping

NO_WEIGHTS = "no weights given"
"""Cell of a figure whose network was not given."""


def column_lines(cells: Mapping[str, str]) -> list[str]:
    """Format the titles and the cells as two lines, in columns of one width."""
    widths = [max(len(title), len(text)) for title, text in cells.items()]
    return [
        "  ".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))
        for texts in (list(cells), list(cells.values()))
    ]
