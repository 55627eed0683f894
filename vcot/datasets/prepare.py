"""What prepare learns about all rows before the first shard, for every shard to know.

Every row is scanned once and noted: its image, the side of the split that it names, and its question. Most sources can
tell the image and the question of a row at a glance (Dataset.glance), without making a Sample, which is what takes the
time. Whether the row will be kept is then unknown, and mostly that does not matter. Rows for which it does are read
whole in a second scan: those whose question another row asks too, and those about an image on which rows disagree or
that nearly is another one. What follows from all notes together is found out in a database (row_index.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from vcot.datasets import duplicate_questions, mixture, quality, reading
from vcot.datasets.base import ConversionContext, Prepared, Split, given_id
from vcot.datasets.duplicate_questions import Asked, Question
from vcot.datasets.inputs import Refused, Row, fetch_offsets, leave_offsets
from vcot.datasets.parallel import Workers, in_order, until_stopped
from vcot.datasets.row_index import A_PART, COLUMNS, RowIndex, scratch_database
from vcot.errors import InputError
from vcot.grounding import BoxError
from vcot.records import Folder, Image, Sample
from vcot.stage import Bar
from vcot.storage import NotFound, join, read_json
from vcot.storage.images import ImageError

NAME = "survey.json"
WORTH_A_PROCESS = 8 << 20
"""Bytes of rows: with fewer, what a process does takes no longer than to begin it."""
Depth = Literal["declared", "glance", "whole"]
"""How a row is looked at: for the split that it names alone, at a glance, or read whole."""
SAID: Mapping[Split | None, int] = {None: 1, "train": 2, "validation": 4, "test": 8}
"""Bits for what rows say of an image's side, in the order in which they count."""


class Note(NamedTuple):
    """Of a row: the columns behind its id and name (row_index.COLUMNS)."""

    said: int | None = None
    sha: str | None = None
    uri: str | None = None
    key: bytes | None = None
    asked: str | None = None
    sound: bool | None = None
    places: bytes | None = None
    dataset: str | None = None
    whole: bool | None = None
    others: str | None = None


def informed(
    contexts: Sequence[ConversionContext], folder: Folder, *, look: bool, workers: Workers, readers: int,
    begin: Callable[[], None] = lambda: None,
) -> list[ConversionContext]:  # fmt: skip
    """Return the contexts with what prepare knows of all rows; the first call works it out and stores it.

    Args:
        look: work it out if it is not stored yet.
        begin: called before anything is stored, when all rows have been read: from here on the settings are fixed.

    Raises:
        InputError: it is not stored yet and `look` is false.
    """
    for context in contexts:
        fetch_offsets(folder, context.scratch, context.inputs)
        if context.dataset.ready is not None:
            context.dataset.ready(context)
    prepared = left(folder)
    if prepared is None:
        if not look:
            raise InputError(f"{join(folder.uri, NAME)} is missing: --part prepare comes before --part shards")
        prepared = survey(contexts, workers, readers)
        begin()
        for context in contexts:
            leave_offsets(folder, context.scratch, context.inputs)
        found = prepared.model_dump(mode="json")
        data = json.dumps({"sha256": _digest(found), "found": found}, indent=0).encode()
        folder.store.write_once(join(folder.uri, NAME), data)
    return [replace(context, prepared=prepared) for context in contexts]


def left(folder: Folder) -> Prepared | None:
    """What prepare has left in the stage's folder; None: nothing. Raises InputError: it is damaged."""
    uri, advice = join(folder.uri, NAME), f"delete {folder.uri} and run the stage again"

    def parse(there: Any) -> Prepared:
        found = there["found"]
        if there["sha256"] != _digest(found):
            raise ValueError("its digest is another")
        if found.keys() != Prepared.model_fields.keys():
            raise InputError(f"{uri}: another version of vcot made it; {advice}")
        return Prepared.model_validate(found)

    try:
        return read_json(folder.store, uri, parse, advice, recorded=False)
    except NotFound:
        return None


def _digest(found: Any) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def survey(contexts: Sequence[ConversionContext], workers: Workers, readers: int) -> Prepared:
    """What all shards must know of the rows.

    Raises:
        InputError: a benchmark file is none.
        TemporaryError: there is too little room on the scratch disk.
    """
    if len(contexts) == 1 and not contexts[0].inputs:  # drawn scenes alone are all different
        return Prepared()
    found: dict[str, Any] = {}
    weights = {context.part: context.weight for context in contexts if context.weight is not None}
    if weights:
        rows = {context.part: sum(1 for _ in until_stopped(reading.all_rows(context))) for context in contexts}
        found["shares"] = mixture.shares(rows, weights)
        contexts = [replace(context, prepared=Prepared(shares=found["shares"])) for context in contexts]
    options, benchmarks = contexts[0].options, contexts[0].benchmarks  # of the whole run, so of every part
    # Benchmarks count rows that are kept, and nearly the same question may be any row's: then all are read whole.
    depth: Depth = "whole" if benchmarks or options.duplicates == "near" else "glance"
    wanted = options.near_duplicates or options.duplicates != "keep" or benchmarks
    wanted = wanted or any(context.dataset.glance or context.dataset.several_images for context in contexts)
    with scratch_database(contexts[0].scratch / "rows.sqlite") as database:
        index = RowIndex(contexts, readers, database)
        index.load(scan(contexts, workers, readers, depth if wanted else "declared"))
        found["repeated"] = index.repeated_ids()
        # Rows that say the same of their side, or all nothing, cannot be at odds over an image.
        if not wanted and index.says_one_thing():
            return Prepared(**found)
        if not wanted:
            index.load(scan(contexts, workers, readers, depth))
        index.look_up_benchmarks()
        groups, found["damaged"] = index.group()
        again = index.wanted_again()
        if again and index.replace_rows(scan(contexts, workers, readers, "whole", again)) and options.near_duplicates:
            groups, _ = index.group()
        found |= index.sides()
        found["duplicates"] = index.duplicates()
        found["whole_pixels"] = index.whole_pixels()
        found["counts"] = {"near_duplicates": groups, "benchmarks": index.benchmark_counts()}
        return Prepared(**found)


# ------------------------------------------------------------------------------------------------------- the scans


def scan(
    contexts: Sequence[ConversionContext], workers: Workers, readers: int, depth: Depth,
    wanted: Sequence[bytes] | None = None,
) -> list[Path]:  # fmt: skip
    """Notes every row in databases (row_index.COLUMNS), in several processes where that pays.

    wanted: a byte for each row of each context, which is not 0 where the row is to be read; None: all are.
    """
    tasks: list[tuple[Any, ...]] = []
    most = 1
    for place, context in enumerate(contexts):
        if wanted is not None and not wanted[place]:
            continue
        worth = sum(file.size for file in context.inputs) // WORTH_A_PROCESS
        if context.limit is not None:
            worth = min(worth, math.ceil(context.limit / reading.BLOCK))
        processes = max(1, min(workers.count, worth))
        most = max(most, processes)
        for index in range(processes):
            path = context.scratch / f"notes-{place}-{index}.sqlite"
            share = (index, processes)
            tasks.append(
                (context, place * A_PART, share, max(1, readers // processes), depth, wanted and wanted[place], path)
            )
    if most == 1:  # no part is worth a second process
        for task in tasks:
            _scan(*task)
    else:
        workers.map(_scan, tasks)
    return [task[-1] for task in tasks]


def _scan(
    context: ConversionContext, first: int, share: tuple[int, int], readers: int, depth: Depth, wanted: bytes | None,
    path: Path,
) -> None:  # fmt: skip
    """first: number of the context's first row. share: (index, of how many). wanted: of this context's rows."""
    look: Callable[[Row, ConversionContext], Note] = partial(_whole, rules=context.rules)
    if depth == "declared":
        look = _declared
    elif depth == "glance" and context.dataset.glance is not None:
        look = _glance
    lenient = replace(context, rules=quality.QualityOptions(answer_in_label="keep"))
    hasty = replace(lenient, images=lenient.images.at_hand())

    def noted(item: tuple[int, Row], with_: ConversionContext = lenient) -> tuple[int, Row, Note]:
        place, row = item
        try:
            return place, row, look(row, with_)
        except (Refused, BoxError, ImageError, ValidationError, RecursionError):
            return place, row, Note()

    rows = reading.rows_in_blocks(context, *share, wanted)
    with (
        context.named(), scratch_database(path) as database, Bar("looking at all rows", shown=share[0] == 0) as bar
    ):  # fmt: skip

        def lines() -> Iterator[tuple[Any, ...]]:
            looked = in_order(noted, rows, readers, at_once=lambda item: noted(item, hasty))
            for number, (place, row, note) in enumerate(looked, 1):
                name = given_id(row) if context.dataset.names_rows else None
                yield first + place, row.id, name and _storable(context.called(name)), *note
                if number % 200 == 0:
                    bar.advance(200 * share[1])

        database.execute(f"create table rows ({COLUMNS})")
        database.executemany(f"insert into rows values (?, ?, ?{', ?' * len(Note._fields)})", lines())


def _storable(text: str) -> str:
    """Half a surrogate pair may be in JSON and not in a database; such a row is refused."""
    return text.encode(errors="replace").decode()


def _declared(row: Row, context: ConversionContext) -> Note:
    return Note(SAID[context.declared(row)])


def _glance(row: Row, context: ConversionContext) -> Note:
    assert context.dataset.glance is not None
    return Note() if row.fault is not None else _note(row, *context.dataset.glance(row, context), context)


def _whole(row: Row, context: ConversionContext, rules: quality.QualityOptions) -> Note:
    """rules: which are asked for after the fact, because a row that they refuse still shows its image."""
    sample = reading.one(row, context)
    if not isinstance(sample, Sample):
        return Note()
    glance, asks = context.dataset.glance, context.dataset.asks
    kind, asked = asks(row) if asks is not None else ("", duplicate_questions.question(sample))
    whole = None if glance is None else glance(row, context).whole
    note = _note(row, duplicate_questions.about(sample), Question(asked, sample.answers, kind), whole, context)
    others = [(image.sha256, image.uri) for image in duplicate_questions.others(sample)]
    try:
        sound = not rules.checks or bool(quality.validated(sample, rules))
    except Refused:
        sound = False
    return note._replace(
        sound=sound, places=duplicate_questions.places(sample), others=json.dumps(others) if others else None
    )


def _note(
    row: Row, about: Image | Asked, question: Question, whole: tuple[str, bool] | None, context: ConversionContext
) -> Note:
    near = context.options.duplicates == "near"
    dataset, is_whole = whole or (None, None)
    return Note(
        said=SAID[context.declared(row)], sha=about.sha256, uri=about.uri or None,
        key=duplicate_questions.key(about.sha256, question, near=near), asked=question.asked if near else None,
        dataset=dataset and _storable(dataset), whole=is_whole,
    )  # fmt: skip
