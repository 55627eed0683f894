"""Replies that were paid for, kept in storage: the same request is never asked twice.

    <cache>/ab/abcdef….json    a Completion, written once, named by Request.key()

The key covers the model, its parameters, every word of the prompt, the pictures' digests and how they were
prepared. The endpoint's address is not part of it, so that moving from one gateway to another costs nothing.
"""

from __future__ import annotations

from pydantic import ValidationError

from vcot.errors import InputError
from vcot.records import Completion
from vcot.storage import NotFound, Store, join


class Replies:
    """The cache; safe to share between threads, processes and machines. The first reply to a request counts."""

    def __init__(self, store: Store, uri: str) -> None:
        self.store, self.uri = store, uri

    def get(self, key: str) -> Completion | None:
        """Raises InputError where something else stands in the reply's place."""
        uri = self._uri(key)
        try:
            return Completion.model_validate_json(self.store.read(uri))
        except NotFound:
            return None
        except ValidationError as error:
            raise InputError(
                f"{uri} is not a kept reply ({error.errors()[0]['msg']}); delete it to ask again"
            ) from None

    def keep(self, key: str, completion: Completion) -> Completion:
        """The reply that counts from now on: this one, or the one that another process kept before."""
        if self.store.write_once(self._uri(key), completion.line()):
            return completion
        return self.get(key) or completion

    def _uri(self, key: str) -> str:
        return join(self.uri, key[:2], f"{key}.json")
