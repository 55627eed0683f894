"""Shards of a stage on this disk, as many as fit: they arrive when they are needed, and go when they are not.

    cache = ShardCache(store, stage_uri, files, folder, limit=20 << 30)
    with Fetching(cache, needs): …      in one process of a pod; another process beside it downloads
    cache.open(3, opener)               in any process: waits until the file is there

One process of a pod alone downloads and deletes, so nothing is locked; the others ask it by a file
(`00003-<process>.wanted`), for as long as they wait. It knows the whole plan: first comes what somebody waits for, then
what will be needed soonest, and what goes is what will not be needed for the longest time (Belady's rule).
"""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import signal
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar, cast

from vcot import errors, logging
from vcot.errors import InputError, TemporaryError, VcotError, foreseen
from vcot.records.shards import File, fetch_file
from vcot.stage import stop
from vcot.storage import Store, join

T = TypeVar("T")

INDICES_AT_ONCE = 8
_PAUSE = 0.02  # seconds between two looks


class ShardCache:
    """Files of a stage by number.

    Args:
        folder: on this disk; shared by the processes of a pod.
        limit: bytes of all files that are there at once, the one that arrives included. Indices come on top.

    Raises:
        ValueError: `limit` is less than the largest file.
    """

    def __init__(self, store: Store, stage_uri: str, files: Sequence[File], folder: Path, limit: int) -> None:
        self._store, self._uri, self._files, self._folder, self._limit = store, stage_uri, tuple(files), folder, limit
        self.sizes = [file.size for file in files]
        if limit < max(self.sizes, default=0):
            raise ValueError(f"{limit} bytes have no room for the largest file, {max(self.sizes)} bytes")
        folder.mkdir(parents=True, exist_ok=True)

    # --- any process ---------------------------------------------------------------------------------

    def indices(self, read: Callable[[BinaryIO, str], bytes]) -> list[bytes]:
        """What `read` makes of each file, by reading ranges of it in storage, and keeps in the folder: it is made once
        in a pod if one process asks before the others.

        Raises InputError: a file is not what its marker says.
        """
        with ThreadPoolExecutor(INDICES_AT_ONCE) as pool:
            return list(pool.map(lambda number: self._index(number, read), range(len(self._files))))

    def _index(self, number: int, read: Callable[[BinaryIO, str], bytes]) -> bytes:
        path, file = self._folder / f"{number:05d}.index", self._files[number]
        if not path.exists():
            uri = join(self._uri, file.name)
            try:
                found = read(cast(BinaryIO, _Ranges(self._store, uri, file.size)), uri)
            except InputError:
                self._fetch(number).unlink(missing_ok=True)  # says of a damaged file what is wrong with it
                raise
            self._store.write(str(path), found)
        return path.read_bytes()

    def open(self, number: int, opener: Callable[[Path], T]) -> T:
        """What `opener` makes of the file, as soon as it is there.

        Raises what hindered the download; Interrupted: a stop was asked for while it was waited for.
        """
        path, wanted = self._path(number), self._folder / f"{number:05d}-{os.getpid()}.wanted"
        parent = os.getppid()
        try:
            while True:
                try:
                    return opener(path)
                except FileNotFoundError:
                    wanted.touch()  # soon it is there, and then it is not deleted
                    stop.raise_if_requested("the last checkpoint counts")
                    self._raise_failure()
                    if os.getppid() != parent:
                        raise TemporaryError(f"{path.name}: the process that this one reads for is gone") from None
                    time.sleep(_PAUSE)
        finally:
            wanted.unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05d}.parquet"

    # --- the process that downloads -------------------------------------------------------------------

    def turn(self, steps: Sequence[Sequence[int]], now: int) -> bool:
        """One download, with what must go for it; False where nothing is to be done, or nothing can be yet.

        Args:
            steps: of each file, the steps that read it, in order.
            now: the step that is under way.
        """
        names = os.listdir(self._folder)  # noqa: PTH208  (names alone, of all files, many times a second)
        here = {int(name[:5]) for name in names if name.endswith(".parquet")}
        wanted = {int(name[:5]) for name in names if name.endswith(".wanted")}

        def due(number: int) -> float:
            place = bisect_left(steps[number], now)
            return -1 if number in wanted else steps[number][place] if place < len(steps[number]) else math.inf

        missing = min((number for number in range(len(self._files)) if number not in here), key=due, default=None)
        if missing is None or (when := due(missing)) == math.inf:
            return False
        free = self._limit - sum(self.sizes[number] for number in here)
        leaving = []
        for number in sorted(here, key=due, reverse=True):
            if free >= self.sizes[missing] or due(number) <= when:
                break
            leaving.append(number)
            free += self.sizes[number]
        if free < self.sizes[missing]:
            return False
        for number in leaving:
            self._path(number).unlink()
        self._fetch(missing).rename(self._path(missing))
        return True

    def _fetch(self, number: int) -> Path:
        arriving = self._folder / "arriving"
        arriving.mkdir(exist_ok=True)
        return fetch_file(self._store, self._uri, self._files[number], arriving)

    # --- failures, from the one to the others -----------------------------------------------------------

    def tell_failure(self, error: VcotError) -> None:
        """The first one counts."""
        said = {"kind": type(error).__name__, "message": str(error)}
        self._store.write_once(str(self._folder / "failure.json"), json.dumps(said).encode())

    def _raise_failure(self) -> None:
        path = self._folder / "failure.json"
        if path.exists():
            said = json.loads(path.read_bytes())
            raise getattr(errors, said["kind"], TemporaryError)(said["message"])


class Fetching:
    """Downloads in a process beside this one, from the moment that it is made until the block ends.

        fetching = Fetching(cache, needs)
        with fetching:
            fetching.at(step)       told of each step that begins

    Args:
        needs: the files that each step reads, each once.
    """

    def __init__(self, cache: ShardCache, needs: Sequence[Collection[int]]) -> None:
        steps: list[list[int]] = [[] for _ in cache.sizes]
        for step, numbers in enumerate(needs):
            for number in numbers:
                steps[number].append(step)
        context = multiprocessing.get_context("spawn")  # a fork would share a GPU and open connections
        self._step, self._over = context.Value("q", 0, lock=False), False
        arguments = (cache, steps, self._step, os.getpid(), logging.for_child())
        self._worker = context.Process(target=_serve, args=arguments, daemon=True)
        self._worker.start()
        self._watch = threading.Thread(target=self._tell_end, args=(cache,), daemon=True)
        self._watch.start()

    def at(self, step: int) -> None:
        self._step.value = step

    @property
    def process(self) -> int:
        assert self._worker.pid is not None
        return self._worker.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._worker.kill()
        self._watch.join()

    def _tell_end(self, cache: ShardCache) -> None:
        self._worker.join()
        if not self._over:
            cache.tell_failure(TemporaryError(f"the process that downloads examples ended ({self._worker.exitcode})"))


def _serve(
    cache: ShardCache, steps: Sequence[Sequence[int]], at: Any, parent: int, set_up_logging: Callable[[], None]
) -> None:
    """The process that downloads; it ends with the one that started it."""
    set_up_logging()
    logging.quiet()  # where storage is, the other process has said
    for number in (signal.SIGINT, signal.SIGTERM):  # its parent decides when it is over
        signal.signal(number, signal.SIG_IGN)

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        while True:
            if not cache.turn(steps, at.value):
                time.sleep(_PAUSE)
    except Exception as error:
        if (known := foreseen(error)) is None:
            raise
        cache.tell_failure(known)


class _Ranges(io.RawIOBase):
    """An object in storage as a file, each read a range of it."""

    def __init__(self, store: Store, uri: str, size: int) -> None:
        self._store, self._uri, self._size, self._position = store, uri, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        length = max(self._size - self._position, 0) if size < 0 else min(size, self._size - self._position)
        data = self._store.read_range(self._uri, self._position, length) if length > 0 else b""
        self._position += len(data)
        return data
