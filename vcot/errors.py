"""Why a stage may end badly, and the exit code of each reason.

    Exception
    └── VcotError                 1    anything that has no better name
        ├── GateFailed           20    evaluate: a quality gate was not passed
        ├── BudgetSpent          21    distill: the money, token or request limit is reached
        ├── UsageError           64    wrong usage: an unknown flag, a scheme nobody speaks
        ├── InputError           65    input breaks its contract, or changed while it was read
        ├── TemporaryError       75    storage, network, scratch disk or memory, for now: try again
        ├── SettingsError        78    wrong settings: a value, a key that is refused, a missing bucket
        ├── Interrupted         143    stopped by SIGTERM after saving (130 from the keyboard)
        ├── StageFailed           3    pipeline only: a stage failed
        └── NotWhole              4    --part look: something is left to do

The codes follow sysexits.h where it has a word for the case; Kubernetes Jobs act on them
(fail at once, or retry), so a new reason needs a line here before it needs a class elsewhere.
Messages are for people: the thing as they wrote it, the value they gave, what would be right.
"""

from __future__ import annotations

import errno


class VcotError(Exception):
    """An end that was foreseen: one clear line, an exit code, no traceback."""

    exit_code: int = 1


class GateFailed(VcotError):
    exit_code = 20


class BudgetSpent(VcotError):
    exit_code = 21


class UsageError(VcotError):
    exit_code = 64


class InputError(VcotError):
    exit_code = 65


class TemporaryError(VcotError):
    exit_code = 75


class SettingsError(VcotError):
    exit_code = 78


class Interrupted(VcotError):
    """Work was stopped from outside and what has a safe form was saved."""

    exit_code = 143


class KeyboardStop(Interrupted):
    """The same, asked for from the keyboard."""

    exit_code = 130


class StageFailed(VcotError):
    exit_code = 3


class NotWhole(VcotError):
    exit_code = 4


# --- errors of libraries ------------------------------------------------------------------------------

_FULL = {errno.ENOSPC, errno.EDQUOT}
_UNWELL = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET}
_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "can't start new thread")


def foreseen(error: BaseException) -> VcotError | None:
    """Map an error of the operating system, a database, a tensor file or a connection; None if it has no class here.

    The one place that knows these errors. Libraries are recognized by name, because not every image has all of them.
    """
    if isinstance(error, VcotError):
        return error
    text = " ".join(str(error).split())
    kind = next((name for cls in type(error).__mro__ if (name := _LIBRARIES.get(_full_name(cls)))), "")
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or number == errno.ENOMEM or any(each in text for each in _NO_MEMORY):
        return TemporaryError(
            f"not enough memory ({text or type(error).__name__}); raise the memory limit, or lower --processes, "
            "--workers or the batch size"
        )
    if number in _FULL or "os error 28" in text or "os error 122" in text:
        return TemporaryError(f"no room left on the disk: {text}; free some or point TMPDIR elsewhere")
    if kind == "database":
        return _database(error, text)
    is_network = isinstance(error, ConnectionError) and not isinstance(error, BrokenPipeError)  # as of `… | head`
    if kind == "connection" or number in _UNWELL or is_network:
        return TemporaryError(f"a connection or a disk failed: {text}; run the same command again")
    if kind == "tensors":
        return InputError(f"a safetensors file cannot be read or written: {text}")
    return None


def unreadable(message: str, error: BaseException) -> VcotError:
    """Return InputError with this message, unless the disk or the memory of this machine caused the error."""
    known = foreseen(error)
    return known if isinstance(known, TemporaryError) else InputError(f"{message}: {_short(error)}")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


_LIBRARIES = {
    "sqlite3.Error": "database",
    "safetensors._safetensors_rust.SafetensorError": "tensors",
    "urllib3.exceptions.HTTPError": "connection",
    "http.client.HTTPException": "connection",
}


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _database(error: BaseException, text: str) -> VcotError | None:
    """Map an error of SQLite: its databases are on the scratch disk, or copies of stored ones."""
    name = str(getattr(error, "sqlite_errorname", ""))
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_BUSY", "SQLITE_LOCKED")):
        return TemporaryError(
            f"a database on the scratch disk failed: {text}; is there room? Free some or point TMPDIR elsewhere"
        )
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return InputError(f"a database is damaged: {text}; run the same command again with an empty TMPDIR")
    return None
