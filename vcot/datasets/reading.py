"""Rows of a dataset, dealt to shards, and what becomes of each: a Sample or a Rejection."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, compress, cycle, groupby, islice, repeat
from operator import itemgetter
from typing import Any

from pydantic import ValidationError

from vcot.datasets.base import BOX_REASONS, DATASETS, ConversionContext, Dataset, Form, uniform
from vcot.datasets.inputs import Input, Refused, Row, found_in, note, noted, row_of
from vcot.datasets.parallel import in_order
from vcot.errors import InputError
from vcot.grounding import BoxError
from vcot.records import Reason, Rejection, Sample
from vcot.records.sample import IMAGE_REASONS
from vcot.storage.images import ImageError
from vcot.uris import redact_credentials

BLOCK = 256
"""Rows that are looked at by one process in prepare: neighbours often share an image."""


def read(
    rows: Iterable[Row], context: ConversionContext, *, readers: int = 1
) -> Iterator[tuple[Row, Sample | Rejection]]:
    """Every row with what became of it, in order. Rows in = Samples + Rejections out.

    readers: how many images are read at once; reading them is what takes the time. Rows whose image is known
    already wait for nothing, and no thread is woken for them.
    """
    at_hand = replace(context, images=context.images.at_hand())
    return in_order(lambda row: (row, one(row, context)), rows, readers, at_once=lambda row: (row, one(row, at_hand)))


def one(row: Row, context: ConversionContext) -> Sample | Rejection:
    """What becomes of one row."""
    try:
        if row.fault is not None:
            raise row.fault
        return context.accepted(row, context.dataset.sample(row, context))
    except Refused as refused:
        return _rejection(row, refused.reason, refused.detail)
    except BoxError as error:
        return _rejection(row, BOX_REASONS[error.fault], str(error))
    except ImageError as error:
        return _rejection(row, IMAGE_REASONS[error.reason], str(error))
    except ValidationError as error:
        fault = error.errors()[0]
        return _rejection(row, Reason.WRONG_SHAPE, f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}")
    except RecursionError:
        return _rejection(row, Reason.WRONG_SHAPE, "the row is nested too deeply")


def _rejection(row: Row, reason: Reason, detail: str) -> Rejection:
    # Half a surrogate pair is no text, but may be in JSON.
    readable = redact_credentials(detail)[:500].encode(errors="replace").decode()
    return Rejection(id=row.id, stage="convert", reason=reason, detail=readable)


# ---------------------------------------------------------------------------------------------- whose rows are whose


def rows_of_shard(
    context: ConversionContext, index: int = 0, shards: int = 1, left_out: Callable[[], None] = lambda: None
) -> Iterator[Row]:
    """Rows number index, index + shards, index + 2·shards, … of the whole input, as far as they are drawn; `left_out`
    is called for every other.
    """
    for row in all_rows(context, index, shards):
        if _drawn(context, row):
            yield row
        else:
            left_out()


def all_rows(context: ConversionContext, index: int = 0, shards: int = 1) -> Iterator[Row]:
    """The same, drawn or not."""
    items, row = _items(context)
    return (_named(context, row(item)) for item in islice(items, index, context.limit, shards))


def rows_in_blocks(
    context: ConversionContext, index: int, shards: int, wanted: bytes | None = None
) -> Iterator[tuple[int, Row]]:
    """Of blocks number index, index + shards, … the drawn rows, each with its place in the whole input.

    wanted: a byte for each place, which is not 0 where the row is to be read; None: all are.
    """
    ours = chain(repeat(False, index * BLOCK), repeat(True, BLOCK), repeat(False, (shards - 1 - index) * BLOCK))
    items, row = _items(context)
    for place, item in compress(enumerate(islice(items, context.limit)), cycle(ours)):
        if wanted is not None and not (place < len(wanted) and wanted[place]):
            continue
        if _drawn(context, found := _named(context, row(item))):
            yield place, found


def _drawn(context: ConversionContext, row: Row) -> bool:
    share = context.prepared.shares.get(context.part, 1)
    return share >= 1 or uniform(context.options.seed, row.id) < share


def _named(context: ConversionContext, row: Row) -> Row:
    return Row(context.called(row.id), row.value, row.fault) if context.part else row


def _items(context: ConversionContext) -> tuple[Iterator[Any], Callable[[Any], Row]]:
    """What stands for each row of the whole input, and what makes the row of it, where that takes time."""
    if context.dataset.rows is not None:
        return context.dataset.rows(context), lambda row: row
    expand = context.dataset.expand
    if expand is None:
        return _json_rows(context), lambda item: row_of(*item)

    def row(item: Row | tuple[Input, int, Any, int]) -> Row:
        if isinstance(item, Row):
            return item
        file, number, found, place = item
        return next(islice(_parts(expand, row_of(file, number, found)), place, None))

    return _expanded(expand, context), row


def _json_rows(context: ConversionContext) -> Iterator[tuple[Input, int, Any]]:
    """What `row_of` makes rows of: lines and entries of other shards are counted, and not read."""
    for file in context.inputs:
        fresh = True
        known = noted(context.scratch, file, "entries")
        starts = array("Q") if known is None else known
        for number, found in found_in(context.store, file, context.dataset.columns, starts):
            if fresh and (row := row_of(file, number, found)).fault is None:
                _check_form(context.dataset, form_of_row(row.value), file.uri)
                fresh = False
            yield file, number, found
        if known is None and starts:
            note(context.scratch, file, "entries", starts)


def _expanded(
    expand: Callable[[Row], Iterable[Row]], context: ConversionContext
) -> Iterator[Row | tuple[Input, int, Any, int]]:
    """The rows that lines and entries hold; where it is known how many, each with its place in what is not yet read."""
    for file, found in groupby(_json_rows(context), itemgetter(0)):
        known = noted(context.scratch, file, "rows")
        if known is not None:
            for one, often in zip(found, known, strict=True):
                yield from ((*one, place) for place in range(often))
            continue
        counts = array("I")
        for one in found:
            rows = list(_parts(expand, row_of(*one)))
            counts.append(len(rows))
            yield from rows
        note(context.scratch, file, "rows", counts)


def _parts(expand: Callable[[Row], Iterable[Row]], row: Row) -> Iterable[Row]:
    return (row,) if row.fault is not None else expand(row)


_DETECTION = Form(
    frozenset(("img_path", "expression", "bbox")),
    "a detection file (img_path, expression, bbox): boxes to measure with, and no answers to learn",
)


def form_of_row(value: Mapping[str, Any]) -> Form | None:
    """The form with the most fields of those that the row has; the first one of several."""
    forms = [form for dataset in DATASETS.values() for form in dataset.forms]
    fitting = [form for form in (*forms, _DETECTION) if form.fields <= value.keys()]
    return max(fitting, key=lambda form: len(form.fields), default=None)


def _check_form(dataset: Dataset, form: Form | None, uri: str) -> None:
    """The first row of a file tells whether the file is the right one. Raises InputError: it is of a form that this
    dataset does not read.
    """
    if form is None or form in dataset.forms:
        return
    readers = " or ".join(f"--source {name}" for name, other in DATASETS.items() if form in other.forms)
    wanted = " or ".join(form.name for form in dataset.forms)
    raise InputError(f"{uri} is {form.name}{f'; {readers} reads it' if readers else ''}. This source reads {wanted}")
