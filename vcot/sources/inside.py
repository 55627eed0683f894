"""Pictures that a row holds itself: stored under their digest, so that they have a URI like any other."""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any

from vcot.records import Image, Reason
from vcot.sources.desk import Desk
from vcot.sources.row import Refused


def picture(said: Any, desk: Desk) -> Image:
    """The picture of a row: `{"bytes": …, "path": …}` (Parquet of the hub), bytes, a data URL, or a path or URI.

    Raises:
        Refused: the row has none, or it is written in another way.
        ImageError: it cannot be used.
    """
    said = _unpacked(said)
    if not there(said):
        raise Refused(Reason.NO_IMAGE, "the row has no picture")
    if isinstance(said, bytes):
        return kept(said, desk)
    if not isinstance(said, str):
        raise Refused(Reason.WRONG_SHAPE, f"a picture is a path, a URI or bytes; got {said!r:.60}")
    if said.startswith("data:"):
        return kept(decoded(said.partition(",")[2]), desk)
    return desk.pictures.find(said)


def there(said: Any) -> bool:
    """Whether the row has anything at all in the place of its picture."""
    return _unpacked(said) not in (None, "", b"")


def _unpacked(said: Any) -> Any:
    return said.get("bytes") or said.get("path") if isinstance(said, dict) else said


def decoded(said: str) -> bytes:
    """Raises Refused: it is no base64."""
    try:
        return base64.b64decode(said, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(Reason.IMAGE_NOT_AN_IMAGE, f"a picture that is not base64: {error}; {said[:40]!r}") from None


def kept(data: bytes, desk: Desk) -> Image:
    return desk.pictures.keep(hashlib.sha256(data).hexdigest(), data)
