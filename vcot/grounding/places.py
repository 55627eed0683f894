"""Where in the image a box lies, in words."""

from __future__ import annotations

from vcot.grounding.boxes import Box

_ROWS = ("top", "", "bottom")
_COLUMNS = ("left", "", "right")


def place(box: Box, width: int, height: int) -> str:
    """One of nine words by the thirds of the image that hold the box's centre.

    "top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right".
    """
    x, y = (box.x1 + box.x2) / 2, (box.y1 + box.y2) / 2
    row = _ROWS[min(int(3 * y / height), 2)]
    column = _COLUMNS[min(int(3 * x / width), 2)]
    return f"{row} {column}".strip() or "centre"
