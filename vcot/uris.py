"""Which URIs anybody here speaks: s3://bucket/key, file:///path and plain paths.

Known below settings and storage, so that `--check` refuses what storage would refuse hours later.
"""

from __future__ import annotations

import re

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
