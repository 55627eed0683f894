"""Numbered shards, their counts, and the completion marker: the contract of a stage in storage (docs/formats.md).

    <run>/<stage>/settings.json            what shaped the result, code version, input digests
                  shards/00000-3f9a….jsonl.gz   the digest of the bytes in the name
                  rejections/00000-….jsonl      what was refused, and why
                  _done/00000.json         names the shard's files; written last, write-once
                  report.json              the sums
                  _done/stage.json         the stage is whole

A process may be killed at any line: a shard counts from the moment its marker exists, and that is one write-once
object. A late writer may leave a second file of another name; the marker decides.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, Literal, Protocol, overload

from pydantic import BaseModel, Field, JsonValue, ValidationError
from typing_extensions import TypeVar

from vcot import __version__, logging
from vcot.errors import InputError, NotWhole, SettingsError, TemporaryError, VcotError
from vcot.records import metadata as of
from vcot.records.base import Record
from vcot.records.sample import Rejection, Sample
from vcot.redaction import redacted
from vcot.settings import Settings
from vcot.stage import Bar, stop, summary
from vcot.storage import NotFound, Store, confirmed, join
from vcot.storage.local import file_digest
from vcot.storage.names import RelativeName, first_fault, refuse_names

DONE = "_done/stage.json"
R = TypeVar("R", bound=Record)
D = TypeVar("D", bound=Record)
M = TypeVar("M", bound=Record)
ShardMetadata = TypeVar("ShardMetadata", bound=Record, default=Record, covariant=True)
StageMetadata = TypeVar("StageMetadata", bound=Record, default=Record, covariant=True)


class RowCounts(Record):
    """Rows in = kept + rejected (by reason)."""

    rows: int = Field(0, ge=0)
    kept: int = Field(0, ge=0)
    written: int = Field(0, ge=0, description="records written; one row may give several")
    rejected: dict[str, int] = Field(default_factory=dict)

    def __add__(self, other: RowCounts) -> RowCounts:
        rejected = Counter(self.rejected) + Counter(other.rejected)
        return RowCounts(
            rows=self.rows + other.rows, kept=self.kept + other.kept, written=self.written + other.written,
            rejected=dict(sorted(rejected.items())),
        )  # fmt: skip

    @property
    def rejected_rows(self) -> int:
        return sum(self.rejected.values())

    @property
    def rejected_share(self) -> float:
        return self.rejected_rows / self.rows if self.rows else 0.0


class File(Record):
    name: RelativeName = Field(description="below the stage's prefix")
    sha256: str
    size: int


class ShardMarker(Record, Generic[ShardMetadata]):
    """``_done/00000.json``: this shard is whole, and these are its files."""

    version: Literal[2] = 2
    shard: int = Field(ge=0)
    files: tuple[File, ...]
    rejections: File
    row_counts: RowCounts
    metadata: ShardMetadata = Field(description="what else the stage wants summed or shown")


class StageMarker(Record, Generic[ShardMetadata, StageMetadata]):
    """``_done/stage.json``: the stage is whole; the next one starts from here."""

    version: Literal[2] = 2
    stage: str
    code: str
    settings: dict[str, JsonValue] = Field(description="those that decide what the stage makes")
    inputs: dict[str, str] = Field(description="URI of each input's marker or file → sha256")
    shards: tuple[ShardMarker[ShardMetadata], ...] = ()
    row_counts: RowCounts = RowCounts()
    metadata: StageMetadata = Field(description="what the next stage must know of the whole")


@dataclass(frozen=True)
class StageKind(Generic[ShardMetadata, StageMetadata]):
    """A stage by what it says in its markers."""

    name: str
    of_shard: type[ShardMetadata]
    of_stage: type[StageMetadata]

    @property
    def shard_marker(self) -> type[ShardMarker[ShardMetadata]]:
        return ShardMarker[self.of_shard]  # type: ignore[name-defined]

    @property
    def stage_marker(self) -> type[StageMarker[ShardMetadata, StageMetadata]]:
        return StageMarker[self.of_shard, self.of_stage]  # type: ignore[name-defined]


CONVERT = StageKind("convert", of.ConvertShardMetadata, of.ConvertMetadata)
DISTILL = StageKind("distill", of.DistillShardMetadata, of.DistillMetadata)
TOKENIZE = StageKind("tokenize", of.TokenizeShardMetadata, of.TokenizeMetadata)
TRAIN = StageKind("train", of.NoMetadata, of.TrainMetadata)
EVALUATE = StageKind("evaluate", of.EvaluateShardMetadata, of.EvaluateMetadata)
STAGES: tuple[StageKind, ...] = (CONVERT, DISTILL, TOKENIZE, TRAIN, EVALUATE)
OF_SAMPLES: tuple[StageKind, ...] = (CONVERT, DISTILL)
"""Stages whose shards hold Samples."""


class Sink(Protocol):
    """Writes the kept records of a shard into one local file."""

    suffix: str

    def __init__(self, path: Path) -> None: ...
    def write(self, record: Any) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """Records as gzipped lines of JSON; no time stamp in the header, so the same rows give the same bytes."""

    suffix = ".jsonl.gz"

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        packed: Any = gzip.GzipFile(filename="", mode="wb", fileobj=self._file, mtime=0, compresslevel=6)
        self._lines = io.BufferedWriter(packed, 1 << 17)  # gzip is slow when it is given short lines

    def write(self, record: Record) -> None:
        self._lines.write(record.line())

    def close(self) -> None:
        self._lines.close()
        self._file.close()


class ShardWriter:
    """One shard under way: rows come in, records and rejections go out, all of it local until `Folder.make_shard`
    uploads it."""

    def __init__(self, index: int, stage: str, scratch: Path, sink: Callable[[Path], Sink]) -> None:
        self.index, self.stage = index, stage
        self.path, self.rejections_path = scratch / "records", scratch / "rejections"
        self.sink = sink(self.path)
        self._rows = self._kept = self._written = 0
        self._reasons: Counter[str] = Counter()
        self._rejections: IO[bytes] = self.rejections_path.open("wb")

    def keep(self, *records: Any) -> None:
        """One row came in and gave these records."""
        self._rows += 1
        self._kept += 1
        for record in records:
            self._written += 1
            self.sink.write(record)

    def reject(self, rejection: Rejection) -> None:
        """One row came in and was refused."""
        self._rows += 1
        self._reasons[rejection.reason.value] += 1
        self._rejections.write(rejection.line())

    def leave_out(self, part: Rejection) -> None:
        """Something of a row that is kept all the same was refused; the row is counted by `keep`."""
        self._rejections.write(part.line())

    @property
    def row_counts(self) -> RowCounts:
        return RowCounts(
            rows=self._rows, kept=self._kept, written=self._written, rejected=dict(sorted(self._reasons.items()))
        )

    def close(self) -> None:
        self.sink.close()
        self._rejections.close()


class _Begun(BaseModel):
    """``settings.json``, as far as it is compared."""

    settings: dict[str, JsonValue]
    inputs: dict[str, str]
    code: str


class _OtherSettings(SettingsError):
    """A run with other settings has this prefix."""


class _InputChanged(InputError):
    """An input has another digest than `sha256`, which the run has recorded."""

    def __init__(self, uri: str, sha256: str, message: str) -> None:
        super().__init__(message)
        self.uri, self.sha256 = uri, sha256


class Folder(Generic[ShardMetadata, StageMetadata]):
    """``<run>/<stage>``: where one stage of one run writes."""

    def __init__(self, store: Store, run_uri: str, kind: StageKind[ShardMetadata, StageMetadata]) -> None:
        self.store, self.kind, self.stage = store, kind, kind.name
        self.uri = join(run_uri, self.stage)

    # --- the whole -----------------------------------------------------------------------------

    def begin(self, settings: Settings, inputs: Mapping[str, str]) -> None:
        """Write ``settings.json``, or compare these settings and inputs (URI → sha256) with the file that exists.

        Raises:
            SettingsError: a run with other settings that shape the result uses this prefix; names those that differ.
            InputError: an input has changed since this run began.
        """
        uri, mine = join(self.uri, "settings.json"), _started_with(settings, inputs)
        if not self.store.write_once(uri, _json(mine | {"all_settings": settings.model_dump(mode="json")})):
            self._confirm(uri, mine, recorded=True)

    def has_begun(self) -> bool:
        """Return True if ``settings.json`` exists: the settings of this run are fixed."""
        return self.store.stat(join(self.uri, "settings.json")) is not None

    def check_settings(self, settings: Settings, inputs: Mapping[str, str]) -> None:
        """Compare these settings and inputs with ``settings.json``, if there is one. Raises as `begin` does."""
        with suppress(NotFound):
            self._confirm(join(self.uri, "settings.json"), _started_with(settings, inputs), recorded=False)

    def _confirm(self, uri: str, mine: Mapping[str, Any], *, recorded: bool) -> None:
        try:
            confirmed(uri, lambda: self._compare(uri, mine), recorded=recorded, faults=(InputError, _OtherSettings))
        except _InputChanged as error:
            if self._is_as_recorded(error.uri, error.sha256):
                raise TemporaryError(
                    f"a read of {error.uri} was bad, a second one is good; run the same command again"
                ) from None
            raise

    def _compare(self, uri: str, mine: Mapping[str, Any]) -> None:
        """Compare the stored ``settings.json`` with this run's. Raises as `begin` does."""
        try:
            there = _Begun.model_validate_json(self.store.read(uri))
        except ValidationError as error:
            raise InputError(f"{uri} is damaged ({first_fault(error)}). {_make_again(self.uri)}") from None
        differing = [
            f"{name} was {there.settings.get(name)!r} and is now {value!r}"
            for name, value in mine["settings"].items()
            if there.settings.get(name) != value
        ]
        if differing:
            raise _OtherSettings(
                f"{self.uri} belongs to a run with other settings: {'; '.join(differing)}. "
                "Use the same settings to go on with it, or another run name to start afresh"
            )
        for name, digest in mine["inputs"].items():
            if (recorded := there.inputs.get(name, digest)) != digest:
                message = f"{name} has changed since {self.uri} was begun; use another run name"
                raise _InputChanged(name, recorded, message)
        if there.code != __version__:
            logging.get().warning("begun by another code version", was=there.code, now=__version__)

    def _is_as_recorded(self, uri: str, sha256: str) -> bool:
        """Return True if an input is a file that has this digest when it is read now."""
        with suppress(VcotError, OSError):
            return self.store.digest(uri) == sha256
        return False

    def whole(self, settings: Settings, inputs: Mapping[str, str]) -> StageMarker[ShardMetadata, StageMetadata] | None:
        """The marker of the whole stage, and a line that says so; None where something is left to do.

        To be asked before a library or a model is loaded. Raises as `begin` does, if the stage is whole, and NotWhole
        where it is not and this process was only asked to look.
        """
        if (marker := self.marker()) is None:
            if settings.part == "look":
                raise NotWhole(f"{self.uri} is not whole yet")
            return None
        self.begin(settings, inputs)
        counts = {"rows": marker.row_counts.rows, "kept": marker.row_counts.kept} if marker.row_counts.rows else {}
        logging.get().info("nothing left to do: this stage is whole", uri=self.uri, **counts)
        if marker.shards:
            _sum_up(len(marker.shards), marker.row_counts)
        return marker

    def marker(self) -> StageMarker[ShardMetadata, StageMetadata] | None:
        """The marker of the whole stage, if it is whole."""
        return self._marker(DONE, self.kind.stage_marker)

    def _marker(self, name: str, kind: type[R], *, recorded: bool = False) -> R | None:
        """Read the marker of this name.

        Args:
            name: Name below this folder.
            kind: Record of the marker.
            recorded: The marker was written, so that a 404 may be stale.
        """
        uri = join(self.uri, name)
        try:
            return confirmed(uri, lambda: _parsed(kind, self.store.read(uri), uri, self.uri), recorded=recorded)
        except NotFound:
            return None

    def finish(self, marker: StageMarker[ShardMetadata, StageMetadata]) -> None:
        """Says that the stage is whole. The first marker stays."""
        if type(marker) is not self.kind.stage_marker:  # pydantic would write its metadata as an empty record
            raise TypeError(f"a marker of {self.stage} is made by its StageKind; got {type(marker).__name__}")
        self.store.write_once(join(self.uri, DONE), _json(marker.model_dump(mode="json")))

    def write_report(self, report: Mapping[str, Any], html: str | None = None) -> None:
        self.store.write(join(self.uri, "report.json"), _json(report))
        if html is not None:
            self.store.write(join(self.uri, "report.html"), redacted(html).encode())

    # --- one shard -------------------------------------------------------------------------------

    def shard_marker(self, index: int, *, recorded: bool = False) -> ShardMarker[ShardMetadata] | None:
        return self._marker(f"_done/{index:05d}.json", self.kind.shard_marker, recorded=recorded)

    def shard_markers(self, shards: int = 0) -> tuple[ShardMarker[ShardMetadata], ...]:
        """The markers of shards 0, 1, … as far as they are whole; the stage itself may not be, yet or for a gate.

        shards: how many there should be.
        """
        markers: list[ShardMarker[ShardMetadata]] = []
        while (marker := self.shard_marker(len(markers), recorded=len(markers) < shards)) is not None:
            markers.append(marker)
        return tuple(markers)

    def make_shard(
        self, index: int, work: Callable[[ShardWriter], ShardMetadata], sink: Callable[[Path], Sink]
    ) -> ShardMarker[ShardMetadata]:
        """Makes one shard, unless its marker is there; `work` feeds the writer and gives what the marker says of it."""
        if (marker := self.shard_marker(index)) is not None:
            return marker
        with tempfile.TemporaryDirectory(prefix=f"{self.stage}-{index:05d}-") as scratch:
            writer = ShardWriter(index, self.stage, Path(scratch), sink)
            metadata = work(writer)
            writer.close()
            marker = self.kind.shard_marker(
                shard=index,
                files=(self._put(writer.path, f"shards/{index:05d}", writer.sink.suffix),),
                rejections=self._put(writer.rejections_path, f"rejections/{index:05d}", ".jsonl"),
                row_counts=writer.row_counts,
                metadata=metadata,
            )
        uri = join(self.uri, f"_done/{index:05d}.json")
        if not self.store.write_once(uri, _json(marker.model_dump(mode="json"))):
            logging.get().warning("another process finished this shard first; its files count", shard=index)
            return self.shard_marker(index, recorded=True) or marker
        return marker

    def _put(self, path: Path, stem: str, suffix: str) -> File:
        digest = file_digest(path)
        name = f"{stem}-{digest[:12]}{suffix}"
        self.store.upload(path, join(self.uri, name))
        return File(name=name, sha256=digest, size=path.stat().st_size)


def run_shards(
    folder: Folder[D, M],
    settings: Settings,
    *,
    inputs: Mapping[str, str],
    shards: int,
    work: Callable[[ShardWriter], D],
    sink: Callable[[Path], Sink] = JsonLines,
    max_rejected_share: float,
    report: Callable[[tuple[ShardMarker[D], ...], RowCounts], tuple[dict[str, Any], str | None]] | None = None,
    metadata: M,
    bar: bool = True,
) -> StageMarker[D, M] | None:
    """Prepare, shards and finish of a stage that is made of shards; which of them, `settings.part` says.

    Args:
        shards: how many there are; `work` is called with a writer for each that has no marker yet.
        max_rejected_share: of all rows, judged over all shards in the finish.
        report: makes what ``report.json`` holds beside the sums, and the page (or None).
        metadata: what the next stage must know of the whole; stands in the stage's marker.
        bar: of shards; not where `work` itself tells how far it is.

    Returns:
        The stage's marker, or None where this process did not do the finish.

    Raises:
        InputError: more rows were refused than allowed, or a shard is missing in the finish.
    """
    if settings.shard is not None and settings.shard >= shards:
        raise SettingsError(f"--shard={settings.shard}: there are {shards} shards, 0 to {shards - 1}")
    if (marker := folder.whole(settings, inputs)) is not None:
        return marker
    folder.begin(settings, inputs)
    _sum_up(shards)
    if settings.part in ("all", "shards"):
        wanted = range(shards) if settings.shard is None else [settings.shard]
        row_counts = RowCounts()
        with Bar(folder.stage, len(wanted), "shards", shown=bar) as progress:
            for index in wanted:
                stop.raise_if_requested()
                logging.bind(shard=index)
                row_counts += folder.make_shard(index, work, sink).row_counts
                _sum_up(shards, row_counts)
                progress.advance()
        logging.bind(shard=None)
    if settings.part not in ("all", "finish"):
        return None
    markers = folder.shard_markers(shards)[:shards]
    if len(markers) < shards:
        raise InputError(f"{folder.uri}: shard {len(markers)} of {shards} is not done; make it before --part finish")
    row_counts = sum((m.row_counts for m in markers), RowCounts())
    _sum_up(shards, row_counts)
    extra, page = report(markers, row_counts) if report is not None else ({}, None)
    folder.write_report({"stage": folder.stage, "row_counts": row_counts.model_dump(), "shards": shards} | extra, page)
    logging.get().info("rows", read=row_counts.rows, kept=row_counts.kept, **row_counts.rejected)
    if row_counts.rows == 0:
        raise InputError(f"{folder.uri}: not one row came in")
    if row_counts.rejected_share > max_rejected_share:
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(row_counts.rejected).most_common())
        raise InputError(
            f"{row_counts.rejected_rows} of {row_counts.rows} rows were refused ({row_counts.rejected_share:.1%}), "
            f"more than --max-rejected-share {max_rejected_share:g} allows: {reasons}. "
            f"Each one is listed in {join(folder.uri, 'rejections/')}"
        )
    if row_counts.kept == 0:
        raise InputError(f"{folder.uri}: not one row was kept")
    marker = folder.kind.stage_marker(
        stage=folder.stage, code=__version__, settings=settings.fingerprint(), inputs=dict(inputs), shards=markers,
        row_counts=row_counts, metadata=metadata,
    )  # fmt: skip
    folder.finish(marker)
    return marker


def _sum_up(shards: int, row_counts: RowCounts | None = None) -> None:
    """For the termination message: how many shards there are, and what this process has made or summed up."""
    summary(shards=shards)
    if row_counts is not None:
        summary(rows=row_counts.rows, kept=row_counts.kept, rejected=row_counts.rejected_rows)


# --- reading what another stage made ---------------------------------------------------------------


@overload
def read_marker(store: Store, stage_uri: str) -> tuple[StageMarker, dict[str, str]]: ...
@overload
def read_marker(
    store: Store, stage_uri: str, kind: StageKind[D, M], /, *more: StageKind, recorded: bool = True
) -> tuple[StageMarker[D, M], dict[str, str]]: ...
def read_marker(store: Store, stage_uri: str, *kinds: Any, recorded: bool = True) -> tuple[Any, dict[str, str]]:
    """The marker of a finished stage, and its URI → digest for the reader's own `inputs`.

    Args:
        kinds: the stages that will do; default: all.
        recorded: the stage should be finished; False: a missing marker is reported without a further read.

    Raises:
        InputError: the stage is not whole, or another, or its marker cannot be read.
    """
    uri = join(stage_uri, DONE)
    try:
        return confirmed(uri, lambda: _read_marker(store, stage_uri, kinds or STAGES), recorded=recorded)
    except NotFound:
        raise InputError(f"{stage_uri} is not a finished stage: there is no {uri}; run that stage first") from None


def _read_marker(store: Store, stage_uri: str, kinds: Sequence[Any]) -> tuple[Any, dict[str, str]]:
    uri = join(stage_uri, DONE)
    data = store.read(uri)
    try:
        stage = json.loads(data)["stage"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{uri} is damaged: it names no stage. {_make_again(stage_uri)}") from None
    for kind in kinds:
        if kind.name == stage:
            return _parsed(kind.stage_marker, data, uri, stage_uri), {uri: hashlib.sha256(data).hexdigest()}
    wanted = " or ".join(kind.name for kind in kinds)
    raise InputError(f"{uri} is the marker of a {stage} stage; give the URI of a finished {wanted} stage in its place")


def _parsed(kind: type[R], data: bytes, uri: str, stage_uri: str) -> R:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        refuse_names(error, uri)
        is_other_version = any(fault["loc"] == ("version",) for fault in error.errors())
        fault = "was written by another version of vcot" if is_other_version else f"is damaged ({first_fault(error)})"
    raise InputError(f"{uri} {fault}. {_make_again(stage_uri)}")


def fetch_file(store: Store, stage_uri: str, file: File, folder: Path) -> Path:
    """A shard's file, downloaded and held against its digest. Raises InputError: the bytes are not those that the
    marker names (truncated, or changed)."""
    path, uri = folder / file.name.replace("/", "-"), join(stage_uri, file.name)

    def attempt() -> Path:
        store.download(uri, path)
        if (digest := file_digest(path)) == file.sha256:
            return path
        raise InputError(
            f"{uri} is not what its marker says: {path.stat().st_size} bytes with digest {digest[:12]}…, expected "
            f"{file.size} bytes with {file.sha256[:12]}…; it is truncated or was changed. {_make_again(stage_uri)}"
        )

    try:
        return confirmed(uri, attempt)
    except NotFound:
        raise InputError(f"{uri} is named by its stage's marker and is gone. {_make_again(stage_uri)}") from None


def _started_with(settings: Settings, inputs: Mapping[str, str]) -> dict[str, Any]:
    return {"settings": settings.fingerprint(), "inputs": dict(inputs), "code": __version__}


def _make_again(stage_uri: str) -> str:
    return f"Delete {stage_uri} and run that stage again, or start under another run name"


def read_shard(store: Store, stage_uri: str, shard: ShardMarker) -> Iterator[Sample]:
    """The Samples of one shard, in order."""
    for file in shard.files:
        yield from read_records(store, stage_uri, file, Sample)


def read_records(store: Store, stage_uri: str, file: File, kind: type[R]) -> Iterator[R]:
    """The records of a shard's file, gzipped or not, in order. Raises InputError: the file is not what its marker says,
    or holds something else."""
    with tempfile.TemporaryDirectory(prefix="read-") as scratch:
        path = fetch_file(store, stage_uri, file, Path(scratch))
        try:
            with gzip.open(path, "rb") if file.name.endswith(".gz") else path.open("rb") as lines:
                for line in io.BufferedReader(lines):  # gzip's own lines are made in Python
                    yield kind.model_validate_json(line)
        except (ValidationError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            name = join(stage_uri, file.name)
            raise InputError(f"{name}: not a shard of {kind.__name__}s: {error}") from error


def read_samples(store: Store, stage_uri: str, marker: StageMarker) -> Iterator[Sample]:
    """All Samples of a stage, shard after shard."""
    for shard in marker.shards:
        yield from read_shard(store, stage_uri, shard)


def _json(value: Any) -> bytes:
    return redacted(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)).encode() + b"\n"
