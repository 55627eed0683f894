"""Names of files below a folder, as records and listings contain them.

Storage is shared, so any name in it may come from someone else. Joined to a local folder, an absolute name replaces the
folder and `..` leaves it. Records therefore declare their names as `RelativeName`, and code that joins a name to a
local folder calls `local_path`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ValidationError
from pydantic_core import PydanticCustomError

from vcot.errors import InputError

_FAULT = "relative_name"


def check_name(name: str) -> str:
    """Return the name unchanged if it is relative and stays below its folder on every system.

    Raises:
        ValueError: The name is empty or absolute, or contains a drive, a backslash, NUL, `.`, `..` or an empty part.
    """
    if fault := _fault(name):
        raise ValueError(f"{name!r} is not a relative file name: it {fault}")
    return name


def _fault(name: str) -> str:
    parts = name.split("/")
    if not name:
        return "is empty"
    if name.startswith("/"):
        return "is absolute"
    if "" in parts:
        return "has an empty part"
    if bad := {".", ".."}.intersection(parts):
        return f"has the part {max(bad)!r}"
    if re.match("[A-Za-z]:", name):
        return "has a drive"
    if bad := {"\\", "\0"}.intersection(name):
        return f"contains {max(bad)!r}"
    return "is not valid Unicode" if any("\ud800" <= character <= "\udfff" for character in name) else ""


def _validated(name: str) -> str:
    try:
        return check_name(name)
    except ValueError as error:
        raise PydanticCustomError(_FAULT, "{fault}", {"fault": str(error)}) from None


RelativeName = Annotated[str, AfterValidator(_validated)]
"""Field of a record: the name of a file or folder below the folder to which the record belongs."""


def refuse_names(error: ValidationError, record: str) -> None:
    """Raise an error that names the record and the name if a `RelativeName` is the cause.

    Raises:
        InputError: The record at this URI contains a name that leaves its folder.
    """
    for fault in error.errors():
        if fault["type"] == _FAULT:
            raise _refusal(record, fault["msg"]) from None


def first_fault(error: ValidationError) -> str:
    """Return field and message of the first fault, for an error message."""
    first = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"].lower())))


def name_in(record: str, name: str) -> str:
    """Return a name that was read from a record or a listing, if it stays below its folder.

    Args:
        record: URI from which the name was read.
        name: Name of a file.

    Raises:
        InputError: The name leaves its folder.
    """
    try:
        return check_name(name)
    except ValueError as error:
        raise _refusal(record, str(error)) from None


def local_path(folder: Path, name: str, record: str) -> Path:
    """Return the path of a name below a local folder; raise as `name_in` does."""
    return folder / name_in(record, name)


def _refusal(record: str, fault: str) -> InputError:
    return InputError(f"{record}: {fault}. vcot never writes such a name; do not use this folder")
