"""All rows of a run as tables: groups of images and their sides of the split, benchmarks, and questions asked twice.

The notes of all rows (prepare.py) go into SQLite on the scratch disk, so that memory does not grow with the input, and
queries over all of them find

- held_out: images that are kept from training, because some row measures with them or a benchmark has them. Datasets
  share images: 115 of the 327 images of VisCoT's VSR benchmark are in its training rows too.
- drawn: images whose side is that of another image, of which they are nearly a copy.
- damaged: images whose header is sound and whose data cannot be decoded; shards read headers alone.
- duplicates: rows that ask what an earlier row has asked about the same image.
- repeated: ids that several rows give themselves. To later stages they would be one sample.

A group is an image, by its digest, with all images that nearly are the same, and with those that stand beside one of
them in a row, because what a row shows is all learned together. All of a group are on one side: that of
the row that measures with one of them (test before validation; a benchmark file counts as test), else training if a
row says so, else where the draw puts its smallest digest. So without near-duplicates the draw is each image's own. A
question without an image takes the place of one here (Asked); its URI is null, and nothing is nearly it.

Benchmark files are read in the forms in which benchmarks come: VisCoT's chat rows and detection rows, RefCOCO's
expressions, metadata rows and our own Samples. An image of theirs is known by its digest (and what is nearly the same
image counts as it) where it can be read below the benchmark's images; where not, by its path: the set's folder and the
file, or the number of a COCO file, which is the same image as COCO_train2014_000000533220.jpg, 000000533220.jpg and in
every dataset.
"""

from __future__ import annotations

import os
import re
import sqlite3
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from vcot.datasets import duplicate_questions
from vcot.datasets.base import ConversionContext
from vcot.datasets.images import DatasetImages, without_top
from vcot.datasets.inputs import Input, rows_of
from vcot.datasets.parallel import in_order
from vcot.datasets.viscot import image_path
from vcot.errors import InputError, SettingsError
from vcot.records import Image
from vcot.stage import Bar
from vcot.storage import Store
from vcot.storage.images import ImageError

COLUMNS = (
    "row int, id text, name text, said int, sha text, uri text, key blob, asked text, sound int, places blob, "
    "dataset text, whole int, others text"
)
"""Of a row's note. name: the id that it gives itself. The others are null where the row is refused: sound, whether
the rules for quality keep it (null: nobody has asked); places, of its boxes, once it was read whole; dataset and
whole, what Glance.whole says; others, the digests and URIs of further images, as JSON.
"""
A_PART = 1 << 40
"""Rows are numbered from part to part in such steps."""
_COCO = re.compile(r"(?:COCO_(?:train|val|test)20\d\d_)?(\d{12})\.jpg")


@contextmanager
def scratch_database(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database in which nothing need survive this process."""
    os.environ["SQLITE_TMPDIR"] = str(path.parent)  # for what it sorts; /var/tmp otherwise
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.executescript("pragma journal_mode = off; pragma synchronous = off; begin")
        yield database
        database.execute("commit")


class RowIndex:
    """The tables: rows (COLUMNS); images, one line for each image with what rows say of it, by its sha; members, of
    groups of images that nearly are the same; shown and same, the paths in benchmark files and the images that they
    are.
    """

    def __init__(self, contexts: Sequence[ConversionContext], readers: int, database: sqlite3.Connection) -> None:
        self.contexts, self.readers = contexts, readers
        self._database, self._sql = database, database.execute

    def load(self, files: Sequence[Path], table: str = "rows") -> None:
        """Databases with notes of rows become a table, and are deleted."""
        self._load_rows(table, COLUMNS, ())
        self._sql("commit")  # within a transaction no file can be attached
        for path in files:
            self._sql("attach ? as noted", (str(path),))
            self._sql(f"insert into {table} select * from noted.rows")
            self._sql("detach noted")
            path.unlink()
        self._sql("begin")
        # What each row shows; `sha` of rows alone is their first image, or what stands in its place.
        self._sql("drop view if exists seen")
        self._sql(
            "create view seen as select row, sha, uri, said from rows where sha is not null union all "
            "select row, json_extract(value, '$[0]'), json_extract(value, '$[1]'), said "
            "from rows, json_each(others) where sha is not null and others is not null"
        )

    def _load_rows(self, table: str, columns: str, rows: Iterable[Sequence[Any]]) -> None:
        """A new table with these rows."""
        self._sql(f"drop table if exists {table}")
        self._sql(f"create table {table} ({columns})")
        places = ", ".join("?" * (columns.count(",") + 1))
        self._database.executemany(f"insert into {table} values ({places})", rows)

    def says_one_thing(self) -> bool:
        return bool(self._one("select count(distinct said) from rows") < 2)

    def repeated_ids(self) -> dict[str, list[str]]:
        """Part → ids that several of its rows have, because they give themselves the same."""
        found = {}
        for place, context in enumerate(self.contexts):
            if context.dataset.names_rows:
                repeated = self._sql(
                    f"select coalesce(name, id) as called from rows where row / {A_PART} = {place} "
                    "group by called having count(*) > 1 order by called"
                )
                found[context.part] = [name for (name,) in repeated.fetchall()]
        return found

    # --- images

    def _one(self, query: str) -> Any:
        found = self._sql(query).fetchone()
        assert found is not None
        return found[0]

    def _list_images(self) -> int:
        """How many there are. Part and URI are those of the first row."""
        self._load_rows("images", "number integer primary key, sha text, part int, uri text, said int", ())
        self._sql(
            # Each row says one bit, so the different ones add up to all that are set.
            "insert into images (sha, part, uri, said) select sha, part, uri, said from ("
            "  select sha, part, uri, sum(distinct said) as said, min(row) from ("
            f"    select sha, row / {A_PART} as part, uri, said, row from seen"
            f"    union all select sha, part, uri, 0, {1 << 60} from more) group by sha) order by sha"
        )
        return int(self._one("select count(*) from images"))

    def group(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Finds the images that nearly are the same, and forgets those that cannot be decoded, because rows about them
        are all refused, and so decide nothing about others. How many there are of what, and which cannot be decoded.
        """
        from vcot.datasets import near_duplicates  # numpy, which shards need not wait for

        self._list_images()
        self._load_rows("members", "sha text primary key, grp int", ())
        distance = self.contexts[0].options.near_duplicates
        if not distance:
            self._join_rows()
            return {}, {}
        damaged: dict[str, Any] = {}

        def look(image: tuple[int, str, int, str]) -> bytes | None:
            _, sha, place, uri = image
            try:
                return self.contexts[place].images.print_of(uri, sha)
            except ImageError as error:
                damaged[sha] = error.reason, str(error).removeprefix(f"{uri}: ")
                return None

        where, noted = array("q"), bytearray()
        total = self._one("select count(*) from images where uri is not null")
        images = self._sql("select number, sha, part, uri from images where uri is not null order by number")
        looked = in_order(lambda image: (image[0], look(image)), images, self.readers)
        with Bar("comparing images", total, "images") as bar:
            for number, print_ in looked:
                if print_ is not None:
                    where.append(number)
                    noted += print_
                bar.advance()
        found = near_duplicates.search(noted, distance)
        members = ((group, where[place]) for place, group in found.members)
        self._database.executemany("insert into members select sha, ? from images where number = ?", members)
        uri = "select uri from images where number = {}"
        pairs = [
            {"bits": bits, "images": size} | {
                name: self._one(uri.format(where[place])) for name, place in (("one", one), ("other", other))
            }
            for bits, size, one, other in found.pairs
        ]  # fmt: skip
        if damaged:
            self._load_rows("damaged", "sha text", ((sha,) for sha in damaged))
            self._sql("create temp table lost as select row from seen where sha in (select sha from damaged)")
            self._sql("delete from rows where row in (select row from lost)")
            self._sql("drop table lost")
            for table in ("images", "same", "more"):
                self._sql(f"delete from {table} where sha in (select sha from damaged)")
        self._join_rows()
        counts = {
            "images_compared": len(where), "groups": found.groups, "images_in_groups": len(found.members),
            "largest_group": found.largest, "pairs": pairs,
        }  # fmt: skip
        return counts, dict(sorted(damaged.items()))

    def _join_rows(self) -> None:
        """Images of one row become members of one group, and so do the groups that they are in."""
        links = self._sql(
            "select one.number, other.number from seen join rows using (row) "
            "join images as one on one.sha = rows.sha join images as other on other.sha = seen.sha "
            "where rows.others is not null and one.number != other.number"
        ).fetchall()
        if not links:
            return
        near = self._sql("select number, grp from images join members using (sha)").fetchall()
        parent: dict[int, int] = {}

        def root(number: int) -> int:
            while (above := parent.setdefault(number, number)) != number:
                parent[number] = number = parent[above]
            return number

        for one, other in (*links, *((number, -1 - group) for number, group in near)):  # below 0: a group, no image
            first, second = sorted((root(one), root(other)), reverse=True)
            parent[second] = first
        members = [(number, root(number)) for number in parent if number >= 0]
        self._load_rows("members", "sha text primary key, grp int", ())
        self._database.executemany(
            "insert into members select sha, ? from images where number = ?",
            ((group, number) for number, group in members),
        )

    # --- the second scan

    def wanted_again(self) -> list[bytes] | None:
        """A byte for each row of each context, 1 where something depends on whether the row is kept; None: of none."""
        asked_again = "or key in (select key from rows where key is not null group by key having count(*) > 1)"
        exact = self.contexts[0].options.duplicates == "exact"
        found = self._sql(
            "select row from rows where sha is not null and sound is null and (sha in (select sha from members) "
            f"or sha in (select sha from images where said & (said - 1)) {asked_again if exact else ''})"
        )
        wanted = [bytearray() for _ in self.contexts]
        for (row,) in found:
            part, place = divmod(row, A_PART)
            wanted[part].extend(bytes(max(0, place + 1 - len(wanted[part]))))
            wanted[part][place] = 1
        return [bytes(markers) for markers in wanted] if any(wanted) else None

    def replace_rows(self, files: Sequence[Path]) -> bool:
        """These notes take the place of the rows' earlier ones, and rows that are not kept are forgotten.

        Returns:
            Whether an image was forgotten, because no row about it is kept.
        """
        self.load(files, "looked")
        refused = self._one("select count(*) from looked where sha is null")
        self._sql("delete from rows where row in (select row from looked)")
        self._sql("insert into rows select * from looked where sha is not null")
        before = self._one("select count(*) from images")
        return bool(refused and self._list_images() < before)

    # --- benchmarks

    def look_up_benchmarks(self) -> None:
        """Their images: by digest where they can be read, else the images of the input that are called the same.

        Where several parts have an image at that path, nobody knows which one is meant, and all are.
        """
        first = self.contexts[0]
        looked_in = [first.benchmark_images] if first.benchmark_images else [each.images for each in self.contexts]
        shown: list[tuple[str, str, int]] = []
        same: set[tuple[str, str, str]] = set()
        more: dict[str, tuple[str, int, str]] = {}
        unread = defaultdict(list)
        for file in first.benchmarks:
            for path, often in sorted(Counter(benchmark_paths(first.store, file)).items()):
                shown.append((file.name, path, often))
                found = [(place, image) for place, in_it in enumerate(looked_in) if (image := _there(in_it, path))]
                for place, image in found:
                    more.setdefault(image.sha256, (image.sha256, place, image.uri))
                    same.add((file.name, path, image.sha256))
                for key in () if found else _keys(path):
                    unread[key].append((file.name, path))
        images = "select distinct uri, sha from seen where uri is not null"
        for uri, sha in self._sql(images) if unread else ():
            same |= {(*named, sha) for key in _keys(uri) for named in unread.get(key, ())}
        self._load_rows("shown", "file text, path text, often int", shown)
        self._load_rows("same", "file text, path text, sha text", same)
        self._load_rows("more", "sha text, part int, uri text", more.values())

    def benchmark_counts(self) -> dict[str, Any]:
        """Benchmark file → its rows and images, how many of them the input could have taught, and the rows refused."""
        names = (
            "rows", "images", "images_found", "images_shared", "rows_with_a_shared_image", "rows_refused"
        )  # fmt: skip
        found = self._sql(
            # hit: paths whose group has an image that rows would learn from.
            "with hit as (select distinct same.file, path, grp from same join grouped using (sha) "
            "  where grp in (select grp from grouped where said & 7 > 0)) "
            "select file, sum(often), count(*), "
            "  (select count(distinct path) from same where same.file = shown.file), "
            "  (select count(distinct path) from hit where hit.file = shown.file), "
            "  sum(often) filter (where (file, path) in (select file, path from hit)), "
            "  (select count(*) from rows join grouped using (sha) where rows.said < 8 "
            "     and grp in (select grp from hit where hit.file = shown.file)) "
            "from shown group by file"
        ).fetchall()
        counted = {
            file: dict(zip(names, (int(number or 0) for number in numbers), strict=True)) for file, *numbers in found
        }
        return {file.name: counted[file.name] for file in self.contexts[0].benchmarks}

    # --- what follows

    def sides(self) -> dict[str, Any]:
        """sha256 → side, of images of which some row alone could not know it; and which benchmark has them."""
        for table in ("grouped", "groups"):
            self._sql(f"drop table if exists {table}")
        self._sql(
            # Images alone of which no row and no benchmark says anything go where the draw puts them.
            "create table grouped as select sha, said, coalesce(grp, -number) as grp, file "
            "from images left join members using (sha) "
            "left join (select sha, min(file) as file from same group by sha) using (sha) "
            "where grp is not null or file is not null or said > 1"
        )
        self._sql(
            "create table groups as select *, case when file_of_group is not null or anything & 8 then 'test' "
            "when anything & 4 then 'validation' end as held from ("
            "  select grp, max(said & 1) | max(said & 2) | max(said & 4) | max(said & 8) as anything, "
            "    min(file) as file_of_group, min(sha) as smallest, count(*) as images from grouped group by grp)"
        )
        held = self._sql(
            "select sha, held, file_of_group from grouped join groups using (grp) "
            "where held is not null and said & iif(held = 'test', 7, 3) order by sha"
        ).fetchall()
        drawn = self._sql(
            "select sha, anything & 2, smallest from grouped join groups using (grp) "
            "where held is null and said & 1 and (images > 1 or anything & 2) order by sha"
        )
        draw = self.contexts[0].draw
        return {
            "held_out": {sha: side for sha, side, _ in held},
            "excluded": {sha: file for sha, _, file in held if file is not None},
            "drawn": {
                sha: side
                for sha, train, smallest in drawn
                if (side := "train" if train else draw(smallest)) != draw(sha)
            },
        }

    def duplicates(self) -> dict[str, str]:
        """Row → the row whose question it repeats, with its answers and boxes: of an image's rows those that measure
        come first, then the input's order. A row that is refused for something else is not repeated.
        """
        options = self.contexts[0].options
        if options.duplicates == "keep":
            return {}
        near = options.duplicates == "near"
        rows = self._sql(
            "select key, id, asked, places from rows where sound "
            "and key in (select key from rows where sound group by key having count(*) > 1) "
            "order by key, max(said, 2) desc, row"
        )
        found: dict[str, str] = {}
        for _, asked_alike in groupby(rows, itemgetter(0)):
            boxes = ((name, said or "", at) for _, name, said, at in asked_alike)
            for (first, said), *others in duplicate_questions.of_one_place(boxes):
                if near and others:
                    found |= dict(duplicate_questions.nearly([(first, said), *others], options.question_similarity))
                else:
                    found |= {name: first for name, _ in others}
        return found

    def whole_pixels(self) -> list[str]:
        """Sets whose boxes are of whole pixels, as far as all their rows can say."""
        sets = "select dataset from rows where dataset is not null group by dataset having min(whole) order by dataset"
        return [name for (name,) in self._sql(sets)]


def _there(images: DatasetImages, path: str) -> Image | None:
    try:
        return images.find(path)
    except (ImageError, SettingsError):  # it is not there, or nobody said where images are
        return None


def benchmark_paths(store: Store, file: Input) -> Iterator[str]:
    """The path of each row's image, below the folder with the images of all sets. Raises InputError: a row names no
    image.
    """
    for row in rows_of(store, file):
        named = _named(row.value)
        if named is None:
            said = row.fault.detail if row.fault else f"it has the fields {', '.join(row.value)[:120]}"
            raise InputError(f"--exclude-benchmarks {file.uri}: {row.id} names no image: {said}")
        path, dataset = named[0].partition("###")[0], named[1]
        yield image_path(path, dataset) if dataset or without_top(path) != path else path


def _named(row: Mapping[str, Any]) -> tuple[str, str] | None:
    said, dataset = row.get("img_path", row.get("image")), row.get("dataset")
    said = said[0] if isinstance(said, list) and said else said
    said = said.get("uri", said.get("file_name")) if isinstance(said, dict) else said
    if not isinstance(said, str) or not said:
        return None
    return said, dataset if isinstance(dataset, str) else ""


def _keys(path: str) -> set[str]:
    """What a path or URI may be recognised by: its last parts with at least one folder, and the number of COCO."""
    parts = [part for part in path.split("/") if part]
    found = {"/".join(parts[start:]) for start in range(max(0, len(parts) - 4), len(parts) - 1)}
    if coco := _COCO.fullmatch(parts[-1] if parts else ""):
        found.add(f"coco:{int(coco[1])}")
    return found
