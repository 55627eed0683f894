"""Every member of an archive, in its order, found by several ways at once.

Headers can only be found one after the other, but several ways can be gone at once: one begins at every SPAN bytes,
with the first thing that has the checksum of a header. What it finds counts when the way before it arrives at one of
its headers, since from there on both see the same; otherwise that span is gone through again, from where the way
before it ended. A process that is killed leaves the spans that it finished to the next one.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass

from vcot.errors import InputError
from vcot.stage import Bar
from vcot.storage.chunks import Chunks
from vcot.storage.headers import Member, Walk
from vcot.storage.local import Changed, NotFound
from vcot.storage.store import join, name

SPAN = 256 << 20
AT_ONCE = 8


def members(chunks: Chunks, spans_uri: str, span: int, at_once: int) -> Iterator[Member]:
    """All of them, in the order of the archive."""
    position, closed = 0, False
    for until, found in _spans(chunks, spans_uri, span, at_once):
        if position >= until:
            continue  # a member reaches over all of this span
        passed = None if found is None else found.after(position)
        if found is None or passed is None:
            found = _gone_through(chunks, position, until)
            passed = found.members
        yield from passed
        position, closed = found.end, found.closed
    if not closed:
        raise InputError(
            f"{chunks.uri} does not end with the zeros that close a tar file: {chunks.entries[-1].uri} is cut off, or "
            "a chunk after it is missing. (If it is whole all the same, append 1,024 bytes of zeros.)"
        )


@dataclass(frozen=True)
class _Found:
    """What one way found: true from `begin` and from the start of each of its members on, up to `end`."""

    begin: int
    end: int
    closed: bool
    members: Sequence[Member]

    def after(self, position: int) -> Sequence[Member] | None:
        """Its members from a position on, where the way leads through it."""
        if position == self.begin:
            return self.members
        first = next((n for n, member in enumerate(self.members) if member.start == position), None)
        return None if first is None else self.members[first:]


def _spans(chunks: Chunks, spans_uri: str, span: int, at_once: int) -> Iterator[tuple[int, _Found | None]]:
    """Every span in order, with what was found in it; `at_once` are looked at together, and few wait."""
    starts = range(0, chunks.size, span)
    there = {name(entry.uri) for entry in chunks.store.list(spans_uri)}

    def look(start: int) -> _Found | None:
        return _span(chunks, spans_uri, start, min(start + span, chunks.size), there)

    waiting: list[tuple[int, Future[_Found | None]]] = []
    with Bar("indexing", len(starts), f"spans of {span >> 20} MiB") as bar, ThreadPoolExecutor(at_once) as pool:
        try:
            for start in starts:
                waiting.append((min(start + span, chunks.size), pool.submit(look, start)))
                while len(waiting) > 2 * at_once or (waiting and start == starts[-1]):
                    until, future = waiting.pop(0)
                    yield until, future.result()
                    bar.advance()
        finally:
            pool.shutdown(cancel_futures=True)


def _span(chunks: Chunks, spans_uri: str, start: int, until: int, there: set[str]) -> _Found | None:
    """What is known of a span, or is found out and kept; None: no way through it was found."""
    kept = f"{start:015d}-{until:015d}.json.gz"
    if kept in there:
        return _from_json(chunks.store.read(join(spans_uri, kept)))
    try:
        found = _begun_anywhere(chunks, start, until)
    except (Changed, NotFound):
        raise
    except InputError:
        return None  # that was no header; or the archive is damaged, which is said by who comes from its beginning
    if found is not None:
        chunks.store.write_once(join(spans_uri, kept), _as_json(found))
    return found


def _begun_anywhere(chunks: Chunks, start: int, until: int) -> _Found | None:
    walk = Walk(chunks, start)
    if start and not walk.find(until):
        return None
    return _gone_through(chunks, walk.position, until)


def _gone_through(chunks: Chunks, begin: int, until: int) -> _Found:
    walk = Walk(chunks, begin)
    members = tuple(walk.members(until))
    return _Found(begin, walk.position, walk.closed, members)


def _as_json(found: _Found) -> bytes:
    members = [[text(v) if isinstance(v, bytes) else v for v in astuple(member)] for member in found.members]
    value = {"begin": found.begin, "end": found.end, "closed": found.closed, "members": members}
    return gzip.compress(json.dumps(value).encode(), mtime=0)


def _from_json(data: bytes) -> _Found:
    value = json.loads(gzip.decompress(data))
    members = tuple(
        Member(start, _bytes(name), kind, offset, size, _bytes(target))
        for start, name, kind, offset, size, target in value["members"]
    )
    return _Found(value["begin"], value["end"], value["closed"], members)


def text(name: bytes) -> str:
    """A name as the index has it, as text; bytes that are no UTF-8 survive the way there and back."""
    return name.decode("utf-8", "surrogateescape")


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")
