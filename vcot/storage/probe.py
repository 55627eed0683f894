"""Does this storage keep what vcot builds on? Each guarantee is tried, with the verbs that the stages use.

A server that answers every question and yet lets two writers of a write-once object both win, or stores the framing of
a chunked upload inside the object, spoils runs weeks later and without a word. It is asked before.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from secrets import token_bytes, token_hex
from threading import Barrier, BrokenBarrierError

from vcot.errors import InputError, SettingsError, VcotError
from vcot.storage.store import Store, join

MIB = 1 << 20
LARGE = 16 * MIB + 5
"""Bytes: one part of a multipart upload and a little more."""
WRITERS = 16
ROUNDS = 10
"""Races of the writers. One race may miss a store that checks first and writes afterward."""
RACE_TIME = 60.0
"""Seconds that a writer waits for the others."""
RACE_BYTES = 1 << 16
"""Size of a raced object. Some stores check before they receive the bytes, so the size widens the gap."""
OBJECTS = 12


@dataclass(frozen=True)
class Guarantee:
    """The result of one check.

    Attributes:
        fault: what was observed; empty if the guarantee holds.
        is_refused: the storage refused a request, so nothing is known about its data.
    """

    name: str
    meaning: str
    fault: str = ""
    is_refused: bool = False

    @property
    def holds(self) -> bool:
        return not self.fault


def probe(store: Store, uri: str) -> Iterator[Guarantee]:
    """Check every guarantee below ``<uri>/<unused name>`` and clean up as far as the keys allow.

    Raises:
        SettingsError: the storage cannot be used: wrong endpoint, bucket, keys or addressing style.
        TemporaryError: the storage cannot be reached or is too busy. This says nothing about its guarantees.
    """
    place = join(uri, f"probe-{token_hex(8)}")
    try:
        _check_access(store, join(place, "nothing"))
        for name, (meaning, check) in CHECKS.items():
            try:
                yield Guarantee(name, meaning, next(check(store, join(place, name)), ""))
            except (SettingsError, InputError) as error:
                yield Guarantee(name, meaning, str(error), is_refused=True)
    finally:
        with suppress(VcotError):  # the keys of stages need not allow it: what cannot be deleted stays, some 20 MB
            for entry in list(store.list(place)):
                store.delete(entry.uri)
            if not place.startswith("s3://"):
                shutil.rmtree(place.removeprefix("file://"), ignore_errors=True)


def _check_access(store: Store, uri: str) -> None:
    """Raise SettingsError if no object can be addressed, and name the addressing style if that is the reason."""
    try:
        store.stat(uri)
    except SettingsError as error:
        if store.needs_virtual_hosts(uri):
            raise SettingsError(
                f"{uri}: the storage answers only at bucket.host (virtual-host addressing). Put 'addressing_style = "
                "virtual' below 's3 =' into the file that AWS_CONFIG_FILE names (docs/storage.md)"
            ) from error
        raise


# --- the guarantees: what was seen where one does not hold; no more is tried then -------------------------------


def _keeps_bytes(store: Store, place: str) -> Iterator[str]:
    # What a client's chunk framing looks like: a server that takes it for its own would give something else back.
    for name, data in (
        ("framed", b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"),
        ("random", token_bytes(MIB)),
    ):
        store.write(join(place, name), data)
        got = store.read(join(place, name))
        if got != data:
            yield f"{len(data)} bytes were written and {len(got)} other bytes came back"


def _replaces(store: Store, place: str) -> Iterator[str]:
    for number in range(5):
        store.write(join(place, "object"), b"%d" % number)
        if (got := store.read(join(place, "object"))) != b"%d" % number:
            yield f"version {number} was written and {got.decode(errors='replace')} was read: an older one"


def _writes_once(store: Store, place: str) -> Iterator[str]:
    uri = join(place, "object")
    if not store.write_once(uri, b"first"):
        yield "the first writer was refused although nothing was there"
    if store.write_once(uri, b"second"):
        yield "a second writer replaced the first one's object: If-None-Match is ignored (HTTP 412 is expected)"
    if (got := store.read(uri)) != b"first":
        yield f"the second writer was refused, and the object is now {got.decode(errors='replace')!r}"


def _one_winner(store: Store, place: str) -> Iterator[str]:
    start = Barrier(WRITERS, timeout=RACE_TIME)

    def write(writer: int, uri: str) -> bool:
        data = b"%d " % writer + bytes(RACE_BYTES)
        try:
            start.wait()
            store.stat(uri)  # opens this thread's connection; handshakes would otherwise spread the writers out
            start.wait()
        except Exception:
            start.abort()  # the other writers would wait for this one
            raise
        return store.write_once(uri, data)

    with ThreadPoolExecutor(WRITERS) as pool:
        for number in range(ROUNDS):
            uri = join(place, f"object-{number}")
            race = [pool.submit(write, writer, uri) for writer in range(WRITERS)]
            errors = [error for writer in race if (error := writer.exception()) is not None]
            if errors:
                raise next((error for error in errors if not isinstance(error, BrokenBarrierError)), errors[0])
            won = [writer.result() for writer in race]
            winners = [writer for writer, first in enumerate(won) if first]
            if len(winners) != 1:
                yield f"of {WRITERS} writers at once {len(winners)} got success in race {number + 1}; one must"
            if (got := store.read(uri).split(b" ")[0]) != b"%d" % winners[0]:
                yield f"writer {winners[0]} got success, and the object is from writer {got.decode(errors='replace')}"


def _lists(store: Store, place: str) -> Iterator[str]:
    names = [f"a/{number:02d}" for number in range(OBJECTS)] + ["a b/ü#1", "ab/1"]
    for name in names:
        store.write(join(place, name), b"x")
        listed = [entry.uri for entry in store.list(place)]
        if join(place, name) not in listed:
            yield f"{name} was written and is not in the list that was asked for next"
    found = [entry.uri for entry in store.list(join(place, "a"))]
    if found != [join(place, name) for name in names[:OBJECTS]]:
        yield f"below a/ there are {OBJECTS} objects, and the list has {len(found)}, or has them in no order"


def _reads_ranges(store: Store, place: str) -> Iterator[str]:
    uri, data = join(place, "object"), token_bytes(MIB)
    store.write(uri, data)
    for start, length in ((0, 1), (1000, 5000), (MIB - 3, 3), (MIB - 3, 100), (MIB + 7, 5)):
        if store.read_range(uri, start, length) != data[start : start + length]:
            yield f"{length} bytes from {start} are not those that were written there"


def _takes_parts(store: Store, place: str) -> Iterator[str]:
    uri, data = join(place, "object"), token_bytes(LARGE)
    with store.open_write(uri) as target:
        target.write(data)
    if (found := store.stat(uri)) is None or found.size != LARGE:
        yield f"{LARGE} bytes were written in parts, and the object has {0 if found is None else found.size}"
    if store.digest(uri) != hashlib.sha256(data).hexdigest():
        yield "what was written in parts came back as other bytes"


def _hides_halves(store: Store, place: str) -> Iterator[str]:
    uri = join(place, "object")
    with suppress(InterruptedError), store.open_write(uri) as target:
        target.write(token_bytes(LARGE))
        raise InterruptedError
    if store.stat(uri) is not None or any(entry.uri == uri for entry in store.list(place)):
        yield "an upload that was given up half-way is there to be read"


CHECKS: dict[str, tuple[str, Callable[[Store, str], Iterator[str]]]] = {
    "bytes": ("what is written is what is read", _keeps_bytes),
    "newest": ("a read after a write sees it", _replaces),
    "write-once": ("an object is not replaced where that was not wanted (If-None-Match: *)", _writes_once),
    "one-winner": ("of many writers at once, one is told that it is the first", _one_winner),
    "list": ("a list after a write has it, in order", _lists),
    "range": ("a part of an object can be read", _reads_ranges),
    "multipart": ("large objects can be written in parts", _takes_parts),
    "halves": ("what was not finished is not seen", _hides_halves),
}
