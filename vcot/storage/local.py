"""A folder as object storage: the same promises as S3, kept by temporary files, rename and link."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

from vcot.errors import InputError, SettingsError, TemporaryError, UsageError, VcotError

CHUNK = 1 << 20  # bytes read or copied at a time

# A killed process leaves its temporary file behind. It lies beside its target, because a rename is atomic
# only within one file system; the name says whose it is, and `list` does not see it.
_TEMPORARY_START, _TEMPORARY_END = ".vcot-", ".part"
_KINDS = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "character device", stat.S_IFBLK: "block device"}


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
    """What lies at a URI became another object between two reads."""


class LocalFile:
    """A file by its path; errors name its URI. See Store for what the verbs promise."""

    def __init__(self, uri: str, path: str) -> None:
        self.uri = uri
        self.path = path

    def read(self) -> bytes:
        with self.open_read() as source:
            return source.read()

    def read_range(self, start: int, length: int, of: Entry | None = None) -> bytes:
        with self.open_read(of) as source:
            source.seek(start)
            return source.read(length)

    @contextmanager
    def open_read(self, of: Entry | None = None) -> Iterator[BinaryIO]:
        with self.plain_words():
            raw = _Raw(self, "rb")
        with io.BufferedReader(raw, CHUNK) as source:
            if of is not None and (of.size, of.state) != _size_and_state(os.fstat(source.fileno())):
                raise Changed(f"{self.uri}: changed while it was read")
            yield cast(BinaryIO, source)

    @contextmanager
    def open_write(self) -> Iterator[BinaryIO]:
        with self.temporary() as temporary:
            with self.plain_words():
                raw = _Raw(self, "wb", temporary)
            target = io.BufferedWriter(raw, CHUNK)
            try:
                yield cast(BinaryIO, target)
            except BaseException:
                with suppress(OSError, VcotError):  # what happened in the block is the news, not a failing flush
                    target.close()
                raise
            target.close()  # flushes; whoever wrapped it may have closed it already
            with self.plain_words():
                # Bytes before name: a rename that survives a power cut must not name an empty file.
                with open(temporary, "rb") as file:  # noqa: PTH123
                    os.fsync(file.fileno())
                os.replace(temporary, self.path)  # noqa: PTH105

    def write(self, data: bytes) -> None:
        with self.open_write() as target:
            target.write(data)

    def write_once(self, data: bytes) -> bool:
        """`link` refuses a name that exists, and the file it names is whole: exclusive and complete in one step.

        (O_EXCL on the name itself would be exclusive too, but a reader could see the file half-written.)
        """
        with self.temporary() as temporary:
            LocalFile(self.uri, temporary).write(data)
            try:
                os.link(temporary, self.path)
            except FileExistsError:
                # NFS may answer a link that succeeded with "exists", when its first answer was lost.
                return os.stat(temporary).st_nlink > 1  # noqa: PTH116
            except OSError as error:
                if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                    raise SettingsError(
                        f"{self.uri}: this file system has no hard links, so nothing can be written exactly once "
                        f"there; use another file system, or s3://"
                    ) from error
                raise self.explain(error) from error
            return True

    def delete(self) -> None:
        with self.plain_words():
            Path(self.path).unlink(missing_ok=True)

    def upload(self, path: Path, left: Callable[[int], None] | None = None) -> None:
        _copy(LocalFile(str(path), str(path)), self, left)

    def download(self, path: Path, arrived: Callable[[int], None] | None = None) -> None:
        _copy(self, LocalFile(str(path), str(path)), arrived)

    def list(self) -> Iterator[Entry]:
        with self.plain_words():
            yield from _walk(self.path, self.uri if self.uri.endswith("/") else self.uri + "/", ())

    def stat(self) -> Entry | None:
        try:
            with self.plain_words():
                status = os.stat(self.path)  # noqa: PTH116
        except NotFound:
            return None
        if stat.S_ISDIR(status.st_mode):
            return None
        self.demand_regular(status)
        return Entry(self.uri, *_size_and_state(status))

    def demand_regular(self, status: os.stat_result) -> None:
        """Raises NotFound: there is something else than bytes that end. A folder has errors of its own."""
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
            raise NotFound(f"{self.uri}: a {kind}, not a regular file; only regular files are read")

    @contextmanager
    def temporary(self) -> Iterator[str]:
        """The name of a file to fill beside this one; gone afterwards, unless it was renamed."""
        folder = os.path.dirname(self.path) or "."  # noqa: PTH120
        with self.plain_words():
            try:
                os.makedirs(folder, exist_ok=True)  # noqa: PTH103
            except (FileExistsError, NotADirectoryError) as error:
                above = self._file_above()
                raise UsageError(
                    f"{self.uri}: one of its folders is a file already, {above}; name a folder, or a new one"
                ) from error
        temporary = f"{folder}/{_TEMPORARY_START}{secrets.token_hex(8)}{_TEMPORARY_END}"
        try:
            yield temporary
        finally:
            Path(temporary).unlink(missing_ok=True)

    @contextmanager
    def plain_words(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            raise self.explain(error) from error

    def explain(self, error: OSError | ValueError) -> Exception:
        """What an error of the operating system means to whoever wrote the URI; itself, if we do not know."""
        if not isinstance(error, OSError):
            return InputError(f"{self.uri!r}: not a file name ({error})") if "null" in str(error) else error
        reason = (error.strerror or str(error)).lower()
        match error.errno:
            case errno.ENOENT:
                return NotFound(f"{self.uri}: no such file{self._literal_hint()}")
            case errno.ENOTDIR:  # asked for what is there: nothing can be. `temporary` judges who would write
                return NotFound(f"{self.uri}: no such file; {self._file_above()} is a file, not a folder")
            case errno.EISDIR:
                return NotFound(f"{self.uri}: a folder, not a file")
            case errno.ENOSPC | errno.EDQUOT:
                mount = Path(self.path).absolute()
                while not mount.is_mount():
                    mount = mount.parent
                return TemporaryError(f"{self.uri}: no room left on {mount} ({error.strerror})")
            case errno.EACCES | errno.EPERM | errno.EROFS:
                return SettingsError(f"{self.uri}: {reason}; make it readable and writable for this user")
            case errno.ELOOP:
                return NotFound(f"{self.uri}: {reason}: a link there leads round in a circle")
            case errno.ENAMETOOLONG | errno.EINVAL:
                return InputError(f"{self.uri}: {reason}")
            case errno.EIO | errno.ESTALE | errno.ETIMEDOUT:
                return TemporaryError(f"{self.uri}: {reason}")
            case _:
                return error

    def _file_above(self) -> str:
        """The file that stands where this path has a folder."""
        return next((str(above) for above in Path(self.path).parents if os.path.lexists(above)), self.path)

    def _literal_hint(self) -> str:
        decoded = unquote(self.path)
        if decoded != self.path and os.path.exists(decoded):  # noqa: PTH110
            return "; URIs are taken as they stand here: write the characters themselves, not %-codes"
        return ""


class _Raw(io.FileIO):
    """A file whose own errors (no room left, foremost) speak our words, and nobody else's errors do."""

    def __init__(self, place: LocalFile, mode: str, path: str | None = None) -> None:
        self._place = place
        super().__init__(path or place.path, mode, opener=self._opened if mode == "rb" else None)

    def _opened(self, path: str, flags: int) -> int:
        # Looked at before it is opened: to open a FIFO waits for a writer who never comes, and devices may act on it.
        self._place.demand_regular(os.stat(path))  # noqa: PTH116
        return os.open(path, flags)

    def write(self, data: Any) -> int:
        with self._place.plain_words():
            return super().write(data)

    def readinto(self, buffer: Any) -> int:
        with self._place.plain_words():
            return cast(int, super().readinto(buffer))

    @property
    def state(self) -> str:
        return _size_and_state(os.fstat(self.fileno()))[1]


def _size_and_state(status: os.stat_result) -> tuple[int, str]:
    return status.st_size, str(status.st_mtime_ns)


def _walk(folder: str, uri: str, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
    """Files below a folder, in the order of their URIs (a folder sorts as `name/`). Links are followed, once.

    What is no regular file is listed as well, so that whoever reads it is told of it by name.
    """
    try:
        with LocalFile(uri, folder).plain_words():
            status = os.stat(folder)  # noqa: PTH116
            with os.scandir(folder) as found:
                children = sorted((child.name + "/" if _is_folder(child) else child.name, child) for child in found)
    except NotFound:
        return  # no such folder holds nothing, as a prefix without objects
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for name, child in children:
        if name.endswith("/"):
            yield from _walk(child.path, uri + name, (*above, here))
        elif not (name.startswith(_TEMPORARY_START) and name.endswith(_TEMPORARY_END)):
            try:
                with LocalFile(uri + name, child.path).plain_words():
                    status = child.stat()
            except NotFound:  # gone meanwhile, or a link that leads to nothing
                continue
            yield Entry(uri + name, *_size_and_state(status))


def _is_folder(child: os.DirEntry[str]) -> bool:
    try:
        return child.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads round in a circle
            return False
        raise


def _copy(source: LocalFile, target: LocalFile, told: Callable[[int], None] | None) -> None:
    with source.open_read() as reading, target.open_write() as writing:
        while piece := reading.read(CHUNK):
            writing.write(piece)
            if told is not None:
                told(len(piece))


def file_digest(path: Path) -> str:
    """sha256 of a file of this machine, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
