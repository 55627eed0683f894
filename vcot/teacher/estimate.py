"""How many tokens a request has before it is sent: what is likely, and what it cannot exceed.

Pictures are counted by the provider's formula (see prices.toml). Of text, a token has at least one byte, which gives
the ceiling; four bytes are common in English prose, which gives what is likely. Neither needs the model's tokenizer.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from vcot.teacher.pictures import size_of
from vcot.teacher.prices import UNKNOWN_IMAGE, Price
from vcot.teacher.request import Request

MESSAGES = 64
"""Tokens around the messages: roles, separators, and the frame of a picture or a schema. At most."""

BYTES_A_TOKEN = 4

LIKELY_REPLY = 150
"""Tokens of a reply where none was seen yet: four short sentences, or a small JSON."""


class Tokens(NamedTuple):
    likely: int
    most: int


def prompt_tokens(request: Request, price: Price | None) -> Tokens:
    """Tokens of all that is sent."""
    said = [request.prompt.text, *(part for part in request.parts if isinstance(part, str))]
    if request.schema is not None:
        said.append(json.dumps(request.schema))
    text = sum(len(part.encode()) for part in said)
    formula = UNKNOWN_IMAGE if price is None or price.image is None else price.image
    seen = sum(formula.tokens(*size_of(part)) for part in request.parts if not isinstance(part, str))
    return Tokens(likely=text // BYTES_A_TOKEN + seen + 16, most=text + seen + MESSAGES)
