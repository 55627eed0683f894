"""The text of a reply → a shape, or in which way it is none. Never raises, whatever the text.

    refused · empty · cut off · not JSON · JSON of another shape

A reply is mended where what it means is beyond doubt: thinking aloud, a fence or prose around the one JSON object go,
and what json_repair can close or quote is closed and quoted; but not a string in which the text ends. A shape must come
out of it all the same.
"""

from __future__ import annotations

import json
import re
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

from json_repair import repair_json
from pydantic import BaseModel, ValidationError

from vcot.records import Completion, Reason

LONGEST = 30_000
"""Characters of a reply that is looked at."""

REFUSED = ("content_filter", "refusal")
"""Finish reasons of a Completion that say: would not."""

MENDED, DEEPEST = 12_000, 20
"""Characters, and objects and lists inside each other, up to which a text is mended: beyond, mending takes quadratic
time, and no shape is as deep."""

S = TypeVar("S", bound=BaseModel)


class Fault(NamedTuple):
    """Why a reply is of no use: for the tally, and in words that the teacher can be told."""

    reason: Reason
    why: str


def text_of(completion: Completion) -> str | Fault:
    """What was said, without the thinking before it."""
    if completion.finish_reason in REFUSED:
        return Fault(Reason.TEACHER_REFUSED, f"it was refused ({completion.finish_reason})")
    text = _THINKING.sub("", completion.text).strip()
    if not text:
        return Fault(Reason.TEACHER_EMPTY, "it was empty")
    if completion.finish_reason == "length":
        return Fault(Reason.TEACHER_CUT_OFF, "it was cut off because it was too long")
    if len(text) > LONGEST:
        return Fault(Reason.TEACHER_NOT_JSON, f"it had {len(text):,} characters; no more than {LONGEST:,} are read")
    return text


def read(completion: Completion, shape: type[S]) -> S | Fault:
    """The reply as this shape."""
    text = text_of(completion)
    if isinstance(text, Fault):
        return text
    value = json_in(text)
    if value is None:
        return Fault(Reason.TEACHER_NOT_JSON, f"it was not the JSON object that was asked for, but {text[:80]!r}")
    try:
        return shape.model_validate(_writable(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        return Fault(
            Reason.TEACHER_WRONG_SHAPE,
            f"its JSON has another shape: {where}: {first['msg'][:120]}; got {repr(first['input'])[:80]}",
        )


def json_in(text: str) -> dict[str, Any] | None:
    """The JSON object in a text, mended where it has to be; None where there is none."""
    start = text.find("{")
    if start < 0 or len(text) > LONGEST:
        return None
    end = text.rfind("}")
    for written in (text, text[start : end + 1]):
        try:
            value = json.loads(written)
        except (ValueError, RecursionError):
            continue
        return value if isinstance(value, dict) else None
    if len(text) - start > MENDED or _depth(text[start:]) > DEEPEST or _torn(text[start:]):
        return None
    try:
        value = repair_json(text[start:], return_objects=True)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value else None


def _torn(text: str) -> bool:
    """Whether it seems to end inside a string: closing it would make half a sentence a whole one."""
    return not text.rstrip("` \n").endswith("}") and len(_QUOTE.findall(text)) % 2 == 1


def _depth(text: str) -> int:
    """How many brackets are open at once, at most."""
    steps = (1 if char in "{[" else -1 if char in "]}" else 0 for char in text)
    return max(accumulate(steps), default=0)


def _writable(value: Any) -> Any:
    """With a "?" for each half of a character, which JSON may hold and no file can."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_writable(key): _writable(inside) for key, inside in value.items()}
    return [_writable(inside) for inside in value] if isinstance(value, list) else value


_QUOTE = re.compile(r'(?<!\\)"')
# Some chat templates open the thinking in the prompt, so that only its end stands in the reply.
_THINKING = re.compile(r"\A.*?</think>", re.DOTALL | re.IGNORECASE)
