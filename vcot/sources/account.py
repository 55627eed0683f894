"""What a shard keeps for the report, and what the finish makes of what all shards kept.

    <run>/convert/report/00003.json   rows to show, kept and refused
                         00003.bin    the pictures of which rows were kept (used.py)

The same rows give the same bytes, so it does not matter who wrote them last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vcot.errors import InputError
from vcot.records import Folder, Rejection, Sample
from vcot.records.shards import ShardMark
from vcot.sources.base import ConversionContext, Dataset
from vcot.sources.row import Row
from vcot.sources.specimens import Chosen, Specimen, Specimens, best
from vcot.sources.tally import Counting, Counts
from vcot.sources.used import Sizes, Used, counted
from vcot.storage import NotFound, join


class Account:
    """Of one shard: every row is counted, some are put aside to be shown."""

    def __init__(self, scratch: Path) -> None:
        self._counting, self._specimens, self._used = Counting(), Specimens(), Used(scratch / "used.bin")

    def add(self, row: Row, result: Sample | Rejection, source: Dataset, desk: ConversionContext) -> None:
        """source, desk: what the row was read with."""
        if isinstance(result, Rejection):
            dataset = _readable(desk.dataset_of(row))
            self._counting.refuse(dataset, result.reason)
        else:
            dataset = result.origin.dataset
            self._counting.keep(result)
            if result.image is not None:
                self._used.note(result.image, result.origin.split)
        self._specimens.offer(row, dataset, result, source, desk)

    def leave(self, folder: Folder, shard: int) -> Counts:
        """Puts into the stage's folder what does not belong into a mark; gives what does."""
        shown = json.dumps([one.model_dump(mode="json") for one in self._specimens.found()], ensure_ascii=False)
        folder.store.write(_uri(folder, shard, "json"), shown.encode())
        self._used.close()
        folder.store.upload(self._used.path, _uri(folder, shard, "bin"))
        return self._counting.facts()


def left(folder: Folder, marks: Sequence[ShardMark], scratch: Path) -> tuple[Mapping[str, Sizes], Chosen]:
    """What all shards have left: the sizes of the pictures of each split, and the rows to show.

    Raises:
        InputError: one of them left nothing.
    """

    def fetched(shard: int, kind: str) -> Path:
        uri, path = _uri(folder, shard, kind), scratch / f"left.{kind}"
        try:
            folder.store.download(uri, path)
        except NotFound:
            raise InputError(f"{uri} is missing; delete {folder.uri} and run the stage again") from None
        return path

    sizes = counted((fetched(mark.shard, "bin") for mark in marks), scratch)
    offered = (one for mark in marks for one in json.loads(fetched(mark.shard, "json").read_bytes()))
    return sizes, best(map(Specimen.model_validate, offered))


def _uri(folder: Folder, shard: int, kind: str) -> str:
    return join(folder.uri, "report", f"{shard:05d}.{kind}")


def _readable(name: str) -> str:
    """A row that is refused may call its dataset anything, also half a surrogate pair, which no file can hold."""
    return name[:80].encode(errors="replace").decode()
