"""What the conductor asks of a cluster: eight verbs over plain dicts, and the two answers that are no answer.

`kubernetes.Api` speaks them to an API server; tests have a cluster in memory behind the same verbs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from vcot.errors import SettingsError

Manifest = dict[str, Any]
"""An object of the API, as it stands in JSON."""


class Refused(SettingsError):
    """The API server says no, and would say it again."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Expired(Exception):
    """410: the version from which to go on is no longer known; look at the whole again."""


@dataclass(frozen=True)
class Change:
    """One event of a watch."""

    kind: str
    """ADDED, MODIFIED, DELETED or BOOKMARK."""
    object: Manifest

    @property
    def version(self) -> str:
        return str(self.object["metadata"]["resourceVersion"])


class Cluster(Protocol):
    """One namespace of a cluster.

    Every verb raises Refused where the server says no for good, TemporaryError where it is away for long.
    """

    namespace: str

    def get(self, kind: str, name: str) -> Manifest | None:
        """The object, or None if there is none of that name."""

    def create(self, kind: str, manifest: Manifest) -> Manifest | None:
        """What was made, or None if the name is taken (perhaps by an earlier try whose answer was lost)."""

    def patch(self, kind: str, name: str, change: Manifest) -> Manifest:
        """The object after the change, a JSON Merge Patch (RFC 7386)."""

    def delete(self, kind: str, name: str) -> None:
        """Gone, or on its way; nothing happens where there is none of that name."""

    def list(self, kind: str, *, labels: str = "", fields: str = "", limit: int | None = None) -> Iterator[Manifest]:
        """The objects that both selectors fit, the first `limit` of them."""

    def find(self, kind: str, name: str) -> tuple[Manifest | None, str]:
        """The object, or None, and the version of the whole from which to watch on.

        The object's own version will not do: it may be older than what the server remembers.
        """

    def watch(self, kind: str, name: str, version: str, seconds: int) -> Iterator[Change]:
        """What happens to one object after that version, for so long or less; raises Expired."""

    def version(self) -> tuple[int, int]:
        """Of Kubernetes, as (1, 36)."""
