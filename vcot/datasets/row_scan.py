"""What prepare notes of every row: its image, the side of the split that it names, and its question.

Most sources can tell the image and the question of a row at a glance (Dataset.glance), without making a Sample, which
is what takes the time. Whether the row will be kept is then unknown, and mostly that does not matter. Rows for which
it does are read whole in a second scan: those whose question another row asks too, and those about an image on which
rows disagree or that nearly is another one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from vcot.datasets import quality, repeats
from vcot.datasets.base import ConversionContext, Split, given_id
from vcot.datasets.mixture import Part
from vcot.datasets.reading import in_order, one
from vcot.datasets.row import Refused, Row
from vcot.grounding import BoxError
from vcot.records import Image, Sample
from vcot.stage import Bar
from vcot.storage.images import ImageError

Note = dict[str, Any]
How = Literal["declared", "glance", "whole"]
"""How a row is looked at: for the split that it names alone, at a glance, or read whole."""
SAID: Mapping[Split | None, int] = {None: 1, "train": 2, "validation": 4, "test": 8}
"""Bits for what rows say of an image's side, in the order in which they count."""
COLUMNS = {
    "row": "BIGINT", "id": "VARCHAR", "name": "VARCHAR", "said": "UTINYINT", "sha": "VARCHAR", "uri": "VARCHAR",
    "key": "VARCHAR", "asked": "VARCHAR", "sound": "BOOLEAN", "places": "VARCHAR", "dataset": "VARCHAR",
    "whole": "BOOLEAN",
}  # fmt: skip
"""Of a row's note. name: the id that it gives itself. The others are null where the row is refused: sound, whether
the rules for quality keep it (null: nobody has asked); places, of its boxes, once it was read whole; dataset and
whole, what Dataset.whole says.
"""
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode


def scan(
    part: Part, first: int, share: tuple[int, int], readers: int, how: How, wanted: bytes | None, path: Path
) -> None:
    """Notes a share of a part's rows as lines of JSON in a file.

    first: number of the part's first row. share: (index, how many). wanted: a byte for each row, which is not 0 where
    the row is to be read; None: all are.
    """
    source, (index, processes) = part.source, share
    look: Callable[[Part, Row, ConversionContext], Note] = _whole
    if how == "declared":
        look = _declared
    elif how == "glance" and source.glance is not None:
        look = _glance
    lenient = replace(part.desk, rules=quality.QualityOptions(answer_in_label="keep"))
    hasty = replace(lenient, images=lenient.images.at_hand())

    def noted(item: tuple[int, Row], desk: ConversionContext = lenient) -> tuple[int, Row, Note]:
        place, row = item
        try:
            return place, row, look(part, row, desk)
        except (Refused, BoxError, ImageError, ValidationError, RecursionError):
            return place, row, {}

    rows = part.numbered(index, processes) if wanted is None else part.numbered(
        index, processes, lambda place: place < len(wanted) and wanted[place] > 0
    )  # fmt: skip
    with part.named(), path.open("wb") as lines, Bar("looking at all rows", shown=index == 0) as bar:
        for number, (place, row, note) in enumerate(
            in_order(noted, rows, readers, at_once=lambda item: noted(item, hasty)), 1
        ):
            name = given_id(row) if source.names_rows else None
            line = {"row": first + place, "id": row.id, "name": name and part.desk.called(name)} | note
            # Half a surrogate pair may be in JSON and not in a database; such a row is refused.
            lines.write(_ENCODE(line).encode(errors="replace") + b"\n")
            if number % 200 == 0:
                bar.advance(200 * processes)


def _declared(part: Part, row: Row, desk: ConversionContext) -> Note:
    return {"said": SAID[desk.declared(row)]}


def _glance(part: Part, row: Row, desk: ConversionContext) -> Note:
    assert part.source.glance is not None
    if row.fault is not None:
        return {}
    image, question = part.source.glance(row, desk)
    return _note(part, row, image, SAID[desk.declared(row)], question)


def _whole(part: Part, row: Row, desk: ConversionContext) -> Note:
    sample = one(row, desk)
    if not isinstance(sample, Sample):
        return {}
    kind, asked = part.source.asks(row) if part.source.asks is not None else ("", repeats.question(sample))
    question = repeats.Question(asked, sample.answers, kind)
    note = _note(part, row, repeats.about(sample), SAID[desk.declared(row)], question)
    places = repeats.places(sample)
    return note | {"sound": _sound(sample, part.desk), "places": None if places is None else places.hex()}


def _note(part: Part, row: Row, about: Image | repeats.Asked, said: int, question: repeats.Question) -> Note:
    near = part.desk.options.duplicates == "near"
    note = {"said": said, "sha": about.sha256, "key": repeats.key(about.sha256, question, near=near).hex()}
    if near:
        note["asked"] = question.asked
    if isinstance(about, Image):
        note["uri"] = about.uri
        if part.source.whole is not None and (found := part.source.whole(row, about)) is not None:
            note["dataset"], note["whole"] = found
    return note


def _sound(sample: Sample, desk: ConversionContext) -> bool:
    try:
        if desk.rules.checks:
            quality.judged(sample, desk.rules)
    except Refused:
        return False
    return True
