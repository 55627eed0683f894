"""A row of a dataset, and how a source says no to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vcot.grounding import BoxFault
from vcot.records import Reason

Edges = tuple[float, float, float, float]


class Refused(Exception):
    """This row gives no Sample. `detail`: the thing as it was written, and what would be right.

    places: boxes in pixels of the original that show what is wrong, where no Box came of them.
    """

    def __init__(self, reason: Reason, detail: str, places: tuple[Edges, ...] = ()) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.places = places


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was found: `id` names it in the whole run (`gqa.json:12`), `value` is what it says.

    `fault` is set, and `value` empty, where the row could not even be read.
    """

    id: str
    value: Mapping[str, Any]
    fault: Refused | None = None


BOX_REASONS = {
    BoxFault.NO_BOX_TEXT: Reason.NO_BOX,
    BoxFault.WRONG_COUNT: Reason.BOX_MALFORMED,
    BoxFault.NOT_A_NUMBER: Reason.BOX_MALFORMED,
    BoxFault.UNBALANCED_TAG: Reason.BOX_MALFORMED,
    BoxFault.NOT_FINITE: Reason.BOX_NOT_FINITE,
    BoxFault.INVERTED: Reason.BOX_INVERTED,
    BoxFault.ZERO_AREA: Reason.BOX_EMPTY,
    BoxFault.OUTSIDE: Reason.BOX_OUTSIDE,
    BoxFault.OUT_OF_RANGE: Reason.BOX_OUTSIDE,
}
"""What is wrong with a box → the reason of a Rejection."""
