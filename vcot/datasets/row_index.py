"""What prepare learns about all rows before the first shard, for every shard to know.

Every row is scanned once and noted: its image, the side of the split that it names, and its question. The notes go
into DuckDB on the scratch disk, so that memory does not grow with the input, and queries over all of them find

- held_out: images that are kept from training, because some row measures with them or a benchmark has them. Datasets
  share images: 115 of the 327 images of VisCoT's VSR benchmark are in its training rows too.
- drawn: images whose side is that of another image, of which they are nearly a copy.
- damaged: images whose header is sound and whose data cannot be decoded; shards read headers alone.
- duplicates: rows that ask what an earlier row has asked about the same image.
- repeated: ids that several rows give themselves. To later stages they would be one sample.

A group is an image, by its digest, with all images that nearly are the same. All of a group are on one side: that of
the row that measures with one of them (test before validation; a benchmark file counts as test), else training if a
row says so, else where the draw puts its smallest digest. So without near-duplicates the draw is each image's own. A
question without an image takes the place of one here (repeats.Asked); its URI is null, and nothing is nearly it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vcot.datasets import alike, benchmarks, mixture, repeats
from vcot.datasets.base import PreparedFacts
from vcot.datasets.images import DatasetImages
from vcot.datasets.inputs import fetch_offsets, leave_offsets
from vcot.datasets.mixture import Part
from vcot.datasets.reading import in_order, until_stopped
from vcot.datasets.row_scan import COLUMNS, How, scan
from vcot.datasets.workers import Workers
from vcot.errors import InputError, SettingsError, TemporaryError
from vcot.records import Folder, Image
from vcot.stage import progress
from vcot.storage import NotFound, join
from vcot.storage.images import ImageError

if TYPE_CHECKING:
    import duckdb

FACTS = "survey.json"
Facts = dict[str, Any]
_NOTHING: Facts = {
    "shares": {}, "repeated": {}, "damaged": {}, "held_out": {}, "drawn": {}, "excluded": {}, "duplicates": {},
    "whole_pixels": [], "counts": {},
}  # fmt: skip
WORTH_A_PROCESS = 16 << 20
"""Bytes of rows: with fewer, what a process does takes no longer than to begin it, which is about a second."""
_A_PART = 1 << 40
"""Rows are numbered from part to part in such steps."""
_GROUPS, _MEMBERS, _PAIRS = 1000, 64, 4
"""For the report: so many groups are looked at, so many images of each; shown are so many that are far apart, and so
many by chance.
"""


def informed(parts: Sequence[Part], folder: Folder, *, look: bool, workers: Workers, readers: int) -> tuple[Part, ...]:
    """The parts that know it. The first that asks finds it out, and leaves it in the stage's folder.

    Raises:
        InputError: nobody has found it out yet and `look` is false (another process should have).
    """
    for part in parts:
        fetch_offsets(folder, part.desk.scratch, part.desk.inputs)
    facts = _left(folder)
    if facts is None:
        if not look:
            raise InputError(f"{join(folder.uri, FACTS)} is missing: --part prepare comes before --part shards")
        facts = survey(parts, workers, readers)
        for part in parts:
            leave_offsets(folder, part.desk.scratch, part.desk.inputs)
        data = json.dumps({"sha256": _digest(facts), "found": facts}, indent=0).encode()
        folder.store.write_once(join(folder.uri, FACTS), data)
    known = {name: facts[name] for name in ("damaged", "held_out", "drawn", "excluded", "duplicates", "whole_pixels")}
    return tuple(
        replace(part, share=facts["shares"].get(part.name, 1.0)).knowing(
            prepared=PreparedFacts(repeated=frozenset(facts["repeated"].get(part.name, ())), **known)
        )
        for part in parts
    )


def counts(folder: Folder) -> Mapping[str, Any]:
    """What was counted on the way, for the report."""
    found: Mapping[str, Any] = (_left(folder) or _NOTHING)["counts"]
    return found


def _left(folder: Folder) -> Facts | None:
    uri = join(folder.uri, FACTS)
    try:
        there = json.loads(folder.store.read(uri))
        found: Facts = there["found"]
        if there["sha256"] != _digest(found):
            raise ValueError("its digest is another")
        if found.keys() != _NOTHING.keys():
            raise InputError(f"{uri}: another version of vcot made it; delete {folder.uri} and run the stage again")
        return found
    except NotFound:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{uri} is damaged ({error}); delete {folder.uri} and run the stage again") from None


def _digest(found: Any) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def survey(parts: Sequence[Part], workers: Workers, readers: int) -> Facts:
    """What all shards must know of the rows, as JSON: the fields of PreparedFacts; shares of parts; and counts.

    Raises:
        InputError: a benchmark file is none.
        TemporaryError: there is too little room on the scratch disk.
    """
    import duckdb

    if len(parts) == 1 and not parts[0].desk.inputs:  # drawn scenes alone are all different
        return _NOTHING
    facts = dict(_NOTHING)
    if any(part.weight is not None for part in parts):
        rows = {part.name: sum(1 for _ in until_stopped(part.all_rows())) for part in parts}
        facts["shares"] = mixture.shares(rows, {part.name: part.weight for part in parts if part.weight is not None})
        parts = [replace(part, share=facts["shares"][part.name]) for part in parts]
    options, benchmark_files = parts[0].desk.options, parts[0].desk.benchmarks  # of the whole run, so of every part
    # Benchmarks count rows that are kept, and nearly the same question may be any row's: then all are read whole.
    how: How = "whole" if benchmark_files or options.duplicates == "near" else "glance"
    wanted = options.near_duplicates or options.duplicates != "keep" or benchmark_files
    wanted = wanted or any(part.source.whole for part in parts)
    index = RowIndex(parts, workers, readers)
    try:
        index.scan(how if wanted else "declared")
        facts["repeated"] = index.repeated_ids()
        # Rows that say the same of their side, or all nothing, cannot be at odds over an image.
        if not wanted and index.says_one_thing():
            return facts
        if not wanted:
            index.scan(how)
        index.look_up_benchmarks()
        groups, facts["damaged"] = index.group()
        if index.scan_again() and options.near_duplicates:
            groups, _ = index.group()
        facts |= index.sides()
        facts["duplicates"] = index.duplicates()
        facts["whole_pixels"] = index.whole_pixels()
        facts["counts"] = {"near_duplicates": groups, "benchmarks": index.benchmark_counts()}
        return facts
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise TemporaryError(
            f"all rows could not be looked at together ({error}); is there room on this disk?"
        ) from None
    finally:
        index.database.close()


# ------------------------------------------------------------------------------------------------------ all rows


class RowIndex:
    """The tables: rows (COLUMNS); images, one line for each image with what rows say of it; members, of groups of
    images that nearly are the same; shown and same, the paths in benchmark files and the images that they are.
    """

    def __init__(self, parts: Sequence[Part], workers: Workers, readers: int) -> None:
        import duckdb

        self.parts, self.workers, self.readers, self.scratch = parts, workers, readers, parts[0].desk.scratch
        # Tables that do not fit into the limit go to the scratch disk.
        self.database: duckdb.DuckDBPyConnection = duckdb.connect(
            config={
                "memory_limit": "256MB", "threads": 2, "preserve_insertion_order": False,
                "temp_directory": str(self.scratch / "rows"),
            }
        )  # fmt: skip
        self._sql = self.database.execute

    def _load(self, table: str, columns: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> None:
        """Rows that Python has made; inserted one by one, each would take a millisecond."""
        path = self.scratch / f"{table}.jsonl"
        with path.open("w") as lines:
            lines.writelines(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
        self._load_files(table, columns, [path])

    def _load_files(self, table: str, columns: Mapping[str, str], files: Sequence[Path]) -> None:
        self._sql(f"create or replace table {table} ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
        for path in files:  # one by one, because each takes buffers of twice the longest line that is allowed
            self._sql(
                f"insert into {table} select * from read_json(?, format = 'newline_delimited', columns = {columns}, "
                f"maximum_object_size = {8 << 20})",
                [str(path)],
            )
            path.unlink()

    def scan(self, how: How, table: str = "rows", wanted: Sequence[bytes | None] | None = None) -> None:
        """Every row, or those that are wanted of each part, noted in a table."""
        tasks: list[tuple[Any, ...]] = []
        most = 1
        for place, part in enumerate(self.parts):
            if wanted is not None and not wanted[place]:
                continue
            worth = sum(file.size for file in part.desk.inputs) // WORTH_A_PROCESS
            if part.limit is not None:
                worth = min(worth, math.ceil(part.limit / mixture.BLOCK))
            processes = max(1, min(self.workers.count, worth))
            most = max(most, processes)
            if processes > 1 and part.source.ready is not None:
                part.source.ready(part.desk)
            tasks += [
                (
                    part, place * _A_PART, (index, processes), max(1, self.readers // processes), how,
                    wanted and wanted[place], self.scratch / f"{table}-{place}-{index}.jsonl",
                )
                for index in range(processes)
            ]  # fmt: skip
        if most == 1:  # no part is worth a second process
            for task in tasks:
                scan(*task)
        else:
            self.workers.map(scan, tasks)
        self._load_files(table, COLUMNS, [task[-1] for task in tasks])

    def says_one_thing(self) -> bool:
        return bool(self._one("select count(distinct said) from rows") < 2)

    def repeated_ids(self) -> dict[str, list[str]]:
        """Part → ids that several of its rows have, because they give themselves the same."""
        found = {}
        for place, part in enumerate(self.parts):
            if part.source.names_rows:
                repeated = self._sql(
                    f"select coalesce(name, id) as called from rows where row // {_A_PART} = {place} "
                    "group by called having count(*) > 1 order by called"
                )
                found[part.name] = [name for (name,) in repeated.fetchall()]
        return found

    # --- images

    def _one(self, query: str) -> Any:
        found = self._sql(query).fetchone()
        assert found is not None
        return found[0]

    def _list_images(self) -> int:
        """How many there are. Bits that differ add up to all that are set; part and URI are those of the first row."""
        self._sql(
            "create or replace table images as select *, row_number() over (order by sha) - 1 as number from ("
            "  select sha, arg_min(part, row) as part, arg_min(uri, row) as uri, bit_or(said) as said from ("
            f"    select sha, row // {_A_PART} as part, uri, said, row from rows where sha is not null"
            f"    union all select sha, part, uri, 0, {1 << 60} from more) group by sha)"
        )
        return int(self._one("select count(*) from images"))

    def group(self) -> tuple[Facts, Facts]:
        """Finds the images that nearly are the same, and forgets those that cannot be decoded, because rows about them
        are all refused, and so decide nothing about others. How many there are of what, and which cannot be decoded.
        """
        self._list_images()
        self._sql("create or replace table members (sha varchar, grp integer)")
        distance = self.parts[0].desk.options.near_duplicates
        if not distance:
            return {}, {}
        damaged: Facts = {}

        def look(image: tuple[int, str, int, str]) -> bytes | None:
            _, sha, place, uri = image
            try:
                return self.parts[place].desk.images.print_of(uri, sha)
            except ImageError as error:
                damaged[sha] = error.reason, str(error).removeprefix(f"{uri}: ")
                return None

        where, noted = [], bytearray()
        total = self._one("select count(*) from images where uri is not null")
        looked = in_order(lambda image: (image[0], look(image)), self._pages(), self.readers)
        for number, print_ in progress(looked, "comparing images", total, "images"):
            if print_ is not None:
                where.append(number)
                noted += print_
        prints = np.frombuffer(noted, np.uint8).reshape(-1, alike.BYTES)
        numbers, labels = np.array(where, np.int64), alike.groups(prints, distance)
        sizes = np.bincount(labels, minlength=1)
        places = np.flatnonzero(sizes[labels] > 1)
        self.database.register("found", {"number": numbers[places], "grp": labels[places]})
        self._sql("insert into members select sha, grp from images join found using (number)")
        self.database.unregister("found")
        _, firsts = np.unique(labels[places], return_index=True)
        pairs = self._pairs(prints, numbers, labels, labels[places[np.sort(firsts)[:_GROUPS]]])
        if damaged:
            self._load("damaged", {"sha": "VARCHAR"}, ((sha,) for sha in damaged))
            for table in ("rows", "images", "same", "more"):
                self._sql(f"delete from {table} where sha in (select sha from damaged)")
        return (
            {
                "images_compared": len(where),
                "groups": len(firsts),
                "images_in_groups": len(places),
                "largest_group": int(sizes[labels[places]].max(initial=0)),
                "pairs": pairs,
            },
            dict(sorted(damaged.items())),
        )

    def _pages(self) -> Iterator[tuple[int, str, int, str]]:
        """The images by their digests, some at a time: a result that is not read at once would be held in memory."""
        last = ""
        while page := self._sql(
            "select number, sha, part, uri from images where uri is not null and sha > ? order by sha limit 50000",
            [last],
        ).fetchall():
            yield from page
            last = page[-1][1]

    def _pairs(self, prints: alike.Prints, numbers: Any, labels: Any, groups: Any) -> list[Facts]:
        """The two images that differ most, of some groups: those where they differ most of all, and some by chance.

        numbers, labels: of the image of each fingerprint, and of its group. groups: the labels of some.
        """
        found = []
        for group in groups:
            members = np.flatnonzero(labels == group)
            one, other, bits = alike.farthest(prints[members[:_MEMBERS]])
            found.append((bits, int(numbers[members[one]]), int(numbers[members[other]]), len(members)))
        found.sort(key=itemgetter(0), reverse=True)
        chosen = found[:_PAIRS] + sorted(found[_PAIRS:], key=itemgetter(1))[:_PAIRS]
        uris = dict(self._sql(
            "select number, uri from images where number in (select unnest(?))",
            [[number for _, one, other, _ in chosen for number in (one, other)]],
        ).fetchall())  # fmt: skip
        return [
            {"bits": bits, "images": size, "one": uris[one], "other": uris[other]} for bits, one, other, size in chosen
        ]

    # --- the second scan

    def scan_again(self) -> bool:
        """Reads those rows whole on which something depends, and forgets those that are not kept.

        Returns:
            Whether an image was forgotten, because no row about it is kept.
        """
        asked_again = "or key in (select key from rows where key is not null group by key having count(*) > 1)"
        exact = self.parts[0].desk.options.duplicates == "exact"
        found = self._sql(
            "select row from rows where sha is not null and sound is null and (sha in (select sha from members) "
            f"or sha in (select sha from images where bit_count(said) > 1) {asked_again if exact else ''})"
        ).fetchnumpy()["row"]
        if not len(found):
            return False
        wanted = []
        for place in range(len(self.parts)):
            places = found[found // _A_PART == place] % _A_PART
            markers = np.zeros(int(places.max(initial=-1)) + 1, np.uint8)
            markers[places] = 1
            wanted.append(markers.tobytes())
        self.scan("whole", "looked", wanted)
        self._sql("delete from rows where row in (select row from looked)")
        self._sql("insert into rows select * from looked where sha is not null")
        before = self._one("select count(*) from images")
        return bool(self._list_images() < before)

    # --- benchmarks

    def look_up_benchmarks(self) -> None:
        """Their images: by digest where they can be read, else the images of the input that are called the same.

        Where several parts have an image at that path, nobody knows which one is meant, and all are.
        """
        desk = self.parts[0].desk
        looked_in = [desk.benchmark_images] if desk.benchmark_images else [p.desk.images for p in self.parts]
        shown: list[tuple[str, str, int]] = []
        same: set[tuple[str, str, str]] = set()
        more: dict[str, tuple[str, int, str]] = {}
        unread = defaultdict(list)
        for file in desk.benchmarks:
            for path, often in sorted(Counter(benchmarks.paths(desk.store, file)).items()):
                shown.append((file.name, path, often))
                found = [(place, image) for place, in_it in enumerate(looked_in) if (image := _there(in_it, path))]
                for place, image in found:
                    more.setdefault(image.sha256, (image.sha256, place, image.uri))
                    same.add((file.name, path, image.sha256))
                for key in () if found else benchmarks.keys(path):
                    unread[key].append((file.name, path))
        rows = self._sql("select distinct uri, sha from rows where uri is not null")
        for uri, sha in iter(rows.fetchone, None) if unread else ():
            same |= {(*named, sha) for key in benchmarks.keys(uri) for named in unread.get(key, ())}
        self._load("shown", {"file": "VARCHAR", "path": "VARCHAR", "often": "BIGINT"}, shown)
        self._load("same", {"file": "VARCHAR", "path": "VARCHAR", "sha": "VARCHAR"}, sorted(same))
        self._load("more", {"sha": "VARCHAR", "part": "INT", "uri": "VARCHAR"}, more.values())

    def benchmark_counts(self) -> Facts:
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
            "  sum(often) filter ((file, path) in (select (file, path) from hit)), "
            "  (select count(*) from rows join grouped using (sha) where rows.said < 8 "
            "     and grp in (select grp from hit where hit.file = shown.file)) "
            "from shown group by file"
        ).fetchall()
        counted = {
            file: dict(zip(names, (int(number or 0) for number in numbers), strict=True)) for file, *numbers in found
        }
        return {file.name: counted[file.name] for file in self.parts[0].desk.benchmarks}

    # --- what follows

    def sides(self) -> Facts:
        """sha256 → side, of images of which some row alone could not know it; and which benchmark has them."""
        self._sql(
            "create or replace table grouped as select sha, said, coalesce(grp, -1 - number) as grp, file "
            "from images left join members using (sha) "
            "left join (select sha, min(file) as file from same group by sha) using (sha)"
        )
        self._sql(
            "create or replace table sided as select *, "
            "  case when file_of_group is not null or anything & 8 > 0 then 'test' "
            "       when anything & 4 > 0 then 'validation' end as held from ("
            "  select sha, said, bit_or(said) over of_group as anything, min(file) over of_group as file_of_group, "
            "    min(sha) over of_group as smallest, count(*) over of_group as images "
            "  from grouped window of_group as (partition by grp))"
        )
        held = self._sql(
            "select sha, held, file_of_group from sided where said & if(held = 'test', 7, 3) > 0 and held is not null "
            "order by sha"
        ).fetchall()
        drawn = self._sql(
            "select sha, anything & 2 > 0, smallest from sided where held is null and said & 1 > 0 "
            "and (images > 1 or anything & 2 > 0) order by sha"
        ).fetchall()
        draw = self.parts[0].desk.draw
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
        options = self.parts[0].desk.options
        if options.duplicates == "keep":
            return {}
        near = options.duplicates == "near"
        rows = self._sql(
            "select key, id, asked, places from rows where sound "
            "and key in (select key from rows where sound group by key having count(*) > 1) "
            "order by key, greatest(said, 2) desc, row"
        )
        found: dict[str, str] = {}
        for _, asked_alike in groupby(iter(rows.fetchone, None), itemgetter(0)):
            boxes = ((name, said or "", None if at is None else bytes.fromhex(at)) for _, name, said, at in asked_alike)
            for (first, said), *others in repeats.of_one_place(boxes):
                if near and others:
                    found |= dict(repeats.nearly([(first, said), *others], options.question_similarity))
                else:
                    found |= {name: first for name, _ in others}
        return found

    def whole_pixels(self) -> list[str]:
        """Sets whose boxes are of whole pixels, as far as all their rows can say."""
        sets = "select dataset from rows where dataset is not null group by dataset having bool_and(whole) order by all"
        return [name for (name,) in self._sql(sets).fetchall()]


def _there(images: DatasetImages, path: str) -> Image | None:
    try:
        return images.find(path)
    except (ImageError, SettingsError):  # it is not there, or nobody said where images are
        return None
