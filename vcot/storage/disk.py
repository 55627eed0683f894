"""A folder as object storage: the same promises as S3, kept by temporary files, rename and link."""

from __future__ import annotations

import errno
import io
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

from vcot.errors import InputError, SettingsError, TemporaryError, UsageError, VcotError
from vcot.storage.place import CHUNK, Changed, Entry, NotFound

# A killed process leaves its temporary file behind. It lies beside its target, because a rename is atomic
# only within one file system; the name says whose it is, and `list` does not see it.
_TEMPORARY_START, _TEMPORARY_END = ".vcot-", ".part"


class DiskFile:
    def __init__(self, uri: str, path: str) -> None:
        self.uri = uri
        self.path = path

    def read(self) -> bytes:
        with self.open_read() as source:
            return source.read()

    def read_range(self, start: int, length: int, of: Entry | None = None) -> bytes:
        with self.open_read() as source:
            if of is not None and (of.size, of.state) != _size_and_state(os.fstat(source.fileno())):
                raise Changed(f"{self.uri}: changed while it was read")
            source.seek(start)
            return source.read(length)

    @contextmanager
    def open_read(self) -> Iterator[BinaryIO]:
        with self.plain_words():
            raw = _Raw(self, "rb")
        with io.BufferedReader(raw, CHUNK) as source:
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
                _to_disk(temporary)
                os.replace(temporary, self.path)  # noqa: PTH105

    def write(self, data: bytes) -> None:
        with self.open_write() as target:
            target.write(data)

    def write_once(self, data: bytes) -> bool:
        """`link` refuses a name that exists, and the file it names is whole: exclusive and complete in one step.

        (O_EXCL on the name itself would be exclusive too, but a reader could see the file half-written.)
        """
        with self.temporary() as temporary:
            with self.plain_words(), _Raw(self, "wb", temporary) as raw:
                view = memoryview(data)
                while view:
                    view = view[raw.write(view) :]
                os.fsync(raw.fileno())
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
        with self.plain_words(), suppress(FileNotFoundError):
            os.unlink(self.path)  # noqa: PTH108

    def upload(self, path: Path, left: Callable[[int], None] | None = None) -> None:
        with DiskFile(str(path), str(path)).open_read() as source, self.open_write() as target:
            _copy(source, target, left)

    def download(self, path: Path, arrived: Callable[[int], None] | None = None) -> None:
        with self.open_read() as source, DiskFile(str(path), str(path)).open_write() as target:
            _copy(source, target, arrived)

    def list(self) -> Iterator[Entry]:
        with self.plain_words():
            yield from _walk(self.path, self.uri if self.uri.endswith("/") else self.uri + "/", ())

    def stat(self) -> Entry | None:
        try:
            status = os.stat(self.path)  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno == errno.ELOOP:
                return None
            raise self.explain(error) from error
        if stat.S_ISDIR(status.st_mode):
            return None
        self.demand_regular(status)
        return Entry(self.uri, *_size_and_state(status))

    def demand_regular(self, status: os.stat_result) -> None:
        """Raises NotFound: there is something else than bytes that end. A folder has errors of its own."""
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            return
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
        temporary = os.path.join(folder, f"{_TEMPORARY_START}{secrets.token_hex(8)}{_TEMPORARY_END}")  # noqa: PTH118
        try:
            yield temporary
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)  # noqa: PTH108

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
        reason = error.strerror or str(error)
        match error.errno:
            case errno.ENOENT:
                return NotFound(f"{self.uri}: no such file{self._literal_hint()}")
            case errno.ENOTDIR:  # asked for what is there: nothing can be. `temporary` judges who would write
                return NotFound(f"{self.uri}: no such file; {self._file_above()} is a file, not a folder")
            case errno.EISDIR:
                return NotFound(f"{self.uri}: a folder, not a file")
            case errno.ENOSPC | errno.EDQUOT:
                return TemporaryError(f"{self.uri}: no room left on {_mount(self.path)} ({reason})")
            case errno.EACCES | errno.EPERM | errno.EROFS:
                return SettingsError(f"{self.uri}: {reason.lower()}; make it readable and writable for this user")
            case errno.ELOOP:
                return NotFound(f"{self.uri}: {reason.lower()}: a link there leads round in a circle")
            case errno.ENAMETOOLONG | errno.EINVAL:
                return InputError(f"{self.uri}: {reason.lower()}")
            case errno.EIO | errno.ESTALE | errno.ETIMEDOUT:
                return TemporaryError(f"{self.uri}: {reason.lower()}")
            case _:
                return error

    def _file_above(self) -> str:
        """The file that stands where this path has a folder."""
        path = self.path
        while path and path != os.path.dirname(path):  # noqa: PTH120
            path = os.path.dirname(path)  # noqa: PTH120
            if os.path.lexists(path):
                return path
        return path

    def _literal_hint(self) -> str:
        decoded = unquote(self.path)
        if decoded != self.path and os.path.exists(decoded):  # noqa: PTH110
            return "; URIs are taken as they stand here: write the characters themselves, not %-codes"
        return ""


class _Raw(io.FileIO):
    """A file whose own errors (no room left, foremost) speak our words, and nobody else's errors do."""

    def __init__(self, place: DiskFile, mode: str, path: str | None = None) -> None:
        self._place = place
        super().__init__(path or place.path, mode, opener=self._opened if mode == "rb" else None)

    def _opened(self, path: str, flags: int) -> int:
        # Looked at before it is opened: to open a FIFO waits for a writer who never comes, and devices may act on it.
        self._place.demand_regular(os.stat(path))  # noqa: PTH116
        return os.open(path, flags)

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise self._place.explain(error) from error

    @property
    def state(self) -> str:
        return _size_and_state(os.fstat(self.fileno()))[1]

    def readinto(self, buffer: Any) -> int:
        try:
            return cast(int, super().readinto(buffer))
        except OSError as error:
            raise self._place.explain(error) from error


def _size_and_state(status: os.stat_result) -> tuple[int, str]:
    return status.st_size, str(status.st_mtime_ns)


_KINDS = {
    stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "character device", stat.S_IFBLK: "block device",
}  # fmt: skip


def _walk(folder: str, uri: str, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
    """Files below a folder, in the order of their URIs (a folder sorts as `name/`). Links are followed, once.

    What is no regular file is listed as well, so that whoever reads it is told of it by name.
    """
    try:
        with DiskFile(uri, folder).plain_words():
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
                status = child.stat()
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ELOOP):  # gone meanwhile, or a link that leads to nothing
                    continue
                raise DiskFile(uri + name, child.path).explain(error) from error
            yield Entry(uri + name, *_size_and_state(status))


def _is_folder(child: os.DirEntry[str]) -> bool:
    try:
        return child.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link that leads round in a circle
            return False
        raise


def _copy(source: BinaryIO, target: BinaryIO, told: Callable[[int], None] | None) -> None:
    while piece := source.read(CHUNK):
        target.write(piece)
        if told is not None:
            told(len(piece))


def _to_disk(path: str) -> None:
    """Bytes before name: a rename that survives a power cut must not name an empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _mount(path: str) -> str:
    path = os.path.abspath(path)  # noqa: PTH100
    while not os.path.ismount(path):
        path = os.path.dirname(path)  # noqa: PTH120
    return path
