"""One request to a teacher, as a value: what is said, what is shown, and the key under which its reply is stored.

    Request(purpose="reason", prompt=…, parts=(ShownImage(sample.shown, side=1024), "Question: …"), model="gpt-4o")
    await asker.ask(request, source="scienceqa")      → Completion: kept, or new and paid for

The strategies make requests and read replies; an Asker alone knows endpoints, keys, money and time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from vcot.grounding import Box
from vcot.records import Completion, Image

QUALITY = 90
"""Of the JPEG that is sent."""


@dataclass(frozen=True)
class Prompt:
    """Words with a version: a file of vcot/distill/prompts."""

    name: str
    version: int
    text: str


@dataclass(frozen=True)
class ShownImage:
    """An image, or a part of it, as it is sent: a JPEG whose longest side has at most `side` pixels.

    Args:
        crop: what is cut out, in pixels of the upright original; None: all of it.
        least: pixels that its shorter side is enlarged to, as far as `side` allows; 0: it is never enlarged.
    """

    image: Image
    side: int
    crop: Box | None = None
    least: int = 0


@dataclass(frozen=True)
class Request:
    """What shapes a reply, and nothing else.

    Args:
        purpose: which step asks ("reason", "caption", "verify", …): for the cost report.
        prompt: the system message.
        parts: the user message, texts and images in order.
        schema: JSON schema that the reply must fit; None: free text.
        temperature: None leaves it to the endpoint.
        reply_tokens: most tokens of the reply.
        alternative: tells independent replies to the same words apart.
        again: how often the row was refused before; the replies that led there are left alone.
    """

    purpose: str
    prompt: Prompt
    parts: tuple[str | ShownImage, ...]
    model: str
    schema: Mapping[str, Any] | None = None
    temperature: float | None = None
    reply_tokens: int = 1024
    alternative: int = 0
    again: int = 0

    def key(self) -> str:
        """sha256 of all of it as canonical JSON (sorted keys, no white space); images by their digest."""
        said = {
            "prompt": [self.prompt.name, self.prompt.version, self.prompt.text],
            "parts": [_part(part) for part in self.parts],
            "model": self.model, "schema": self.schema, "temperature": self.temperature,
            "reply_tokens": self.reply_tokens, "alternative": self.alternative,
        }  # fmt: skip
        if self.again:  # or every reply that was kept before this was known would be asked for anew
            said["again"] = self.again
        text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _part(part: str | ShownImage) -> Any:
    """An image by the digest of what is really read: the stored copy where there is one."""
    if isinstance(part, str):
        return part
    crop = None if part.crop is None else part.crop.as_list()
    return {"sha256": part.image.kept.sha256, "side": part.side, "least": part.least, "quality": QUALITY, "crop": crop}


class RowFailed(Exception):
    """No try of this request was answered, and others were: the endpoint cannot take the row."""


class Asker(Protocol):
    """Gives the reply to a request, at most one new one for each key."""

    async def ask(self, request: Request, *, source: str, row: str = "") -> Completion:
        """The stored reply, or a new one, which is stored before anything else is done with it.

        Args:
            source: dataset of the row, for the cost report.
            row: its id, for messages.

        Raises:
            ImageError: an image of the request cannot be had.
            RowFailed: the endpoint cannot answer it.
            BudgetSpent, SettingsError, TemporaryError: see Endpoint.ask and the budget.
        """
