"""A list that only grows: numbered objects, each written once. "Newest" is the highest number.

A pointer that is overwritten needs compare-and-swap, which not every S3 has; a list of write-once objects needs
only what all of them have, and its history stays readable.
"""

from __future__ import annotations

import re

from vcot.storage.store import Store, join, name

_NAME = re.compile(r"(\d{10})\.json")


def numbered(store: Store, prefix_uri: str) -> dict[int, str]:
    """Number → URI of what was appended so far, in order; other objects there are passed over."""
    found = {}
    for entry in store.list(prefix_uri):
        if (number := _NAME.fullmatch(name(entry.uri))) and entry.uri.count("/") == prefix_uri.rstrip("/").count(
            "/"
        ) + 1:
            found[int(number[1])] = entry.uri
    return dict(sorted(found.items()))


def append(store: Store, prefix_uri: str, data: bytes, after: int) -> str | None:
    """Writes the entry that follows number `after` (0: the first).

    Returns:
        Its URI, or None where somebody else has written that number meanwhile: look at theirs, then try again.
    """
    uri = join(prefix_uri, f"{after + 1:010d}.json")
    return uri if store.write_once(uri, data) else None
