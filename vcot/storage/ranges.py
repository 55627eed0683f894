"""A large object as many ranges at once: one connection to object storage gives a tenth of what a node can take."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, Protocol

from vcot.errors import InputError
from vcot.stage import stop
from vcot.storage.place import CHUNK

RANGE = 16 << 20
"""Bytes of one request."""
AT_ONCE = 8
"""Requests under way for one object."""


class Opened(Protocol):
    """An object that is being read: all of its size is known, and which state of it this is."""

    @property
    def size(self) -> int: ...
    def readinto(self, buffer: Any, /) -> int: ...
    def close(self) -> None: ...


def fetch(
    path: str, first: Opened, more: Callable[[int, int], Opened], arrived: Callable[[int], None] | None = None
) -> None:
    """Fills a file of this disk; its pieces arrive in any order, so it is whole only when this returns.

    Args:
        first: the object, opened for its first RANGE bytes.
        more: opens (start, length) of the same state of the object.
        arrived: told of each piece's number of bytes; from several threads.

    Raises:
        Interrupted: a stop was asked for.
        what `more` and `readinto` raise; requests that wait are given up.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        if first.size <= RANGE:
            _copy(first, file, 0, first.size, arrived, threading.Event())
            return
        os.truncate(file, first.size)
        _copy_all(file, first, more, arrived)
    finally:
        os.close(file)


def _copy_all(
    file: int, first: Opened, more: Callable[[int, int], Opened], arrived: Callable[[int], None] | None
) -> None:
    over = threading.Event()

    def copy(start: int) -> None:
        if not over.is_set():
            length = min(RANGE, first.size - start)
            _copy(more(start, length) if start else first, file, start, length, arrived, over)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            pieces = [pool.submit(copy, start) for start in range(0, first.size, RANGE)]
            done, _ = wait(pieces, return_when=FIRST_EXCEPTION)
        finally:
            over.set()
            pool.shutdown(cancel_futures=True)
    for piece in done:
        piece.result()


def _copy(
    source: Opened, file: int, start: int, length: int, arrived: Callable[[int], None] | None, over: threading.Event
) -> None:
    buffer = memoryview(bytearray(min(CHUNK, length)))
    end = start + length
    try:
        while start < end and not over.is_set():
            stop.raise_if_requested("what was done before is kept")
            got = source.readinto(buffer[: end - start])
            if not got:
                raise InputError(f"ended {end - start} bytes early")  # readinto raises where it can say more
            written = 0
            while written < got:
                written += os.pwrite(file, buffer[written:got], start + written)
            start += got
            if arrived is not None:
                arrived(got)
    finally:
        source.close()
