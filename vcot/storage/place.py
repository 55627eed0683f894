"""What a folder and a bucket have in common: the verbs, and the words for what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from vcot.errors import InputError

CHUNK = 1 << 20  # bytes read or copied at a time


@dataclass(frozen=True)
class Entry:
    """One stored object: its URI, in the form of the URI it was asked for by, and its size in bytes.

    state: another one when the object is replaced (the ETag, or when a file was last written).
    """

    uri: str
    size: int
    state: str = field(default="", compare=False)


class NotFound(InputError):
    """There is nothing at a URI. The message names it as it was written."""


class Changed(InputError):
    """What lies at a URI became another object between two reads of the same stream."""


class Place(Protocol):
    """One URI of one kind of storage, with everything that can be done there. See Store for the meanings."""

    uri: str

    def read(self) -> bytes: ...
    def read_range(self, start: int, length: int, of: Entry | None = None) -> bytes: ...
    def open_read(self) -> AbstractContextManager[BinaryIO]: ...
    def open_write(self) -> AbstractContextManager[BinaryIO]: ...
    def write(self, data: bytes) -> None: ...
    def write_once(self, data: bytes) -> bool: ...
    def delete(self) -> None: ...
    def upload(self, path: Path, left: Callable[[int], None] | None = None) -> None: ...
    def download(self, path: Path, arrived: Callable[[int], None] | None = None) -> None: ...
    def list(self) -> Iterator[Entry]: ...
    def stat(self) -> Entry | None: ...
