"""Rows as the page shows them: the picture with what people annotated and what a teacher proposed, in two colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from markupsafe import Markup

from vcot.grounding import Box, Mention, Trace
from vcot.records.page import PREDICTED, TRUE, data_uri, overlay
from vcot.records.picture import picture
from vcot.storage import Store
from vcot.storage.images import ImageError
from vcot.teacher.report.specimens import Specimen

ROOM = 4_000_000
"""Characters that all pictures of a page may take, so that it opens anywhere."""

_SIDE, _SMALL_SIDE = 340, 230
"""Pixels of the longer side of a picture, kept and refused."""
_LABEL = 32
"""Characters of a label in a picture."""


@dataclass(frozen=True)
class Card:
    """picture: a data URI, or None, and `note` says why. reasoning: HTML, labels in the colours of their boxes."""

    row: Specimen
    picture: str | None
    reasoning: Markup
    note: str = ""
    proposed: int = 0


class Gallery:
    """Draws until the page is full."""

    def __init__(self, store: Store, room: int = ROOM) -> None:
        self._store, self._room = store, room

    def cards(self, rows: Iterable[Specimen]) -> list[Card]:
        return [self._card(row) for row in rows]

    def _card(self, row: Specimen) -> Card:
        drawn = drawn_boxes(row)
        reasoning = told(row.reasoning, row) if row.reasoning is not None else Markup()
        proposed = len(drawn[PREDICTED])
        if row.image is None:
            return Card(row, None, reasoning, "asked by text alone", proposed)
        try:
            pixels = picture(self._store, row.image).pixels
        except ImageError as error:
            return Card(row, None, reasoning, str(error), proposed)
        boxes = {colour: [box for box, _ in found] for colour, found in drawn.items()}
        labels = {colour: [label for _, label in found] for colour, found in drawn.items()}
        side = _SIDE if row.kind == "kept" else _SMALL_SIDE
        size = row.image.width, row.image.height
        uri = data_uri(overlay(pixels, boxes, labels, original=size, longest_side=side), quality=75)
        if len(uri) > self._room:
            return Card(row, None, reasoning, "no room for more pictures on this page", proposed)
        self._room -= len(uri)
        return Card(row, uri, reasoning, proposed=proposed)


def drawn_boxes(row: Specimen) -> Mapping[str, list[tuple[Box, str]]]:
    """Colour → boxes with their labels: of a row that was kept what its reasoning points at, else what people
    annotated. A label stands at the first of its boxes."""
    drawn: dict[str, list[tuple[Box, str]]] = {TRUE: [], PREDICTED: []}
    mentions = row.reasoning.mentions if row.reasoning is not None else row.evidence
    for mention in dict.fromkeys(mentions):
        for number, box in enumerate(mention.boxes):
            drawn[_colour(box, row)].append((box, "" if number else _short(mention.label)))
    return drawn


def told(trace: Trace, row: Specimen) -> Markup:
    """The reasoning with its labels in the colours of their boxes."""
    return Markup().join(_part(part, row) for part in trace.parts)


def _part(part: str | Mention, row: Specimen) -> Markup:
    if isinstance(part, str):
        return Markup.escape(part)
    kind = "true" if all(_colour(box, row) == TRUE for box in part.boxes) else "proposed"
    return Markup('<span class="{}">{}</span>').format(kind, part.label)


def _colour(box: Box, row: Specimen) -> str:
    return TRUE if any(box in mention.boxes for mention in row.evidence) else PREDICTED


def _short(label: str) -> str:
    return label if len(label) <= _LABEL else f"{label[:_LABEL]}…"
