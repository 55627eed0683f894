"""How long an archive of images takes to be indexed over S3, and then its members to be fetched in any order.

    python -m benchmarks.archive --gib 2

A tar of members between 20 and 400 kB in byte chunks of 300 MiB, on a MinIO of its own on this computer, which works on
the same cores; a network adds its own time to every request. Beside each figure stands how many requests it took. Takes
room for the archive below TMPDIR, and gives it back however it ends.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import resource
import signal
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from tools.s3server import BUCKET, running_s3
from vcot.storage import Entry, Store
from vcot.storage.archive import Archive, Chunks, find, indexed, opened

MIB = 1 << 20
CHUNK = 300 * MIB
SMALLEST, LARGEST = 20_000, 400_000
T = TypeVar("T")
PLACE = f"s3://{BUCKET}/archive"


class Counting(Store):
    """Counts requests for ranges."""

    def __init__(self) -> None:
        self.requests, self.bytes, self._lock = 0, 0, threading.Lock()

    def read_range(self, uri: str, start: int, length: int, of: Entry | None = None) -> bytes:
        data = super().read_range(uri, start, length, of)
        with self._lock:
            self.requests, self.bytes = self.requests + 1, self.bytes + len(data)
        return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the archive")
    parser.add_argument("--members", type=int, default=1000, help="how many are fetched, at random")
    parser.add_argument("--readers", type=int, default=8, help="at once")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the scratch folder goes then, too
    with tempfile.TemporaryDirectory(prefix="archive-") as scratch:
        measure(Path(scratch), options.gib, options.members, options.readers)


def measure(scratch: Path, gib: float, count: int, readers: int) -> None:
    with running_s3(scratch / "s3", scratch / "log") as server:
        os.environ.update(server.env)
        names = make(Store(), int(gib * 1024) * MIB)
        store = Counting()
        chunks = find(store, PLACE)
        assert chunks is not None
        spent, archive = timed(lambda: opened(chunks, indexed(chunks, f"s3://{BUCKET}/index", scratch), scratch))
        size = f"{chunks.size / MIB:,.0f} MiB, {len(names):,} members in {len(chunks.entries)} chunks"
        tell(f"indexed {size}", spent, store)
        print(f"  {len(names) / spent.wall:,.0f} members/s; peak memory {peak():,.0f} MiB")
        whole(chunks)
        wanted = random.Random(0).sample(names, min(count, len(names)))
        for at_once in (1, readers):
            store.requests = store.bytes = 0
            spent, _ = timed(partial(fetch, archive, wanted, at_once))
            tell(f"fetched {len(wanted):,} random members, {at_once} at once", spent, store)
            print(f"  {len(wanted) / spent.wall:,.0f} members/s, {store.bytes / MIB / spent.wall:,.0f} MiB/s")
        spent, _ = timed(lambda: [archive.uri(name) for name in wanted])
        print(f"looked up without reading: {1e6 * spent.cpu / len(wanted):,.0f} µs of a core each")


def make(store: Store, size: int) -> list[str]:
    """An archive of about this size; the names of its members."""
    dice = random.Random(1)
    pool = os.urandom(4 * MIB)
    names: list[str] = []
    with _Cut(store) as cut, tarfile.open(fileobj=cut, mode="w|", bufsize=MIB) as archive:
        while archive.offset < size:
            info = tarfile.TarInfo(f"cot_image_data/gqa/{len(names):07d}.jpg")
            info.size = dice.randint(SMALLEST, LARGEST)
            start = dice.randint(0, len(pool) - info.size)
            archive.addfile(info, io.BytesIO(pool[start : start + info.size]))
            names.append(info.name)
    return names


class _Cut(io.RawIOBase):
    """What is written goes into numbered chunks."""

    def __init__(self, store: Store) -> None:
        self._store, self._number, self._room = store, 0, 0
        self._chunk = ExitStack()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            if not self._room:
                self._chunk.close()
                name = f"{PLACE}/cot_images_{self._number:02d}"
                self._target = self._chunk.enter_context(self._store.open_write(name))
                self._number, self._room = self._number + 1, CHUNK
            self._target.write(view[: self._room])
            self._room, view = max(0, self._room - len(view)), view[self._room :]
        return len(data)

    def close(self) -> None:
        self._chunk.close()
        super().close()


def whole(chunks: Chunks) -> None:
    """What has to be sent where nothing can be passed over: all of it, once, through one connection."""

    def read() -> int:
        size = 0
        for entry in chunks.entries:
            with Store().open_read(entry.uri) as source:
                while block := source.read(MIB):
                    size += len(block)
        return size

    spent, size = timed(read)
    print(f"for comparison, all bytes once through one connection: {spent}, {size / MIB / spent.wall:,.0f} MiB/s")


def fetch(archive: Archive, names: list[str], at_once: int) -> None:
    with ThreadPoolExecutor(at_once) as pool:
        for data in pool.map(lambda name: archive.read(archive.uri(name), 1 << 30), names):
            assert len(data) >= SMALLEST


class Spent(NamedTuple):
    """Seconds on the clock, and of a core by this process alone, without the server."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.1f} s ({self.cpu:.1f} s of a core)"


def timed(work: Callable[[], T]) -> tuple[Spent, T]:
    begun, worked = time.monotonic(), time.process_time()
    result = work()
    return Spent(time.monotonic() - begun, time.process_time() - worked), result


def tell(what: str, spent: Spent, store: Counting) -> None:
    print(f"{what}: {spent}, {store.requests:,} requests for {store.bytes / MIB:,.0f} MiB")


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
