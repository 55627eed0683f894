"""Which secrets this process knows, and texts without them: whatever leaves it passes `redacted` on its way.

Log lines (vcot/logging.py), standard output and error and the termination message (vcot/stage.py), and the text that
stages write to storage (vcot/records) all do. Known are, from the start, the values of variables that are called
…KEY, …TOKEN, …SECRET, …PASSWORD or …CREDENTIALS, and passwords inside addresses (HTTPS_PROXY=http://user:password@…);
whoever reads a key elsewhere calls `learn`.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO
from urllib.parse import quote, unquote

REDACTED = "[redacted]"

_NAMED = re.compile(r".*(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)", re.IGNORECASE)
_PASSWORD = re.compile(r"://[^/?#\s@]*:([^/?#\s]+)@")

# A secret of few characters, or an ordinary word ("EMPTY", "not-needed": what endpoints without keys are given), stands
# in innocent texts too; to redact it would spoil logs and rows, and protects nothing.
_SHORTEST, _SURELY = 8, 16
_WORD = re.compile(r"[A-Za-z_-]*")

_forms: tuple[str, ...] = ()
"""Every form in which a secret is known, the longest first."""


def learn(*secrets: str) -> None:
    """From here on none of these leaves the process; those that are too short, or a mere word, are not taken."""
    global _forms
    new = {form for secret in map(str.strip, secrets) if _protects(secret) for form in _forms_of(secret)}
    _forms = tuple(sorted({*_forms, *new}, key=lambda form: (-len(form), form)))


def secrets_of(environment: Mapping[str, str]) -> Iterator[str]:
    """The secrets in variables, by their names and by the passwords in addresses."""
    for name, value in environment.items():
        if _NAMED.fullmatch(name):
            yield value
        for password in _PASSWORD.findall(value):
            yield from (password, unquote(password))


def redacted(text: str) -> str:
    """The text with "[redacted]" in the place of each secret, be it plain or as JSON, HTML, a URL or base64 have it."""
    for form in _forms:
        if form in text:
            text = text.replace(form, REDACTED)
    return text


class RedactedStream:
    """A text stream that writes no secret; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _protects(secret: str) -> bool:
    return len(secret) >= _SURELY or (len(secret) >= _SHORTEST and not _WORD.fullmatch(secret))


def _forms_of(secret: str) -> Iterator[str]:
    in_url, in_json = quote(secret, safe=""), json.dumps(secret)[1:-1]
    yield from (secret, in_url, re.sub("%..", lambda code: code[0].lower(), in_url), html.escape(secret))
    yield from (in_json, json.dumps(secret, ensure_ascii=False)[1:-1], in_json.replace("/", "\\/"), repr(secret)[1:-1])
    data = secret.encode(errors="replace")
    for before in range(3):  # where it begins inside a group of three bytes, as in base64 of "user:password"
        first, last = -(-before * 8 // 6), (before + len(data)) * 8 // 6
        coded = base64.b64encode(b"\0" * before + data).decode()[first:last]
        yield from (coded, coded.translate(str.maketrans("+/", "-_")))


learn(*secrets_of(os.environ))
