"""The files a dataset comes in: JSON arrays and lines, gzipped or not, and Parquet, row by row in constant memory.

Each file is held against the digest that was taken when the stage began, while it is read: a file that changes
under a running stage is an error, not a mixture.

A shard decodes its own rows and no others. Of an entry of a JSON array nobody knows where it ends before it is decoded,
so whoever goes through all of one for the first time notes at which byte each entry begins, and where an entry may
hold several rows (Dataset.expand), how many it has. Prepare leaves both for the shards, 8 to 12 bytes a row:

    <run>/convert/offsets/<sha256 of the file>.entries       the first byte of each entry, and the end of the last
                          <sha256 of the file>.rows          how many rows each line or entry holds

Both are numbers in the machine's order (little-endian) behind the sha256 of their own bytes; bytes are counted in the
unpacked file. A file of which nothing is noted is decoded whole, and gives the same rows.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import zlib
from array import array
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

from vcot.datasets.jsontext import LONGEST, TOO_DEEP, Entry, entries, entries_at
from vcot.errors import InputError, SettingsError, TemporaryError
from vcot.records import Folder, Reason
from vcot.storage import Changed, NotFound, Store, confirmed, join, state_of
from vcot.storage import Entry as StoredEntry
from vcot.storage import name as last_part

PARQUET = ".parquet"
SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".ndjson", PARQUET)
_BUFFER = 1 << 20
Edges = tuple[float, float, float, float]


class Refused(Exception):
    """This row gives no Sample. `detail`: the thing as it was written, and what would be right.

    places: boxes in pixels of the original that show what is wrong, where no Box came of them.
    """

    def __init__(self, reason: Reason, detail: str, places: tuple[Edges, ...] = ()) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.places = places


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was found: `id` names it in the whole run (`gqa.json:12`), `value` is what it says.

    `fault` is set, and `value` empty, where the row could not even be read.
    """

    id: str
    value: Mapping[str, Any]
    fault: Refused | None = None


@dataclass(frozen=True)
class Input:
    """One file. `name` is what its rows are called after, unlike any other file's; `sha256` is of its stored bytes,
    `size` and `state` what storage says of it (`Entry`): another state, and it is another file.
    """

    uri: str
    name: str
    sha256: str
    size: int
    state: str

    @property
    def entry(self) -> StoredEntry:
        return StoredEntry(self.uri, self.size, self.state)


def find(store: Store, uris: Sequence[str]) -> tuple[Input, ...]:
    """The files that the URIs name, in order; a folder stands for the JSON and Parquet files below it, sorted. Raises
    InputError: a URI names nothing.
    """
    found: dict[str, str] = {}
    for uri in uris:
        for file, name in confirmed(uri, partial(_files_at, store, uri)).items():
            found.setdefault(file, name)
    for longer in (lambda uri, name: join(last_part(uri.rpartition("/")[0]), name), lambda uri, name: uri):
        often = Counter(found.values())
        found = {uri: name if often[name] == 1 else longer(uri, name) for uri, name in found.items()}
    return tuple(confirmed(uri, partial(_input, store, uri, name)) for uri, name in found.items())


def _files_at(store: Store, uri: str) -> dict[str, str]:
    """Map URI to name of the file, or of the files of the folder. Raises NotFound: there is neither."""
    if store.stat(uri) is not None:
        return {uri: last_part(uri)}
    base = uri.rstrip("/") + "/"
    below = [entry.uri for entry in store.list(base) if entry.uri.endswith(SUFFIXES)]
    if not below:
        raise NotFound(f"{uri}: there is no such file, and no folder with {', '.join(SUFFIXES)} files in it")
    return {entry: entry.removeprefix(base) for entry in below}


def _input(store: Store, uri: str, name: str) -> Input:
    """Return the file with its digest. Raises Changed: it is missing, or its size differs from the listed one."""
    if (stored := store.stat(uri)) is None:
        raise _changed(uri)
    return Input(uri, name, store.digest(uri, of=stored), stored.size, stored.state)


def folders_beside(store: Store, inputs: Sequence[Input], name: str) -> tuple[str, dict[str, str]]:
    """Find the images of inputs for which no folder was named: in the folder `name` next to each, else in its own.

    Returns:
        The folder that holds all of them, and URI of an input → where below it, ending with a slash; {} for one folder.

    Raises:
        SettingsError: the inputs have no folder in common.
    """
    places = {}
    for file in inputs:
        own = file.uri.rpartition("/")[0] or "."
        beside = join(own, name)
        places[file.uri] = beside if next(store.list(beside), None) is not None else own
    if len(folders := sorted(set(places.values()))) == 1:
        return folders[0], {}
    steps = zip(*(folder.split("/") for folder in folders), strict=False)
    base = "/".join(parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, steps))
    if base in ("", "s3:", "s3:/"):
        raise SettingsError(f"--images-uri is missing: {', '.join(folders)[:300]} have no folder in common")
    return base, {uri: f"{place.removeprefix(base).strip('/')}/".lstrip("/") for uri, place in places.items()}


def _changed(uri: str) -> Changed:
    return Changed(f"{uri} has changed since this stage began; use another run name")


def rows_of(store: Store, source: Input) -> Iterator[Row]:
    """The rows of one file of JSON. A line that is not a JSON object comes with its fault. Raises InputError: the file
    is empty, cut off, of another kind, or not what it was when the stage began.
    """
    return (row_of(source, number, found) for number, found in found_in(store, source))


def found_in(
    store: Store, source: Input, columns: Sequence[str] = (), starts: array[int] | None = None
) -> Iterator[tuple[int, Any]]:
    """The same rows, numbered from 1; lines are not yet read, so that whoever wants few of them reads few.

    `row_of` makes rows of them, before the next one is taken. Raises what `rows_of` does.

    columns: what is read of a Parquet file; none where only JSON is.
    starts: where the entries of a JSON array begin (jsontext.entries). An empty one is filled; with a full one entries
    are as lines are, and of a file that is not gzipped whatever lies far from those that are wanted is not even
    fetched.
    """
    number, known = 0, starts or None
    try:
        for number, found in _found_by_kind(store, source, columns, starts):
            yield number, found
        if not number:
            raise InputError(f"{source.uri}: there is not one row in it")
    except InputError as error:
        if hasattr(error, "reads"):
            raise
        _raise_if_again(store, source, columns, known, error)


def _raise_if_again(
    store: Store, source: Input, columns: Sequence[str], starts: array[int] | None, error: InputError
) -> NoReturn:
    """Read all of the file again after an error.

    Raises:
        InputError: it fails again.
        TemporaryError: it does not, so the rows that were read before the error may be wrong.
    """
    first_read = iter((error,))

    def attempt() -> None:
        for failure in first_read:
            raise failure
        if not deque(_found_by_kind(store, source, columns, starts), maxlen=1):
            raise error

    confirmed(source.uri, attempt)
    raise TemporaryError(f"a read of {source.uri} was bad ({error}), a second one was good; run the same command again")


def _found_by_kind(
    store: Store, source: Input, columns: Sequence[str], starts: array[int] | None
) -> Iterator[tuple[int, Any]]:
    if source.uri.endswith(PARQUET):
        if not columns:
            raise InputError(f"{source.uri} is Parquet; this source reads {', '.join(SUFFIXES[:-1])}")
        with _unchanged(store, source) as file:
            yield from parquet_rows(file, source.uri, columns)
        return
    if starts:
        # Not all of it is read, so it is held against its state and not against its digest.
        with (opened if source.uri.endswith(".gz") else _unchanged)(store, source) as stream:
            yield from entries_at(stream, source.uri, starts)
        return
    with opened(store, source) as stream:
        form = form_of_file(stream)
        if form == "coco":
            raise InputError(
                f"{source.uri} is one COCO object (images, annotations, categories): --source coco reads it"
            )
        yield from entries(stream, source.uri, starts) if form == "array" else _lines(source, stream)


def form_of_file(stream: io.BufferedReader) -> str:
    """`array`, `coco` or `lines`, by how the file begins; nothing is consumed."""
    beginning = stream.peek(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if beginning.startswith(b"["):
        return "array"
    return "coco" if _COCO.match(beginning) else "lines"


_COCO = re.compile(
    rb'\{\s*"(?:(?:info|licenses|annotations|categories)"\s*:|type"\s*:\s*"instances"|images"\s*:\s*\[\s*[{\]])'
)
"""Lines of chat messages may begin with `images` too, a list of paths."""


@contextmanager
def opened(store: Store, source: Input) -> Iterator[io.BufferedReader]:
    """The file's content, unpacked. Whoever reads it to its end has read the bytes of `source.sha256`. Raises
    InputError: it is not a whole gzip, or it has changed since the stage began.
    """
    with _unchanged(store, source) as raw:
        watched = _Watched(raw)
        stored = io.BufferedReader(watched, _BUFFER)
        stream: Any = stored
        if source.uri.endswith(".gz"):
            stream = io.BufferedReader(gzip.GzipFile(fileobj=stored), _BUFFER)
        try:
            # UTF-16 and -32 begin with a byte order mark, or with a character and a NUL. Cut into lines as UTF-8 is,
            # they have others.
            if stream.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in stream.peek(2)[:2]:
                raise InputError(
                    f"{source.uri} is written in UTF-16 or UTF-32; JSON is UTF-8: iconv -f UTF-16 -t UTF-8 makes it so"
                )
            yield stream
            ended = not stream.peek(1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{source.uri} is not a whole gzip file: {error}") from None
        if ended and watched.digest.hexdigest() != source.sha256:
            raise _changed(source.uri)


@contextmanager
def _unchanged(store: Store, source: Input) -> Iterator[BinaryIO]:
    """The file's bytes. Raises Changed: storage says that it is another file, or becomes one meanwhile."""
    with ExitStack() as stack:

        def attempt() -> BinaryIO:
            try:
                return stack.enter_context(store.open_read(source.uri, source.entry))
            except (Changed, NotFound):
                raise _changed(source.uri) from None

        file = confirmed(source.uri, attempt)
        try:
            yield file
        except InputError:  # of half an old file and half a new one nobody need hear what else is wrong with it
            _demand_same(file, source)
            raise
        _demand_same(file, source)


def _demand_same(file: BinaryIO, source: Input) -> None:
    if state_of(file) != source.state:
        raise _changed(source.uri)


class _Watched(io.RawIOBase):
    """Passes bytes on and keeps their digest."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        buffer[: len(data)] = data
        self.digest.update(data)
        return len(data)


def _lines(source: Input, stream: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := stream.readline(LONGEST):
        number += 1
        if len(line) == LONGEST:
            raise InputError(f"{source.uri}: line {number} is longer than {LONGEST >> 20} MiB; is this JSON lines?")
        if not line.isspace():
            yield number, line


def row_of(source: Input, number: int, found: Any) -> Row:
    """`found`: a line, an entry, or the value that was in it."""
    row_id = f"{source.name}:{number}"
    if isinstance(found, Entry):
        found = found.value()
    if isinstance(found, bytes):
        try:
            found = _read(found)
        except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
            why = str(error).partition("; use sys.")[0]  # of a whole number with thousands of digits
            return _unread(row_id, f"line {number}: {why}; it begins {found[:60]!r}")
        except RecursionError:
            return _unread(row_id, f"line {number}: nested too deeply; it begins {found[:60]!r}")
    if isinstance(found, dict):
        return Row(row_id, found)
    if found is TOO_DEEP:
        return _unread(row_id, f"entry {number} is nested too deeply")
    wrong = f"a row is a JSON object; this is {json.dumps(found, default=str)[:60]}"
    return Row(row_id, {}, Refused(Reason.WRONG_SHAPE, wrong))


def _unread(row_id: str, why: str) -> Row:
    return Row(row_id, {}, Refused(Reason.NOT_JSON, why))


def _read(line: bytes) -> Any:
    """What `json.loads` gives, which asks first what encoding this may be: not of a line that begins `{"`."""
    return _DECODE(line.decode("utf-8", "surrogatepass")) if line.startswith(b'{"') else json.loads(line)


_DECODE = json.JSONDecoder().decode

# ----------------------------------------------------------------------------------------------------------- Parquet

ROWS_AT_ONCE = 16
"""Rows of Parquet in memory; with their images, some megabytes."""
_SPLIT = re.compile(r"(?P<split>[a-z]+)-\d+-of-\d+\b.*")


def parquet_rows(stream: BinaryIO, uri: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their numbers from 1: what the columns hold that the file has of these.

    What the name of the file says (`train-00000-of-00002.parquet`) counts as `split` where no column does. Raises
    InputError: it is no whole Parquet, or it has none of the columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    named = {"split": found["split"]} if (found := _SPLIT.fullmatch(last_part(uri))) else {}
    try:
        # Columns are read in pieces of the buffer. Otherwise whole groups of rows are fetched ahead, and with
        # images in them the whole file may come to be in memory.
        file = pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False)
        there = [name for name in columns if name in file.schema_arrow.names]
        if not there:
            raise InputError(
                f"{uri} has the columns {', '.join(file.schema_arrow.names)[:200]}; none of {', '.join(columns)}"
            )
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=there):
            for row in batch.to_pylist():
                number += 1
                yield number, named | row
    except (pa.ArrowException, OSError, EOFError) as error:
        if getattr(error, "errno", None) is not None:  # of the disk, not of pyarrow
            raise
        raise InputError(f"{uri} is not whole Parquet: {error}") from None


# ------------------------------------------------------------------------------------------- where a file's rows are

Kind = Literal["entries", "rows"]
_CODES: dict[Kind, str] = {"entries": "Q", "rows": "I"}
_DIGEST = 32


def _noted_at(scratch: Path, file: Input, kind: Kind) -> Path:
    return scratch / f"{file.sha256}.{kind}"


def noted(scratch: Path, file: Input, kind: Kind) -> array[int] | None:
    """What somebody has noted on this machine; None: nobody has."""
    path = _noted_at(scratch, file, kind)
    return array(_CODES[kind], path.read_bytes()[_DIGEST:]) if path.exists() else None


def note(scratch: Path, file: Input, kind: Kind, numbers: array[int]) -> None:
    data, path = numbers.tobytes(), _noted_at(scratch, file, kind)
    whole = path.with_suffix(f".{os.getpid()}")  # several processes may note the same
    whole.write_bytes(hashlib.sha256(data).digest() + data)
    whole.replace(path)


def fetch_offsets(folder: Folder, scratch: Path, files: Sequence[Input]) -> None:
    """Brings what was left in the stage's folder to this machine. Raises InputError: it is not what was left."""
    for path in (_noted_at(scratch, file, kind) for file in files for kind in _CODES):
        uri = join(folder.uri, "offsets", path.name)
        if path.exists() or folder.store.stat(uri) is None:
            continue
        path.write_bytes(confirmed(uri, partial(_read_offsets, folder.store, uri)))


def _read_offsets(store: Store, uri: str) -> bytes:
    data = store.read(uri)
    if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
        raise InputError(f"{uri} is damaged: its digest is another; delete it")
    return data


def leave_offsets(folder: Folder, scratch: Path, files: Sequence[Input]) -> None:
    """Puts what was noted where the shards find it."""
    for path in (_noted_at(scratch, file, kind) for file in files for kind in _CODES):
        uri = join(folder.uri, "offsets", path.name)
        if path.exists() and folder.store.stat(uri) is None:
            folder.store.upload(path, uri)
