"""What is asked of a teacher, as values: prompts, images and requests, and the cache of their replies.

    prompts = choose_prompts(["look=1"])
    request = Request("reason", prompts["reason"], (ShownImage(sample.shown, side=1024), "Question: …"), "gpt-4o")
    await client.ask(request, source="scienceqa")      → Completion: from the cache, or new and paid for

The strategies make requests and read replies; a Client alone knows endpoints, keys, money and time. An evaluation asks
with the same requests, of images that are in memory and in a conversation of several turns.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, Literal, Protocol

import PIL.Image
from pydantic import ValidationError

from vcot.errors import InputError, SettingsError
from vcot.grounding import Box
from vcot.records import Completion, Image
from vcot.storage import NotFound, Store, confirmed, join
from vcot.storage.names import first_fault

QUALITY = 90  # of the JPEG that is sent
ERROR = "error"  # finish reason of a Completion that reports an error of the endpoint, and is no reply

_PROMPT_FILE = re.compile(r"(?P<name>[a-z-]+)\.v(?P<version>[0-9]+)\.md")


@dataclass(frozen=True)
class Prompt:
    """Words with a version: a file `prompts/<name>.v<version>.md`, one for each purpose."""

    name: str
    version: int
    text: str


@cache
def packaged_prompts() -> Mapping[str, Mapping[int, Prompt]]:
    """All prompts of the package: name → version → prompt."""
    prompts: dict[str, dict[int, Prompt]] = {}
    for file in sorted(files("vcot.distill").joinpath("prompts").iterdir(), key=lambda file: file.name):
        if found := _PROMPT_FILE.fullmatch(file.name):
            name, version = found["name"], int(found["version"])
            prompts.setdefault(name, {})[version] = Prompt(name, version, file.read_text("utf-8").strip())
    return prompts


def choose_prompts(choices: Sequence[str] = (), store: Store | None = None) -> dict[str, Prompt]:
    """The prompt for each purpose: the newest of the package, or as "name=version" and "name=URI of a file" say. Raises
    SettingsError: there is no such prompt or version, or a file that is none."""
    packaged = packaged_prompts()
    chosen = {name: versions[max(versions)] for name, versions in packaged.items()}
    for choice in choices:
        name, _, what = choice.partition("=")
        if name not in chosen or not what:
            names = ", ".join(sorted(chosen))
            raise SettingsError(f"--prompts {choice}: it should be name=version or name=file, name one of {names}")
        if not what.isdecimal():
            chosen[name] = _own_prompt(name, what, store or Store())
        elif (version := int(what)) in packaged[name]:
            chosen[name] = packaged[name][version]
        else:
            there = ", ".join(map(str, sorted(packaged[name])))
            raise SettingsError(f"--prompts {name}={version}: there is version {there}")
    return chosen


def own_prompts(choices: Sequence[str]) -> list[str]:
    """The URIs among the choices."""
    return [what for choice in choices if not (what := choice.partition("=")[2]).isdecimal()]


def _own_prompt(name: str, uri: str, store: Store) -> Prompt:
    """A file of one's own; its version is the number that its name ends in (my.v7.md), else 0."""
    try:
        text = store.read(uri).decode().strip()
    except NotFound:
        raise SettingsError(f"--prompts {name}={uri}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"--prompts {name}={uri}: it is not UTF-8 ({error.reason})") from None
    if not text:
        raise SettingsError(f"--prompts {name}={uri}: it is empty")
    version = re.search(r"\.v([0-9]+)\.md\Z", uri)
    return Prompt(name, int(version[1]) if version else 0, text)


@dataclass(frozen=True)
class ShownImage:
    """An image, or a part of it, as it is sent: a JPEG."""

    image: Image
    side: int  # pixels that its longest side has at most
    crop: Box | None = None  # what is cut out, in pixels of the upright original; None: all of it
    least: int = 0  # pixels that its shorter side is enlarged to, as far as `side` allows; 0: never enlarged

    def identity(self) -> dict[str, Any]:
        """For the key of a request: the image by the digest of what is really read, the stored copy where there is
        one."""
        crop = None if self.crop is None else self.crop.as_list()
        digest = self.image.kept.sha256
        return {"sha256": digest, "side": self.side, "least": self.least, "quality": QUALITY, "crop": crop}


@dataclass(frozen=True, eq=False)
class ShownPixels:
    """An image in memory, upright RGB, as it is sent: resized to `size` (width, height), and a PNG, so that what
    arrives is what was meant, to the last bit. Equal where the pixels and the size are."""

    pixels: PIL.Image.Image
    size: tuple[int, int]

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(repr(self.pixels.size).encode() + self.pixels.tobytes()).hexdigest()

    def identity(self) -> dict[str, Any]:
        return {"pixels": self.sha256, "size": list(self.size)}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShownPixels) and self.identity() == other.identity()

    def __hash__(self) -> int:
        return hash((self.sha256, self.size))


Part = str | ShownImage | ShownPixels


@dataclass(frozen=True)
class EarlierTurn:
    """What was said before the user message."""

    role: Literal["user", "assistant"]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Request:
    """What shapes a reply, and nothing else."""

    purpose: str  # which step asks ("reason", "caption", "look", …): for the cost report
    prompt: Prompt  # the system message; none is sent where its text is empty
    parts: tuple[Part, ...]  # the user message, texts and images in order
    model: str
    schema: Mapping[str, Any] | None = None  # JSON schema that the reply must fit; None: free text
    temperature: float | None = None  # None leaves it to the endpoint
    reply_tokens: int = 1024  # most tokens of the reply
    alternative: int = 0  # tells independent replies to the same words apart
    again: int = 0  # how often the row was refused before; the replies that led there are left alone
    turns: tuple[EarlierTurn, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # more fields of the body, which an endpoint may refuse

    def key(self) -> str:
        """sha256 of all of it as canonical JSON (sorted keys, no white space)."""
        said = {
            "prompt": [self.prompt.name, self.prompt.version, self.prompt.text],
            "parts": _identities(self.parts),
            "model": self.model, "schema": self.schema, "temperature": self.temperature,
            "reply_tokens": self.reply_tokens, "alternative": self.alternative,
        }  # fmt: skip
        # Only where there are any, or every reply that was kept before these were known would be asked for anew.
        if self.again:
            said["again"] = self.again
        if self.turns:
            said["turns"] = [[turn.role, _identities(turn.parts)] for turn in self.turns]
        if self.options:
            said["options"] = dict(self.options)
        text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def all_parts(self) -> Iterator[Part]:
        """Of all turns."""
        for turn in self.turns:
            yield from turn.parts
        yield from self.parts


def _identities(parts: Sequence[Part]) -> list[Any]:
    return [part if isinstance(part, str) else part.identity() for part in parts]


class RowFailed(Exception):
    """No try of this request was answered, and others were: the endpoint cannot take the row."""


class Client(Protocol):
    """Gives the reply to a request, at most one new one for each key."""

    async def ask(self, request: Request, *, source: str, row: str = "") -> Completion:
        """The stored reply, or a new one, which is stored before anything else is done with it.

        `source`: dataset of the row, for the cost report; `row`: its id, for messages. Raises ImageError (an image
        cannot be had), RowFailed (the endpoint cannot answer it), BudgetSpent, SettingsError and TemporaryError.
        """


class ReplyCache:
    """Replies that were paid for, in storage; safe to share between threads, processes and machines.

        <cache>/ab/abcdef….json    a Completion, written once, named by Request.key()

    The endpoint's address is not part of the key, so that moving from one gateway to another costs nothing.

    keeps_empty: store replies without text as well. Without it they are requested again, as are those that an earlier
    version stored.
    """

    def __init__(self, store: Store, uri: str, *, keeps_empty: bool = True) -> None:
        self.store, self.uri, self.keeps_empty = store, uri, keeps_empty

    def get(self, key: str) -> Completion | None:
        """Return the stored reply, or None: there is none, or an earlier version stored an error as a reply.

        Raises:
            InputError: The stored object is not a reply.
        """
        uri = self._uri(key)

        def attempt() -> Completion:
            try:
                return Completion.model_validate_json(self.store.read(uri))
            except ValidationError as error:
                fault = first_fault(error)
                raise InputError(f"{uri} is not a cached reply ({fault}); delete it to ask again") from None

        try:
            completion = confirmed(uri, attempt, recorded=False)
            return completion if self._counts(completion) else None
        except NotFound:
            return None

    def keep(self, key: str, completion: Completion) -> Completion:
        """The reply that counts from now on: this one, or the one that another process stored before."""
        if not self._counts(completion) or self.store.write_once(self._uri(key), completion.line()):
            return completion
        if (kept := self.get(key)) is None:  # an earlier version stored an error or a reply without text
            self.store.write(self._uri(key), completion.line())
        return kept or completion

    def _counts(self, completion: Completion) -> bool:
        return completion.finish_reason != ERROR and (self.keeps_empty or bool(completion.text.strip()))

    def _uri(self, key: str) -> str:
        return join(self.uri, key[:2], f"{key}.json")
