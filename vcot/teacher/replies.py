"""Replies that were paid for, kept in storage: the same request is never asked twice.

    <cache>/ab/abcdef….json    a Completion, written once, named by the sha256 of the whole request

The key covers the model, its parameters, every word of the prompt, the image's digest and how the image was
prepared. The endpoint's address is not part of it, so that moving from one gateway to another costs nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from vcot.errors import InputError
from vcot.records import Completion
from vcot.storage import NotFound, Store, join


def key_of(request: Mapping[str, Any]) -> str:
    """sha256 of the request as canonical JSON (sorted keys, no white space, UTF-8)."""
    text = json.dumps(request, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


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
