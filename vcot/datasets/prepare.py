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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from vcot.datasets import duplicate_questions, mixture, quality, reading
from vcot.datasets.base import ConversionContext, Prepared, Split, given_id
from vcot.datasets.duplicate_questions import Asked, Question
from vcot.datasets.inputs import Refused, Row, fetch_offsets, leave_offsets
from vcot.datasets.parallel import Workers, in_order, until_stopped
from vcot.datasets.row_index import A_PART, RowIndex
from vcot.errors import InputError, TemporaryError
from vcot.grounding import BoxError
from vcot.records import Folder, Image, Sample
from vcot.stage import Bar
from vcot.storage import NotFound, join
from vcot.storage.images import ImageError

NAME = "survey.json"
WORTH_A_PROCESS = 16 << 20
"""Bytes of rows: with fewer, what a process does takes no longer than to begin it, which is about a second."""
Note = dict[str, Any]
Depth = Literal["declared", "glance", "whole"]
"""How a row is looked at: for the split that it names alone, at a glance, or read whole."""
SAID: Mapping[Split | None, int] = {None: 1, "train": 2, "validation": 4, "test": 8}
"""Bits for what rows say of an image's side, in the order in which they count."""


def informed(
    contexts: Sequence[ConversionContext], folder: Folder, *, look: bool, workers: Workers, readers: int
) -> list[ConversionContext]:
    """The contexts that know it. The first that asks finds it out, and leaves it in the stage's folder.

    Raises:
        InputError: nobody has found it out yet and `look` is false (another process should have).
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
        for context in contexts:
            leave_offsets(folder, context.scratch, context.inputs)
        found = prepared.model_dump(mode="json")
        data = json.dumps({"sha256": _digest(found), "found": found}, indent=0).encode()
        folder.store.write_once(join(folder.uri, NAME), data)
    return [replace(context, prepared=prepared) for context in contexts]


def left(folder: Folder) -> Prepared | None:
    """What prepare has left in the stage's folder; None: nothing. Raises InputError: it is damaged."""
    uri = join(folder.uri, NAME)
    try:
        there = json.loads(folder.store.read(uri))
        found = there["found"]
        if there["sha256"] != _digest(found):
            raise ValueError("its digest is another")
        if found.keys() != Prepared.model_fields.keys():
            raise InputError(f"{uri}: another version of vcot made it; delete {folder.uri} and run the stage again")
        return Prepared.model_validate(found)
    except NotFound:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{uri} is damaged ({error}); delete {folder.uri} and run the stage again") from None


def _digest(found: Any) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def survey(contexts: Sequence[ConversionContext], workers: Workers, readers: int) -> Prepared:
    """What all shards must know of the rows.

    Raises:
        InputError: a benchmark file is none.
        TemporaryError: there is too little room on the scratch disk.
    """
    import duckdb

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
    wanted = wanted or any(context.dataset.whole for context in contexts)
    index = RowIndex(contexts, readers)
    try:
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
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise TemporaryError(
            f"all rows could not be looked at together ({error}); is there room on this disk?"
        ) from None
    finally:
        index.database.close()


# ------------------------------------------------------------------------------------------------------- the scans

_ENCODE = json.JSONEncoder(ensure_ascii=False).encode


def scan(
    contexts: Sequence[ConversionContext], workers: Workers, readers: int, depth: Depth,
    wanted: Sequence[bytes] | None = None,
) -> list[Path]:  # fmt: skip
    """Notes every row in files of JSON lines (row_index.COLUMNS), in several processes where that pays.

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
            path = context.scratch / f"notes-{place}-{index}.jsonl"
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
            return place, row, {}

    rows = reading.rows_in_blocks(context, *share, wanted)
    with context.named(), path.open("wb") as lines, Bar("looking at all rows", shown=share[0] == 0) as bar:
        for number, (place, row, note) in enumerate(
            in_order(noted, rows, readers, at_once=lambda item: noted(item, hasty)), 1
        ):
            name = given_id(row) if context.dataset.names_rows else None
            line = {"row": first + place, "id": row.id, "name": name and context.called(name)} | note
            # Half a surrogate pair may be in JSON and not in a database; such a row is refused.
            lines.write(_ENCODE(line).encode(errors="replace") + b"\n")
            if number % 200 == 0:
                bar.advance(200 * share[1])


def _declared(row: Row, context: ConversionContext) -> Note:
    return {"said": SAID[context.declared(row)]}


def _glance(row: Row, context: ConversionContext) -> Note:
    assert context.dataset.glance is not None
    if row.fault is not None:
        return {}
    return _note(row, *context.dataset.glance(row, context), context)


def _whole(row: Row, context: ConversionContext, rules: quality.QualityOptions) -> Note:
    """rules: which are asked for after the fact, because a row that they refuse still shows its image."""
    sample = reading.one(row, context)
    if not isinstance(sample, Sample):
        return {}
    asks = context.dataset.asks
    kind, asked = asks(row) if asks is not None else ("", duplicate_questions.question(sample))
    note = _note(row, duplicate_questions.about(sample), Question(asked, sample.answers, kind), context)
    places = duplicate_questions.places(sample)
    try:
        sound = not rules.checks or bool(quality.validated(sample, rules))
    except Refused:
        sound = False
    return note | {"sound": sound, "places": None if places is None else places.hex()}


def _note(row: Row, about: Image | Asked, question: Question, context: ConversionContext) -> Note:
    near = context.options.duplicates == "near"
    note: Note = {"said": SAID[context.declared(row)], "sha": about.sha256}
    note["key"] = duplicate_questions.key(about.sha256, question, near=near).hex()
    if near:
        note["asked"] = question.asked
    if isinstance(about, Image):
        note["uri"] = about.uri
        whole = context.dataset.whole
        if whole is not None and (found := whole(row, about)) is not None:
            note["dataset"], note["whole"] = found
    return note
