"""TreeBench and V*: questions with choices, and the boxes of what the right one stands on.

TreeBench (Wang et al. 2025, arXiv 2507.07999) as `TreeBench.tsv` of `HaochenWang/TreeBench`, or the same columns as
JSON or Parquet: `question`, `A` … `F`, `answer` (a letter), `category`, `target_instances` (a list of
[x1, y1, x2, y2] in pixels, or of objects with `bbox` and perhaps `label`; written as a text), and `image` in base64, or
the path of one.

V* (Wu and Xie 2023, arXiv 2312.14135) as the folders of `craigwu/vstar_bench`: for each image a file of JSON with
`question`, `options` (the first is right), `target_object` and `bbox` ([x, y, width, height] of each). The options are
turned by a number that depends on the file's name alone, so that "A" is right no more often than others.

Both are benchmarks: all rows are of the test split.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import string
from collections.abc import Iterator, Mapping
from typing import Any

from vcot.datasets.base import ConversionContext, Form, dataset, numbers, pick, text
from vcot.datasets.images import decoded
from vcot.datasets.inputs import Input, Refused, Row, found_in, opened, row_of
from vcot.datasets.multiple_choice import choices, right
from vcot.datasets.quality import NEUTRAL
from vcot.errors import InputError
from vcot.grounding import Mention
from vcot.records import Image, Reason, Sample
from vcot.storage import name as last_part
from vcot.storage.images import ImageError

_TEST = {"split": "test"}
_COLUMNS = ("index", "image", "question", *string.ascii_uppercase[:11], "answer", "category", "target_instances")
_LONGEST_FIELD = 1 << 28
"""Characters of a field of a table: an image of 200 MB in base64."""
_LONGEST_LIST = 100_000
"""Characters of a list of boxes that is written as a text."""


# --------------------------------------------------------------------------------------------------------- TreeBench


def treebench_rows(context: ConversionContext) -> Iterator[Row]:
    for source in context.inputs:
        if source.uri.endswith(".tsv"):
            yield from _table(context, source)
        else:
            found = found_in(context.store, source, _COLUMNS)
            rows = (row_of(source, number, one) for number, one in found)
            yield from (Row(row.id, {**row.value, **_TEST}, row.fault) for row in rows)


def _table(context: ConversionContext, source: Input) -> Iterator[Row]:
    """Raises InputError: it is no table with tabs, or a column is missing."""
    csv.field_size_limit(_LONGEST_FIELD)
    with opened(context.store, source) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            table = csv.DictReader(lines, delimiter="\t")
            missing = {"image", "question", "A", "B", "answer", "target_instances"} - set(table.fieldnames or ())
            if missing:
                raise InputError(f"{source.uri} has no column {', no '.join(sorted(missing))}; TreeBench.tsv has them")
            for number, said in enumerate(table, 1):
                yield Row(f"{source.name}:{number}", {name: said[name] for name in _COLUMNS if name in said} | _TEST)
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{source.uri} is no table with tabs in UTF-8: {error}") from None
        finally:
            lines.detach()  # else it closes the stream, which `opened` looks at again


@dataset(
    "treebench",
    "TreeBench: questions with choices and the boxes of their targets; TSV, JSON or Parquet, images inside",
    "--input-uri TreeBench.tsv",
    rows=treebench_rows,
    forms=(Form(frozenset(("question", "answer", "target_instances")), "TreeBench"),),
    columns=_COLUMNS,
    called="treebench",
    licence="Apache-2.0; images: SA-1B, terms of Meta",
)
def treebench(row: Row, context: ConversionContext) -> Sample:
    said = row.value
    image = _image(said.get("image"), context)
    options = _options(said)
    letter = text(said, "answer", Reason.NO_ANSWER).upper()
    number = string.ascii_uppercase.find(letter) if len(letter) == 1 else None
    category = said.get("category")
    return Sample(
        id=row.id,
        images=(image,),
        question=text(said, "question", Reason.NO_QUESTION),
        choices=options,
        answers=(right(options, number, "answer, counted from A = 0,"),),
        evidence=_targets(said.get("target_instances"), image, context),
        metadata={"category": category} if isinstance(category, str) else {},
        origin=context.origin(row, image, "treebench"),
    )


def _image(said: Any, context: ConversionContext) -> Image:
    """base64 has no full stop, and the path of an image has one."""
    if isinstance(said, str) and said and "." not in said:
        return context.images.of(decoded("".join(said.split())))
    return context.images.of(said)


def _options(said: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of A, B, … up to the last that is there. Raises Refused: one between them is missing."""
    written = [said.get(letter) for letter in string.ascii_uppercase[:11]]
    while written and (written[-1] is None or str(written[-1]).strip().lower() in ("", "nan")):
        written.pop()
    return choices([one if one is None else str(one) for one in written])


def _targets(said: Any, image: Image, context: ConversionContext) -> tuple[Mention, ...] | None:
    """None where none are annotated: that says nothing about what is there."""
    listed = _read_list(said)
    if not listed:
        return None
    found = [_target(one) for one in ([listed] if len(listed) == 4 and type(listed[0]) in (int, float) else listed)]
    return tuple(Mention(label, (context.box(edges, image),)) for label, edges in found)


def _target(said: Any) -> tuple[str, Any]:
    """The label and the edges of one box."""
    if not isinstance(said, dict):
        return NEUTRAL, list(said) if isinstance(said, tuple) else said
    label = next((name for key in ("label", "name", "category") if isinstance(name := said.get(key), str)), "")
    return label.strip() or NEUTRAL, said.get("bbox")


def _read_list(said: Any) -> list[Any]:
    if isinstance(said, str) and len(said) <= _LONGEST_LIST:
        try:
            said = ast.literal_eval(said.strip() or "[]")
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise Refused(Reason.BOX_MALFORMED, f"target_instances are a list of boxes; got {said!r:.80}") from None
    if said is None:
        return []
    if not isinstance(said, list):
        raise Refused(Reason.BOX_MALFORMED, f"target_instances are a list of boxes; got {said!r:.80}")
    return said


# ---------------------------------------------------------------------------------------------------------------- V*

_IMAGES = (".jpg", ".jpeg", ".png", ".webp")


def vstar_rows(context: ConversionContext) -> Iterator[Row]:
    for source in context.inputs:
        if not source.uri.endswith(".json"):  # test_questions.jsonl, beside the folders, has no boxes
            continue
        folder = last_part(source.uri.rpartition("/")[0])
        with opened(context.store, source) as stream:
            written = stream.read()
        yield _file(source, folder, written)


def _file(source: Input, folder: str, written: bytes) -> Row:
    try:
        said = json.loads(written)
    except (ValueError, RecursionError) as error:
        return Row(source.name, {}, Refused(Reason.NOT_JSON, f"{source.name}: {error}; it begins {written[:60]!r}"))
    if not isinstance(said, dict):
        return Row(source.name, {}, Refused(Reason.WRONG_SHAPE, f"{source.name} is a JSON object; got {said!r:.60}"))
    stem = last_part(source.uri).removesuffix(".json")
    return Row(source.name, {**said, **_TEST, "file": f"{folder}/{stem}", "folder": folder})


@dataset(
    "vstar",
    "V*: questions with choices about small things, and their boxes; a file of JSON for each image",
    "--input-uri vstar_bench/direct_attributes,vstar_bench/relative_position --images-uri vstar_bench",
    rows=vstar_rows,
    forms=(Form(frozenset(("question", "options", "target_object", "bbox")), "V*"),),
    needs_images="the folder with V*'s folders",
    called="vstar",
    licence="unknown; images: SA-1B, terms of Meta",
)
def vstar(row: Row, context: ConversionContext) -> Sample:
    said = row.value
    image = _beside(said["file"], context)
    written = choices(said.get("options"))
    turned = pick(0, said["file"], len(written))
    return Sample(
        id=row.id,
        images=(image,),
        question=text(said, "question", Reason.NO_QUESTION),
        choices=(*written[turned:], *written[:turned]),
        answers=(written[0],),
        evidence=_objects(said, image, context),
        metadata={"category": said["folder"]},
        origin=context.origin(row, image, "vstar"),
    )


def _beside(path: str, context: ConversionContext) -> Image:
    """The image with the name of the file of JSON."""
    missing: ImageError | None = None
    for suffix in _IMAGES:
        try:
            return context.images.find(f"{path}{suffix}")
        except ImageError as error:
            if error.reason != "missing":
                raise
            missing = missing or error
    assert missing is not None
    raise missing


def _objects(said: Mapping[str, Any], image: Image, context: ConversionContext) -> tuple[Mention, ...] | None:
    """A mention for each target; None where there are no boxes."""
    names, boxes = said.get("target_object") or [], said.get("bbox") or []
    if not (isinstance(names, list) and isinstance(boxes, list)):
        raise Refused(Reason.WRONG_SHAPE, f"target_object and bbox are lists; got {names!r:.60} and {boxes!r:.60}")
    if boxes and len(names) != len(boxes):
        raise Refused(Reason.WRONG_SHAPE, f"{len(names)} target_object and {len(boxes)} bbox; each has the other")
    mentions = []
    for label, written in zip(names, boxes, strict=False):
        x, y, width, height = numbers(written)
        mentions.append(Mention(str(label).strip() or NEUTRAL, (context.box([x, y, x + width, y + height], image),)))
    return tuple(mentions) or None
