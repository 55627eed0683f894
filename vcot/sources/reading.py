"""From rows to Samples and Rejections: what all sources share."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, compress, cycle, groupby, islice, repeat
from operator import itemgetter
from typing import Any, TypeVar

from pydantic import ValidationError

from vcot.errors import InputError
from vcot.grounding import BoxError
from vcot.records import Image, Reason, Rejection, Sample
from vcot.records.sample import IMAGE_REASONS
from vcot.sources.desk import PLAIN_SPLITS, Desk, Split
from vcot.sources.inputs import Input, found_in, row_of
from vcot.sources.offsets import note, noted
from vcot.sources.pictures import TOPS, NotAtHand
from vcot.sources.repeats import Question
from vcot.sources.row import BOX_REASONS, Refused, Row
from vcot.stage import stop
from vcot.storage.images import ImageError

STAGE = "convert"
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Source:
    """How a dataset is read.

    sample: a row → a Sample; raises Refused, BoxError, ImageError.
    forms: the forms of JSON rows that it reads (see FORMS); empty where `rows` makes them in another way.
    splits: what rows call their split → ours, or None where the picture decides.
    names_rows: rows may bring ids of their own.
    columns: what it reads of Parquet files; empty where it reads none.
    expand: a row of the file → the rows that it holds, where one may hold several.
    dataset: how its rows are counted that do not say of which dataset they are.
    glance: a row → its picture, and what it asks; raises as `sample` does, and only where that raises, too. For the
    survey, which goes through all rows; None: it makes Samples.
    asks: a row → the kind of its question and what it asks about, where the wording is drawn; None: its words tell.
    whole: a row and its picture → its set, and whether its box can be of whole pixels; None for a row that cannot tell.
    ready: makes on the scratch disk what rows are read from, before several processes read them; None: nothing.
    in_archive: folders below the images' folder, or of an archive of pictures, that its paths may be below, likeliest
    first; "" is the top.
    """

    sample: Callable[[Row, Desk], Sample]
    forms: tuple[str, ...] = ()
    rows: Callable[[Desk], Iterator[Row]] | None = None
    licence: str = "unknown"
    splits: Mapping[str, Split | None] = field(default_factory=lambda: PLAIN_SPLITS)
    names_rows: bool = False
    columns: tuple[str, ...] = ()
    expand: Callable[[Row], Iterable[Row]] | None = None
    dataset: str = "unknown"
    glance: Callable[[Row, Desk], tuple[Image, Question]] | None = None
    asks: Callable[[Row], tuple[str, str]] | None = None
    whole: Callable[[Row, Image], tuple[str, bool] | None] | None = None
    ready: Callable[[Desk], None] | None = None
    in_archive: tuple[str, ...] = ("", *TOPS)


#: Form of a row → the fields that give it away, what it is, and the sources that read it.
FORMS: Mapping[str, tuple[frozenset[str], str, tuple[str, ...]]] = {
    "expressions": (frozenset(("img_path", "expression", "bbox", "sent_id")), "RefCOCO's expressions", ("refcoco",)),
    "detection": (
        frozenset(("img_path", "expression", "bbox")),
        "a detection file (img_path, expression, bbox): boxes to measure with, and no answers to learn",
        (),
    ),
    "chat": (frozenset(("dataset", "question_id", "image", "conversations")), "VisCoT's chat rows", ("viscot",)),
    "talk": (frozenset(("conversations",)), "LLaVA's conversations", ("llava-cot", "samples")),
    "metadata": (frozenset(("image", "question", "answer", "bboxs")), "VisCoT's metadata", ("viscot",)),
    "rationales": (frozenset(("question", "choices", "rationales")), "A-OKVQA", ("aokvqa",)),
    "lectures": (frozenset(("question", "choices", "lecture")), "ScienceQA", ("scienceqa",)),
    "messages": (frozenset(("messages",)), "OpenAI chat messages", ("samples",)),
    "sample": (frozenset(("image", "question", "answers")), "Samples", ("samples",)),
}


def read(
    source: Source, rows: Iterable[Row], desk: Desk, *, readers: int = 1
) -> Iterator[tuple[Row, Sample | Rejection]]:
    """Every row with what became of it, in order. Rows in = Samples + Rejections out.

    readers: how many pictures are read at once; reading them is what takes the time. Rows whose picture is known
    already wait for nothing, and no thread is woken for them.
    """
    at_hand = replace(desk, pictures=desk.pictures.at_hand())
    return in_order(
        lambda row: (row, one(source, row, desk)), rows, readers, at_once=lambda row: (row, one(source, row, at_hand))
    )


def one(source: Source, row: Row, desk: Desk) -> Sample | Rejection:
    """What becomes of one row."""
    try:
        if row.fault is not None:
            raise row.fault
        return desk.accepted(row, source.sample(row, desk))
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


def rows_of_shard(
    source: Source, desk: Desk, index: int = 0, shards: int = 1, limit: int | None = None
) -> Iterator[Row]:
    """Rows number index, index + shards, index + 2·shards, … of the whole input, of which `limit` rows count."""
    items, row = _items(source, desk)
    return map(row, islice(items, index, limit, shards))


def rows_in_blocks(
    source: Source, desk: Desk, index: int, shards: int, limit: int | None, block: int, wanted: Callable[[int], bool]
) -> Iterator[tuple[int, Row]]:
    """Of blocks number index, index + shards, … the rows whose places in the whole input are wanted, with these."""
    ours = chain(repeat(False, index * block), repeat(True, block), repeat(False, (shards - 1 - index) * block))
    items, row = _items(source, desk)
    for place, item in compress(enumerate(islice(items, limit)), cycle(ours)):
        if wanted(place):
            yield place, row(item)


def _items(source: Source, desk: Desk) -> tuple[Iterator[Any], Callable[[Any], Row]]:
    """What stands for each row of the whole input, and what makes the row of it, where that takes time."""
    if source.rows is not None:
        return source.rows(desk), _itself
    if source.expand is not None:
        return _expanded(source, source.expand, desk), _itself_or_part(source.expand)
    return _json_rows(source, desk), lambda item: row_of(*item)


def _itself(row: Row) -> Row:
    return row


def _itself_or_part(expand: Callable[[Row], Iterable[Row]]) -> Callable[[Any], Row]:
    def row(item: Row | tuple[Input, int, Any, int]) -> Row:
        if isinstance(item, Row):
            return item
        file, number, found, place = item
        return next(islice(_parts(expand, row_of(file, number, found)), place, None))

    return row


def _json_rows(source: Source, desk: Desk) -> Iterator[tuple[Input, int, Any]]:
    """What `row_of` makes rows of: lines and entries of other shards are counted, and not read."""
    for file in desk.inputs:
        fresh = True
        known = noted(desk.scratch, file, "entries")
        starts = array("Q") if known is None else known
        for number, found in found_in(desk.store, file, source.columns, starts):
            if fresh and (row := row_of(file, number, found)).fault is None:
                _check_form(source, form_of_row(row.value), file.uri)
                fresh = False
            yield file, number, found
        if known is None and starts:
            note(desk.scratch, file, "entries", starts)


def _expanded(
    source: Source, expand: Callable[[Row], Iterable[Row]], desk: Desk
) -> Iterator[Row | tuple[Input, int, Any, int]]:
    """The rows that lines and entries hold; where it is known how many, each with its place in what is not yet read."""
    for file, found in groupby(_json_rows(source, desk), itemgetter(0)):
        known = noted(desk.scratch, file, "rows")
        if known is not None:
            for one, often in zip(found, known, strict=True):
                yield from ((*one, place) for place in range(often))
            continue
        counts = array("I")
        for one in found:
            rows = list(_parts(expand, row_of(*one)))
            counts.append(len(rows))
            yield from rows
        note(desk.scratch, file, "rows", counts)


def _parts(expand: Callable[[Row], Iterable[Row]], row: Row) -> Iterable[Row]:
    return (row,) if row.fault is not None else expand(row)


def form_of_row(value: Mapping[str, Any]) -> str | None:
    return next((name for name, (fields, _, _) in FORMS.items() if fields <= value.keys()), None)


def _check_form(source: Source, form: str | None, uri: str) -> None:
    """The first row of a file tells whether the file is the right one.

    Raises:
        InputError: it is of a form that this source does not read.
    """
    if form is None or form in source.forms:
        return
    _, what, readers = FORMS[form]
    wanted = " or ".join(FORMS[name][1] for name in source.forms)
    hint = f"; --source {' or --source '.join(readers)} reads it" if readers else ""
    raise InputError(f"{uri} is {what}{hint}. This source reads {wanted}")


def in_order(
    function: Callable[[T], R], items: Iterable[T], workers: int, *, at_once: Callable[[T], R] | None = None
) -> Iterator[R]:
    """`function` of each item, some at once, results in the order of the items; never far ahead of its reader.

    at_once: gives the same in this thread, or raises NotAtHand where that means waiting.

    Raises:
        Interrupted: a stop was asked for; the item that came then is not begun.
    """
    items = until_stopped(items)
    if workers == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        under_way: deque[Future[R]] = deque()
        untried = 0  # items that go to a thread without a try: where one picture is new, the next ones mostly are
        try:
            for item in items:
                if under_way or untried or at_once is None:
                    untried = max(untried - 1, 0)
                else:
                    try:
                        yield at_once(item)
                        continue
                    except NotAtHand:
                        untried = 4 * workers
                under_way.append(pool.submit(function, item))
                while under_way and (under_way[0].done() or len(under_way) >= 4 * workers):
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def until_stopped(items: Iterable[T]) -> Iterator[T]:
    for item in items:
        stop.raise_if_requested()
        yield item


def _rejection(row: Row, reason: Reason, detail: str) -> Rejection:
    readable = detail[:500].encode(errors="replace").decode()  # half a surrogate pair is no text, but may be in JSON
    return Rejection(id=row.id, stage=STAGE, reason=reason, detail=readable)
