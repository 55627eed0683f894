"""A finished stage as another reads it."""

from __future__ import annotations

from dataclasses import dataclass

from vcot.records import StageMark
from vcot.records.shards import DONE, read_mark
from vcot.storage import Store, join


@dataclass(frozen=True)
class Finished:
    """Its place, its mark, and the digest of the mark: which names every file of the stage by digest."""

    uri: str
    mark: StageMark
    sha256: str

    @classmethod
    def at(cls, store: Store, uri: str) -> Finished:
        mark, digests = read_mark(store, uri)
        (sha256,) = digests.values()
        return cls(uri, mark, sha256)

    @property
    def input(self) -> dict[str, str]:
        """URI of the mark → digest, as stages record what they have read."""
        return {join(self.uri, DONE): self.sha256}
