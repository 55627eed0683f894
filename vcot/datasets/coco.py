"""COCO's boxes with categories as questions about where things are and how many there are; and RefCOCO's expressions.

Asked of each image, about each of the chosen categories:

    where      exactly one is there    Where is the platelet?          → bottom left
    count      at least one            How many platelets are there?   → 3
    point      at least one            Point at every platelet.        → 3
    presence   at least one            Is there a platelet?            → yes

and about things that are not there (`absent`: how many in each image), in turns:

    presence                           Is there a red blood cell?      → no
    count                              How many red blood cells …      → 0
    point                              Point at every red blood cell.  → 0

Evidence of these is an empty list: a model that only ever sees boxes learns to draw one always.

With `absent_by`, for measuring, only whether things are there is asked, and of each image as often about those that are
as about those that are not (POPE: Li et al. 2023, arXiv 2305.10355). Which things of the latter: any (`random`), those
that most images show (`popular`), or those that most often stand beside what this image shows (`adversarial`).

Nothing is asked about the category of a crowd in its image, because nobody knows how many there are. An annotation
whose image or category is not in the file is refused as a row of its own, and puts in doubt what it may be of: what is
in doubt is not counted, not pointed at as all that there is, and not denied. So is a category of whose subcategories
(`supercategory`) the image shows one; a category that only groups others, as Roboflow's root does, is not asked about.
Of images with LVIS's federated labels, only categories in `neg_category_ids` are denied, and those in
`not_exhaustive_category_ids` are not counted.

The file is not a list of rows: annotations have to be brought to their images first. That happens in a database on
the scratch disk, so that memory does not grow with the file.

RefCOCO, RefCOCO+, RefCOCOg: an expression, and the one box in the image that it describes.

Rows as VisCoT publishes them for measuring: {"img_path": "COCO_train2014_….jpg", "expression", "bbox": [x1, y1, x2, y2]
in float pixels, "width", "height", "sent_id", "split"}. The images are COCO's train2014, in one folder. A bbox of null
or [] says that the expression describes nothing in the image.

The model is asked to point; what it answers in words is where in the image the box is, or "no".
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from vcot import logging
from vcot.answers import plural
from vcot.datasets.base import (
    PLAIN_SPLITS,
    ConversionContext,
    Form,
    QuestionKind,
    QuestionOptions,
    WordingOptions,
    check_size,
    dataset,
    hub_name,
    numbers,
    pick,
    same_size,
    text,
    uniform,
)  # fmt: skip
from vcot.datasets.duplicate_questions import asked
from vcot.datasets.inputs import Input, Refused, Row, form_of_file, opened
from vcot.datasets.jsontext import parts
from vcot.datasets.quality import NEUTRAL, gives_away
from vcot.errors import InputError, SettingsError
from vcot.grounding import Box, BoxError, Mention, place
from vcot.records import Image, Reason, Sample
from vcot.settings import CommaSeparated, setting
from vcot.storage import confirmed
from vcot.storage import name as last_part

# The first of each kind is the plainest. {one}: the category; {a}: with its article; {many}: the plural.
PHRASINGS: Mapping[QuestionKind, tuple[str, ...]] = {
    "where": ("Where is the {one}?", "Where do you see the {one}?", "Find the {one}.", "Point at the {one}."),
    "count": ("How many {many} are there?", "How many {many} do you see?", "Count the {many}."),
    "point": ("Point at every {one}.", "Find every {one}."),
    "presence": ("Is there {a}?", "Do you see {a}?"),
}
_OF_ABSENT: tuple[QuestionKind, ...] = ("presence", "count", "point")


class CocoOptions(QuestionOptions, WordingOptions):
    categories: CommaSeparated = setting((), "coco: ask about these alone, comma-separated; default: all")
    category_names: CommaSeparated = setting((), "coco: what categories are called, as WBC=white blood cell,RBC=…")
    absent: int = setting(
        1, "coco: questions about things that are not there, of each image; their evidence is an empty list",
        unit="questions", ge=0,
    )  # fmt: skip
    absent_by: Literal["random", "popular", "adversarial"] | None = setting(
        None, "coco: questions to measure with, of the test split: only whether things are there, --absent of each "
        "image about things that are and as many about things that are not: any, the most frequent, or those that most "
        "often stand beside what is there",
    )  # fmt: skip
    unmatched_annotations: Literal["doubt", "ignore"] = setting(
        "doubt", "coco: annotations whose image or category is not in the file; doubt: they are refused, and nothing "
        "is counted or denied that they may show; ignore: those images and categories were left out on purpose",
    )  # fmt: skip

    def faults(self) -> Iterator[str]:
        for pair in self.category_names:
            if not all(map(str.strip, pair.partition("="))):
                yield f"--category-names: {pair!r} is not written category=name"
        if self.absent_by is not None and "presence" not in self.questions:
            yield f"--absent-by={self.absent_by} asks whether things are there; --questions has no presence"
        if self.absent_by is not None and not self.absent:
            yield f"--absent-by={self.absent_by}: --absent=0 asks nothing; POPE asks 3 and 3 of each image"


def rows(context: ConversionContext[CocoOptions]) -> Iterator[Row]:
    """One row for each question about each image, in the order of the file."""
    for source in context.inputs:
        asked = 0
        with _index(context, source) as index:
            for row in _questions(context, source, index):
                asked += 1
                yield row
            unmatched = (
                ()
                if context.own.unmatched_annotations == "ignore"
                else chain(_unmatched(source, index), _nameless(context, source, index))
            )
            if not asked:
                because = next((f"; {row.fault.detail}" for row in unmatched if row.fault), "")
                kinds = ",".join(context.own.questions)
                raise InputError(f"{source.uri}: none of --questions {kinds} can be asked of its images{because}")
            yield from unmatched


def ready(context: ConversionContext[CocoOptions]) -> None:
    for source in context.inputs:
        with _index(context, source):
            pass


def asks(row: Row) -> tuple[str, str]:
    return row.value["asked_as"], row.value["category"]


@dataset(
    "coco",
    "COCO instances: questions about where things are and how many there are",
    "--input-uri annotations/instances_train2017.json --images-uri train2017",
    options=CocoOptions,
    rows=rows,
    ready=ready,
    asks=asks,
    images_beside="images",
)
def sample(row: Row, context: ConversionContext[CocoOptions]) -> Sample:
    said = row.value
    entry, kind, category = said["image"], said["kind"], said["category"]
    path = entry.get("file_name")
    if not isinstance(path, str) or not path:
        hint = "; it has a coco_url, as in LVIS: write its path below --images-uri into file_name"
        detail = f"file_name of image {entry.get('id')!r} is {path!r:.60}{hint if 'coco_url' in entry else ''}"
        raise Refused(Reason.WRONG_SHAPE, detail)
    image = context.images.find(said["folder"] + path)
    check_size((entry.get("width"), entry.get("height")), image)
    boxes = tuple(dict.fromkeys(_box(written, image, context) for written in said["boxes"]))
    if kind == "where" and len(boxes) != 1:
        raise Refused(Reason.WRONG_SHAPE, f"where is asked about one {category}, and there are {len(boxes)}")
    wording = context.own.one_of(PHRASINGS[kind], row.id, context.options.seed)
    return Sample(
        id=row.id,
        images=(image,),
        question=wording.format(one=category, a=with_article(category), many=plural(category)),
        answers=(_answer(kind, boxes, image),),
        evidence=(Mention(category, boxes),) if boxes else (),
        origin=context.origin(row, image, said["dataset"], said["licence"]),
    )


def _answer(kind: QuestionKind, boxes: Sequence[Box], image: Image) -> str:
    if kind == "where":
        return place(boxes[0], image.width, image.height)
    if kind == "presence":
        return "yes" if boxes else "no"
    return str(len(boxes))


def _box(written: Any, image: Image, context: ConversionContext) -> Box:
    """Return the box of a `bbox` in the file. Raises BoxError, Refused: it is none, or it is rotated."""
    if isinstance(written, dict) or (isinstance(written, list) and len(written) == 5):
        raise Refused(
            Reason.BOX_MALFORMED, f"bbox {written!r:.80} is a rotated box; replace it by the upright box around it, "
            "[x, y, width, height]"
        )  # fmt: skip
    try:
        x, y, width, height = numbers(written)
        return context.box([x, y, x + width, y + height], image)
    except BoxError as error:
        size = f"{image.width} x {image.height}"
        fault = error.fault.value.replace("_", " ")
        raise BoxError(
            error.fault, f"bbox {written!r:.80}, which is [x, y, width, height] on an image of {size} pixels: {fault}"
        ) from None


# ---------------------------------------------------------------------------------- questions of an image


def _questions(context: ConversionContext[CocoOptions], source: Input, index: sqlite3.Connection) -> Iterator[Row]:
    doubting = context.own.unmatched_annotations == "doubt"
    categories = _Categories.read(context, source, index)
    names, written = categories.chosen, categories.names
    of_no_image = "select distinct category from unmatched where not of_image"
    anywhere = {category for (category,) in index.execute(of_no_image)} if doubting else set()
    licences = dict(index.execute("select id, name from licences"))
    is_federated = index.execute("""select 1 from images where entry like '%"neg_category_ids"%'""").fetchone()
    folder = context.image_folders.get(source.uri, "")
    own = context.own
    frequency = None if own.absent_by in (None, "random") else _frequency(index, names)
    seen_before = "rowid > (select min(rowid) from images as first where first.id = images.id)"
    for image_id, written_entry, again, number in index.execute(
        f"select id, entry, {seen_before}, rowid from images order by rowid"
    ):
        entry = json.loads(written_entry)
        if image_id is None:
            detail = f"entry {number} of images has no id, so no annotation can be of it"
            yield Row(f"{source.name}:image-{number}", {}, Refused(Reason.WRONG_SHAPE, detail))
            continue
        if again:
            detail = (
                f"entry {number} of images has the id {image_id} of an earlier one; annotations cannot tell them apart"
            )
            yield Row(f"{source.name}:{image_id}#{number}", {}, Refused(Reason.DUPLICATE, detail))
            continue
        boxes: dict[str, list[Any]] = defaultdict(list)
        crowded, found = set(), set()
        for category, box, crowd in index.execute(
            "select category, box, crowd from annotations where image = ? order by rowid", (image_id,)
        ):
            found.add(category)
            if category in names and crowd:
                crowded.add(names[category])
            elif category in names:
                boxes[names[category]].append(json.loads(box))
        doubted = anywhere | (found - written.keys() if doubting else set())
        in_doubt = {name for number, name in names.items() if number in doubted or not doubted <= written.keys()}
        partial = [
            *map(_key, _listed(entry, "not_exhaustive_category_ids")),
            *(parent for number in found for parent in categories.ancestors.get(number, ())),
        ]
        in_doubt |= {names[number] for number in partial if number is not None and number in names}
        common = {
            "image": entry, "folder": folder, "split": entry.get("split") if own.absent_by is None else "test",
            "dataset": _dataset(source),
            "licence": licences.get(_key(entry.get("license"))),
        }  # fmt: skip
        of = f"{source.name}:{image_id}"
        counts = {name: 0 if name in crowded else len(boxes.get(name, ())) for name in names.values()}
        absent = [name for name in counts if not (name in boxes or name in crowded or name in in_doubt)]
        if is_federated:
            verified = {names.get(_key(number) or "") for number in _listed(entry, "neg_category_ids")}
            absent = [name for name in absent if name in verified]
        if own.absent_by is None:
            asked = [*_of_present(own, counts, in_doubt), *_of_absent(own, of, absent)]
        else:
            present = [name for name, count in counts.items() if count]
            asked = _balanced(own, of, present, absent, frequency)
        for kind, category in asked:
            # Questions of two ways are never the same question: one run may hold several.
            asked_as = kind if own.absent_by is None else f"{kind}-{own.absent_by}"
            yield Row(
                f"{of}:{asked_as}:{category.replace(' ', '-')}",
                {**common, "kind": kind, "asked_as": asked_as, "category": category, "boxes": boxes.get(category, [])},
            )


def _of_present(own: CocoOptions, counts: Mapping[str, int], in_doubt: set[str]) -> Iterator[tuple[QuestionKind, str]]:
    for category, count in counts.items():
        for kind in own.questions:
            if count and (kind == "presence" or (category not in in_doubt and (count == 1 or kind != "where"))):
                yield kind, category


def _of_absent(own: CocoOptions, of: str, absent: Sequence[str]) -> Iterator[tuple[QuestionKind, str]]:
    kinds = [kind for kind in _OF_ABSENT if kind in own.questions]
    # Whatever the seed: it decides on wordings, and not on which rows there are and which of them repeat each other.
    first = pick(0, of, len(absent)) if absent else 0
    for number in range(min(own.absent, len(absent)) if kinds else 0):
        yield kinds[number % len(kinds)], absent[(first + number) % len(absent)]


@dataclass(frozen=True)
class _Frequency:
    """In how many images a thing is, and together with each other one. Grows with the categories, not with the file."""

    alone: Counter[str] = field(default_factory=Counter)
    together: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))


def _frequency(index: sqlite3.Connection, names: Mapping[str, str]) -> _Frequency:
    found = _Frequency()
    in_order = index.execute("select image, category from annotations where image is not null order by image")
    for _, of_image in groupby(in_order, itemgetter(0)):
        shown = {names[category] for _, category in of_image if category in names}
        found.alone.update(shown)
        for thing in shown:
            found.together[thing].update(shown - {thing})
    return found


def _balanced(
    own: CocoOptions, of: str, present: Sequence[str], absent: Sequence[str], frequency: _Frequency | None
) -> list[tuple[QuestionKind, str]]:
    """As many things that are there as things that are not, by turns; at most `own.absent` of each."""

    # Whatever the seed: a benchmark has the same rows in every run.
    def drawn(thing: str) -> float:
        return uniform(0, f"{of}:{thing}")

    there, others = sorted(present, key=drawn), sorted(absent, key=drawn)
    if frequency is not None and own.absent_by == "popular":
        others.sort(key=lambda thing: -frequency.alone[thing])
    elif frequency is not None:
        others.sort(key=lambda thing: -sum(frequency.together[other][thing] for other in present))
    pairs = list(zip(there, others, strict=False))[: own.absent]
    return [("presence", thing) for pair in pairs for thing in pair]


def _listed(entry: Mapping[str, Any], name: str) -> list[Any]:
    return value if isinstance(value := entry.get(name), list) else []


# ----------------------------------------------------------------------------------------------- categories

_PLACEHOLDERS = {"n/a", "none", "null", "nan"}
_MARKUP = re.compile(r"<\S[^>]*>|[{}]")
# "A" precedes the sounds "yoo" and "w" (a unit, a one-way sign), but not the prefix un- (an unimportant thing).
_LIKE_A_CONSONANT = r"uni([cfptv]|on|que|sex|son|lat|dir)|us([abeu]|\b)|ut(?!t)|uk|uran|urin|ufo|eu|ewe\b|one\b|ubi"
_SOUNDS_LIKE_A_VOWEL = re.compile(rf"(?!{_LIKE_A_CONSONANT})[aeiou]|hour|hono|hones|heir|8|1[18](?!\d)", re.IGNORECASE)


def spoken_name(written: Any) -> str | None:
    """Return a category's name as questions use it: `traffic_light` is "traffic light". None: it has no usable name."""
    text = " ".join(written.replace("_", " ").split()) if isinstance(written, str) else _key(written) or ""
    if text.casefold() in _PLACEHOLDERS or _MARKUP.search(text) or not any(map(str.isalnum, text)):
        return None
    return text


def with_article(name: str) -> str:
    """Return the name behind "a" or "an", by its sound: "an hour glass", "a USB stick"."""
    return f"{'an' if _SOUNDS_LIKE_A_VOWEL.match(name) else 'a'} {name}"


@dataclass(frozen=True)
class _Categories:
    """The categories of a file.

    Attributes:
        names: id → the name in the file.
        chosen: id → the name in questions, of the categories that are asked about.
        nameless: ids of categories without a usable name.
        ancestors: id → the categories that it belongs to, by `supercategory`, directly or not.
    """

    names: Mapping[str, str]
    chosen: Mapping[str, str]
    nameless: frozenset[str]
    ancestors: Mapping[str, frozenset[str]]

    @classmethod
    def read(cls, context: ConversionContext[CocoOptions], source: Input, index: sqlite3.Connection) -> _Categories:
        """Read the categories of a file.

        Raises:
            SettingsError: --categories or --category-names name one that is not in the file.
        """
        entries = index.execute("select id, name, parent from categories where id is not null order by rowid")
        names, parents = {}, {}
        for number, name, parent in entries:
            names[number], parents[number] = json.loads(name), json.loads(parent)
        spoken = _renamed(context, source, names)
        ids = {name.casefold(): number for number in names if (name := spoken_name(names[number])) is not None}
        above = {number: ids.get((spoken_name(parent) or "").casefold(), number) for number, parent in parents.items()}
        ancestors = {number: frozenset(_above(number, above)) for number in names}
        annotated = {category for (category,) in index.execute("select distinct category from annotations")}
        groups = {parent for parents in ancestors.values() for parent in parents} - annotated
        wanted = context.own.categories
        chosen = {
            number: name
            for number, name in spoken.items()
            if number not in groups and (not wanted or name in wanted or str(names[number]) in wanted)
        }
        return cls(
            {number: str(name) for number, name in names.items()}, chosen, frozenset(names.keys() - spoken), ancestors
        )


def _renamed(context: ConversionContext[CocoOptions], source: Input, names: Mapping[str, Any]) -> dict[str, str]:
    """Return id → the name in questions, of all categories that have one."""
    renamed = {old.strip(): new.strip() for old, new in (pair.split("=", 1) for pair in context.own.category_names)}
    written = {number: str(name).strip() for number, name in names.items()}
    cleaned = {number: spoken_name(name) for number, name in names.items()}
    spoken = {
        number: new
        for number, name in cleaned.items()
        if (new := renamed.get(written[number]) or renamed.get(name or "") or name) is not None
    }
    known = {*written.values(), *cleaned.values(), *spoken.values()}
    if strange := [name for name in (*renamed, *context.own.categories) if name not in known]:
        there = ", ".join(sorted(written.values()))
        raise SettingsError(f"{source.uri} has no category {', '.join(map(repr, strange))}; it has {there}")
    return spoken


def _above(number: str, above: Mapping[str, str]) -> set[str]:
    """Return the ancestors of a category; a category is its own parent where it has none."""
    passed: set[str] = set()
    while (parent := above[number]) != number and parent not in passed:
        passed.add(parent)
        number = parent
    return passed


# ------------------------------------------------------------------------- annotations that nothing is asked about


def _dataset(source: Input) -> str:
    return last_part(source.uri.rpartition("/")[0]) or source.name


def _unmatched(source: Input, index: sqlite3.Connection) -> Iterator[Row]:
    """A row that is refused for each annotation of no image or no category, so that they are counted and listed."""
    for number, image, category, of_image, of_category in index.execute("select * from unmatched order by number"):
        said = {"image_id": image, "category_id": category}
        wrong = [
            f"{name} {said[name]!r} is of no {what} in the file" if said[name] is not None else f"it has no {name}"
            for name, what, there in (("image_id", "image", of_image), ("category_id", "category", of_category))
            if not there
        ]
        detail = (
            f"entry {number} of annotations: {' and '.join(wrong)}, so nothing is counted or denied that it may show. "
            "Where that was left out of the file on purpose: --unmatched-annotations ignore"
        )
        value = {"annotation": number, **said, "dataset": _dataset(source)}
        yield Row(f"{source.name}:annotation-{number}", value, Refused(Reason.ANNOTATION_UNMATCHED, detail))


def _nameless(context: ConversionContext[CocoOptions], source: Input, index: sqlite3.Connection) -> Iterator[Row]:
    """Yield a refused row for each annotation of a category that has no name to ask about."""
    categories = _Categories.read(context, source, index)
    for category in sorted(categories.nameless):
        detail = (
            f"the category {category} of this annotation is called {categories.names[category]!r:.60}, which is no "
            "name to ask about; correct it, or give it one with --category-names"
        )
        for number, image in index.execute("select rowid, image from annotations where category = ?", (category,)):
            value = {"annotation": number, "image_id": image, "category_id": category, "dataset": _dataset(source)}
            yield Row(f"{source.name}:annotation-{number}", value, Refused(Reason.WRONG_SHAPE, detail))


# ------------------------------------------------------------------------------------------- the database

_TABLES = """
create table images (id text, entry text);
create table annotations (image text, category text, box text, crowd int);
create table categories (id text, name text, parent text);
create table licences (id text, name text);
"""
_MATCHES = """
create index by_image on annotations (image);
create index by_id on images (id);
create index category_by_id on categories (id);
create table unmatched as select * from (
    select rowid as number, image, category,
        exists (select 1 from images where images.id = annotations.image) as of_image,
        exists (select 1 from categories where categories.id = annotations.category) as of_category
    from annotations
) where not of_image or not of_category;
"""
_INSERTS: Mapping[str, tuple[str, Callable[[dict[str, Any]], tuple[Any, ...]]]] = {
    "images": ("insert into images values (?, ?)", lambda e: (_key(e.get("id")), json.dumps(e))),
    "annotations": (
        "insert into annotations values (?, ?, ?, ?)",
        lambda e: (
            _key(e.get("image_id")), _key(e.get("category_id")), json.dumps(_bbox(e)), bool(e.get("iscrowd"))
        ),
    ),
    "categories": (
        "insert into categories values (?, ?, ?)",
        lambda e: (_key(e.get("id")), json.dumps(e.get("name")), json.dumps(e.get("supercategory"))),
    ),
    "licenses": ("insert into licences values (?, ?)", lambda e: (_key(e.get("id")), _key(e.get("name")))),
}  # fmt: skip


@contextmanager
def _index(context: ConversionContext[CocoOptions], source: Input) -> Iterator[sqlite3.Connection]:
    """The file as a database on the scratch disk, made once for all shards of this process, and for its children."""
    path = context.scratch / f"{hashlib.sha256(source.uri.encode()).hexdigest()[:16]}.sqlite"
    if not path.exists():
        confirmed(source.uri, lambda: _make_index(path, context, source))
    with closing(sqlite3.connect(path)) as index:
        yield index


def _make_index(path: Path, context: ConversionContext[CocoOptions], source: Input) -> None:
    try:
        with closing(sqlite3.connect(path)) as index:
            _fill(index, context, source)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _fill(index: sqlite3.Connection, context: ConversionContext[CocoOptions], source: Input) -> None:
    index.executescript("pragma journal_mode = off; pragma synchronous = off;" + _TABLES)
    has_pixels = False
    with opened(context.store, source) as stream:
        if form_of_file(stream) != "coco":
            raise InputError(
                f"{source.uri} is no COCO object (images, annotations, categories); "
                "for rows of questions there are --source viscot and --source samples"
            )
        for part, entry in parts(stream, source.uri):
            if part in _INSERTS:
                if not isinstance(entry, dict):
                    raise InputError(f"{source.uri}: {part} holds {entry!r:.60}, not JSON objects")
                insert, fields = _INSERTS[part]
                index.execute(insert, fields(entry))
                if part == "annotations":
                    has_pixels = has_pixels or not _is_below_a_pixel(entry.get("bbox"))
    index.executescript(_MATCHES)
    index.commit()
    counts = {}
    for table in ("images", "annotations", "categories"):
        (counts[table],) = index.execute(f"select count(*) from {table}").fetchone()
        if not counts[table]:
            raise InputError(f"{source.uri}: there are no {table} in it")
    if not has_pixels:
        raise InputError(
            f"{source.uri}: every bbox is smaller than one pixel, so they are probably fractions of the image; a bbox "
            "is [x, y, width, height] in pixels: multiply by the width and height of each image"
        )
    of_image, of_category = index.execute("select sum(not of_image), sum(not of_category) from unmatched").fetchone()
    if of_image is not None:
        logging.get().warning(
            "annotations of no image or no category in the file", file=source.uri, annotations=counts["annotations"],
            of_no_image=of_image, of_no_category=of_category, unmatched_annotations=context.own.unmatched_annotations,
        )  # fmt: skip


def _bbox(entry: Mapping[str, Any]) -> Any:
    """Return the `bbox` of an annotation; with its angle where it is rotated, as CVAT writes that."""
    attributes = entry.get("attributes")
    for fields in (entry, attributes if isinstance(attributes, dict) else {}):
        for name in ("rotation", "angle"):
            angle = fields.get(name)
            if isinstance(angle, int | float) and angle % 180:
                return {"bbox": entry.get("bbox"), name: angle}
    return entry.get("bbox")


def _is_below_a_pixel(bbox: Any) -> bool:
    numeric = isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(edge, int | float) for edge in bbox)
    return numeric and bbox[2] < 1 and bbox[3] < 1


def _key(value: Any) -> str | None:
    """An id as text, because ids are numbers in one file and texts in another; 1.0, as pandas writes 1, is 1.

    None where there is none: null, or NaN, as pandas writes nothing. It matches nothing, not even its like.
    """
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).encode(errors="replace").decode()  # in a broken file it may be anything, even half a character


# ------------------------------------------------------------------------------------------------------- RefCOCO

EXPRESSION_PHRASINGS = (
    "Where is what this describes: {}?",
    "Point at what this describes: {}.",
    "Find what this describes: {}.",
)
"""The first is the plainest. Expressions are no clean noun phrases ("left guy"), so no article."""

NOTHING = ("no", "no such thing", "none", "nowhere")
"""What is answered where an expression describes nothing; the first is learned, as for a thing that is not there."""


def asks_expression(row: Row) -> tuple[str, str]:
    return "expression", asked(_expression(row), None, None)


@dataset(
    "refcoco",
    "expressions and the box that each describes (RefCOCO, RefCOCO+, RefCOCOg)",
    "--input-uri refcocog_umd_train.jsonl --images-uri train2014",
    options=WordingOptions,
    forms=(Form(frozenset(("img_path", "expression", "bbox", "sent_id")), "RefCOCO's expressions"),),
    needs_images="the folder with COCO's images of train2014",
    splits={**PLAIN_SPLITS, "testA": "test", "testB": "test"},
    asks=asks_expression,
    called="refcoco",
    licence="CC-BY-4.0 (RefCOCOg), Apache-2.0 (RefCOCO, RefCOCO+); images: COCO, terms of Flickr",
)
def refcoco(row: Row, context: ConversionContext[WordingOptions]) -> Sample:
    said = row.value
    expression = _expression(row)
    image = context.images.find(text(said, "img_path", Reason.WRONG_SHAPE))
    same_size(said, image)
    if "bbox" in said and said["bbox"] in (None, []):
        answers: tuple[str, ...] = NOTHING
        evidence: tuple[Mention, ...] = ()
    else:
        box = context.box(said.get("bbox"), image)
        answers = (place(box, image.width, image.height),)
        evidence = (Mention(NEUTRAL if gives_away(expression, answers) else expression, (box,)),)
    split = said.get("split")
    return Sample(
        id=row.id,
        images=(image,),
        question=context.own.one_of(EXPRESSION_PHRASINGS, row.id, context.options.seed).format(expression),
        answers=answers,
        evidence=evidence,
        # Both are our test split, and numbers are published of each.
        metadata={"split": split} if split in ("testA", "testB") else {},
        origin=context.origin(row, image, hub_name(row) or "refcoco"),
    )


def _expression(row: Row) -> str:
    written = text(row.value, "expression", Reason.NO_QUESTION)
    return written.rstrip(" .") or written
