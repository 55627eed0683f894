"""Which URIs anybody here speaks: s3://bucket/key, file:///path and plain paths.

Beside them, for reading alone, bytes of such a thing: an image inside an archive that nobody unpacks.

    bytes+s3://bucket/cot_images_03#1048576+20480#cot_image_data/gqa/1.jpg
    bytes+s3://bucket/cot_images_03#10737418000+240&cot_images_04#0+999#cot_image_data/gqa/2.jpg

After `bytes+` and the object: start + length in it; after each `&` the same of an object beside it, which goes on where
the one before ended; after the last `#` what this is called, for people.

Known below settings and storage, so that `--check` refuses what storage would refuse hours later.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vcot.errors import UsageError

SPOKEN = "s3://bucket/key, file:///path and plain paths"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def split(uri: str) -> tuple[str, str]:
    """The scheme and the rest: ("s3", "bucket/key"), ("file", "/path"); ("", path) for a plain path.

    Raises:
        UsageError: nobody speaks this kind of URI; in words that stand behind the URI as it was written.
    """
    scheme = _SCHEME.match(uri)
    if scheme is None:
        if not uri:
            raise UsageError("an empty URI; a place looks like s3://bucket/key, file:///folder/file or a path")
        if re.match(r"(s3|file|gs|https?):/", uri):
            raise UsageError("two slashes are missing; a place looks like s3://bucket/key or file:///path")
        return "", uri
    rest = uri[scheme.end() :]
    if scheme[1] == "file":
        if not rest.startswith("/"):
            raise UsageError(f"a file URI has three slashes and the whole path, as in file:///data/{rest}")
    elif scheme[1] == "s3":
        if rest.startswith("/") or not rest:
            raise UsageError("it names no bucket; it should look like s3://bucket/key")
    else:
        raise UsageError(f"{scheme[1]}:// is not supported; {SPOKEN} are")
    return scheme[1], rest


CREDENTIALS = (
    "it holds credentials, which would stand in logs and settings.json; keys of storage are read from "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, that of a teacher from OPENAI_API_KEY"
)

# user:password@ before a host or bucket. A password may hold slashes, as AWS's keys do; what follows the colon is then
# no port, and ARNs of access points are no user.
_USER = re.compile(r"://(?:[^/?#\s]*@|(?!arn:)[^/?#\s@:]*:(?!\d+(?:[/?#,=]|$))[^\s@,]*@)")
_IN_QUERY = re.compile(
    r"(://[^\s#]*?[?&](?:(?:x-amz-|x-goog-)?(?:signature|credential|security-token)|awsaccesskeyid|sig|"
    r"(?:api|access|auth)?[_-]?(?:key|token)|secret\w*|pass\w*|pwd)=)(?!\*{3})[^&#\s,]+?(?=:?(?:[&#\s,]|$))",
    re.IGNORECASE,
)
_SIGNED_NAME = re.compile(
    r"([?&](?:x-amz-|x-goog-)(?:signature|credential|security-token)=|[?&]awsaccesskeyid=)(?!\*{3})[^&#\s,'\"]+",
    re.IGNORECASE,
)
"""A signed query whose address was cut off, or never had a scheme."""
_CUT_PASSWORD = re.compile(r"(://[^/?#\s@:'\"]+:)(?!\d+(?:[/?#,=;:.)\]\s'\"]|$))(?<!://arn:)[^\s@,'\"]+")
"""`user:password` of an address that was cut off before its @."""
_BEFORE_ADDRESS = re.compile(r"([^\s,=]+)@(?=https?://)")
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")
"""Name of a variable of the environment, as `NAME@https://host/v1` gives it."""


def without_credentials(text: str) -> str:
    """The text with *** in the place of credentials in URIs (`user:password@`, `?api_key=…`, signed queries); the same
    text where there are none."""
    text = _BEFORE_ADDRESS.sub(lambda found: found[0] if VARIABLE.fullmatch(found[1]) else "***@", text)
    text = _USER.sub("://***@", text)
    while (masked := _IN_QUERY.sub(r"\1***", text)) != text:  # one name of a query at a time
        text = masked
    return text


def redact_credentials(text: str) -> str:
    """Replace credentials in URIs with ***, also in URIs that were shortened for a message."""
    text = _SIGNED_NAME.sub(r"\1***", without_credentials(text))
    return _CUT_PASSWORD.sub(r"\1***", text)


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [start, start + length) of the object at a URI."""

    uri: str
    start: int
    length: int


_PIECES = re.compile(r"bytes\+(.+?)#(\d+)\+(\d+)((?:&[^#&/]+#\d+\+\d+)*)#(.*)", re.DOTALL)


def pieces(uri: str) -> tuple[Piece, ...]:
    """The bytes that a URI of this kind names, in order; () where it is of another kind."""
    found = _PIECES.fullmatch(uri) if uri.startswith("bytes+") else None
    if found is None:
        return ()
    first, start, length, more, _ = found.groups()
    folder = first[: first.rfind("/") + 1]
    further = re.findall(r"&([^#&/]+)#(\d+)\+(\d+)", more)
    return Piece(first, int(start), int(length)), *(Piece(folder + n, int(s), int(size)) for n, s, size in further)


def of_pieces(parts: Sequence[Piece], called: str) -> str:
    """The URI of these bytes; `pieces` gives them back.

    Raises:
        UsageError: names that cannot stand in it; in words that stand behind the object as it was written.
    """
    first, *more = parts
    beside = "".join(f"&{piece.uri.rpartition('/')[2]}#{piece.start}+{piece.length}" for piece in more)
    uri = f"bytes+{first.uri}#{first.start}+{first.length}{beside}#{called}"
    if pieces(uri) != tuple(parts):
        raise UsageError("its name looks like a place inside another object; give it one without # and &")
    return uri
