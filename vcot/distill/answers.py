"""What the bytes of an endpoint's answer say, as a Completion."""

from __future__ import annotations

import json
from typing import Any

from vcot.records import Completion
from vcot.redaction import redacted

LONGEST_TEXT = 250_000
"""Characters of a reply that are kept, thinking included; the rest is cut off, and the reply says that it was."""

_LONGEST_NAME = 200

LONGEST_BODY = 4_000_000
"""Bytes of an answer that are parsed: LONGEST_TEXT has no more, however it is escaped."""


def read_completion(data: bytes, model: str, seconds: float) -> Completion | None:
    """What the bytes of an answer say, whatever a server leaves out; None if they are no chat completion.

    What is longer than LONGEST_BODY is a reply that was cut off, and not parsed: the event loop, and every other
    request with it, would wait. Nor is it asked for again, which would cost as much and bring as much.
    """
    if len(data) > LONGEST_BODY:
        begins = _plain(data[:4000].decode(errors="replace"))[:80]
        return Completion(text=begins, model=model, finish_reason="length", seconds=round(seconds, 3))
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return completion_of(answer, model, seconds)


def completion_of(answer: Any, model: str, seconds: float) -> Completion | None:
    """The same, of the JSON itself. Its tokens are those that the endpoint counted; 0: it did not."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list):
        return None
    choice = as_dict(choices[0] if choices else None)
    message, usage = as_dict(choice.get("message")), as_dict(answer.get("usage"))
    finish = "refusal" if message.get("refusal") else choice.get("finish_reason")
    named, text = answer.get("model"), _text(message.get("content"))
    if len(text) > LONGEST_TEXT:
        text, finish = text[:LONGEST_TEXT], "length"
    return Completion(
        text=text,
        model=_plain(named)[:_LONGEST_NAME] if isinstance(named, str) and named else model,
        finish_reason=_plain(finish)[:_LONGEST_NAME] if isinstance(finish, str) else "",
        tokens_in=_count(usage.get("prompt_tokens")),
        tokens_out=_count(usage.get("completion_tokens")),
        tokens_cached=_count(as_dict(usage.get("prompt_tokens_details")).get("cached_tokens")),
        seconds=round(seconds, 3),
    )


def refused(model: str) -> Completion:
    """Of a request that an endpoint refuses for its content: a reply without text."""
    return Completion(text="", model=model, finish_reason="content_filter", cost=0.0)


def _text(content: Any) -> str:
    """The text of a message: a string, or a list of parts of which those with a text count."""
    if isinstance(content, list):
        content = "".join(t for part in content if isinstance(t := as_dict(part).get("text"), str))
    return _plain(content) if isinstance(content, str) else ""


def _plain(text: str) -> str:
    """Without lone surrogates, which JSON may hold and UTF-8 may not, and without our keys, which an endpoint may echo:
    here, because whoever reads on may cut the text in the middle of one."""
    return redacted(text.encode("utf-8", "replace").decode())


def as_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int:
    """0 where it is no count; costs.py says what can be believed."""
    return value if type(value) is int and value > 0 else 0
