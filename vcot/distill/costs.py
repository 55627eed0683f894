"""What requests use and cost: prices with dates, the worst case beforehand, the real cost afterwards, the cost report.

    prices = read_prices(store, settings.prices)
    prices.of("gpt-4o")                          → Price, or None: unknown
    worst = costs.worst(request)                 reserved before the request is sent
    reply, spent = costs.spent(reply, worst)     settled, and stored with the reply

An endpoint counts the tokens, and may count wrongly or not at all. A count that cannot be believed is replaced by its
worst case, so that the budget holds whatever an endpoint says. Single requests and batches use the same functions.
Money is counted in picodollars, whole numbers, so that sums are exact to the last digit.
"""

from __future__ import annotations

import datetime
import json
import math
import operator
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable
from decimal import Decimal
from functools import reduce
from importlib.resources import files
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vcot import logging
from vcot.distill.crops import size_of
from vcot.distill.request import Request
from vcot.errors import SettingsError
from vcot.records import Completion
from vcot.records.metadata import Line
from vcot.storage import NotFound, Store
from vcot.storage.names import first_fault

PICO = 10**12  # picodollars in a dollar. Prices are for a million tokens, to some thousandths of a cent

_Dollars = Annotated[Decimal, Field(ge=0, le=10_000, decimal_places=6)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tiles(_Strict):
    """Scaled down into 2048 × 2048, then to a shorter side of 768; so many tokens for each 512 × 512, and a base."""

    kind: Literal["tiles"]
    base: int = Field(ge=0)
    tile: int = Field(gt=0)

    def tokens(self, width: int, height: int) -> int:
        shrink = min(1.0, 2048 / max(width, height))
        shrink *= min(1.0, 768 / (min(width, height) * shrink))
        across, down = (math.ceil(round(side * shrink, 3) / 512) for side in (width, height))
        return self.base + self.tile * max(1, across) * max(1, down)


class Patches(_Strict):
    """A token for each patch; where there are more than `most`, the image is scaled to that many."""

    kind: Literal["patches"]
    size: int = Field(gt=0, description="pixels a side")
    most: int | None = Field(None, gt=0)
    factor: Decimal = Field(Decimal(1), gt=0)

    def tokens(self, width: int, height: int) -> int:
        patches = math.ceil(width / self.size) * math.ceil(height / self.size)
        return math.ceil((patches if self.most is None else min(patches, self.most)) * self.factor)


# Where no formula is known: a token for each 14 × 14 pixels, the finest that published models look at unmerged.
UNKNOWN_IMAGE = Patches(kind="patches", size=14)


class Price(_Strict):
    """Args: US dollars for a million tokens; `as_of` and `source` say when and where this was read."""

    input: _Dollars
    cached: _Dollars | None = None
    output: _Dollars
    batch: Decimal = Field(Decimal(1), gt=0, le=1)
    as_of: datetime.date
    source: str
    also: tuple[str, ...] = ()
    image: Tiles | Patches | None = Field(None, discriminator="kind")

    def cost(self, tokens_in: int, tokens_out: int, tokens_cached: int = 0, *, batch: bool = False) -> int:
        """Picodollars, rounded up."""
        cached = min(tokens_cached, tokens_in)
        cheap = self.input if self.cached is None else self.cached
        millionths = (tokens_in - cached) * self.input + cached * cheap + tokens_out * self.output
        return math.ceil(millionths * (self.batch if batch else 1) * (PICO // 10**6))


class Prices(_Strict):
    version: Literal[1]
    models: dict[str, Price]

    def of(self, model: str) -> Price | None:
        return next((price for name, price in self.models.items() if model in (name, *price.also)), None)


def read_prices(store: Store, uri: str | None = None) -> Prices:
    """The package's table, with the models of a file of one's own before it. Raises SettingsError: the file is missing,
    or no such table."""
    packaged = _parse(files("vcot.distill").joinpath("prices.toml").read_bytes(), "prices.toml")
    if uri is None:
        return packaged
    try:
        own = _parse(store.read(uri), f"--prices {uri}")
    except NotFound as error:
        raise SettingsError(f"--prices {uri}: {error}") from None
    others = {name: price for name, price in packaged.models.items() if name not in own.models}
    return Prices(version=1, models=own.models | others)


def _parse(data: bytes, where: str) -> Prices:
    try:
        return Prices.model_validate(tomllib.loads(data.decode(), parse_float=Decimal))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{where} is not TOML: {error}") from None
    except ValidationError as error:
        raise SettingsError(f"{where}, {first_fault(error)}; vcot/distill/prices.toml shows the form") from None


def dollars(pico: int) -> str:
    """ "$0.0042", "$12.50": as many digits as matter."""
    value = pico / PICO
    if value >= 1 or not pico:
        return f"${value:,.2f}"
    return f"${value:.{max(4, 1 - math.floor(math.log10(abs(value))))}f}"


# --- worst case and real cost

UNLIMITED = 10**30  # more than anybody will spend
MESSAGES = 64  # tokens around the messages at most: roles, separators, the frame of an image or a schema
BYTES_A_TOKEN = 4  # common in English prose; a token has at least one byte

# A prompt may have more tokens than estimated, where a model cuts images finer than its formula says or a gateway adds
# words: it is believed up to so many times the estimate, or so many tokens, whichever is more. A reply may be longer
# than allowed, where a server does not know max_completion_tokens: it is believed up to so many tokens.
BELIEVED_TIMES, BELIEVED_TOKENS = 16, 131_072


class Usage(NamedTuple):
    """What a budget limits, in whole numbers so that sums are exact. As a limit: UNLIMITED where nothing is limited."""

    pico: int = 0
    tokens: int = 0
    requests: int = 0

    def plus(self, other: Usage) -> Usage:
        return Usage(*map(operator.add, self, other))

    def minus(self, other: Usage) -> Usage:
        return Usage(*map(operator.sub, self, other))

    def least(self, other: Usage) -> Usage:
        return Usage(*map(min, self, other))

    def most(self, other: Usage) -> Usage:
        return Usage(*map(max, self, other))

    def within(self, limit: Usage) -> bool:
        return all(map(operator.le, self, limit))


NOTHING = Usage()
SENT = Usage(requests=1)  # of a request that is not paid for: it left the process all the same


def total(usages: Iterable[Usage]) -> Usage:
    return reduce(Usage.plus, usages, NOTHING)


class PromptTokens(NamedTuple):
    likely: int
    most: int


def prompt_tokens(request: Request, price: Price | None) -> PromptTokens:
    """Tokens of all that is sent, before it is sent and without the model's tokenizer. Images by the provider's formula
    (see prices.toml); text has at most one token a byte."""
    texts = [request.prompt.text, *(part for part in request.all_parts() if isinstance(part, str))]
    if request.schema is not None:
        texts.append(json.dumps(request.schema))
    text = sum(len(part.encode()) for part in texts)
    formula = UNKNOWN_IMAGE if price is None or price.image is None else price.image
    images = sum(formula.tokens(*size_of(part)) for part in request.all_parts() if not isinstance(part, str))
    around = MESSAGES * (1 + len(request.turns))
    return PromptTokens(likely=text // BYTES_A_TOKEN + images + 16, most=text + images + around)


class Worst(NamedTuple):
    """The most that one try can use. `stretch`: by which factor tokens_in exceeds the estimate, as earlier prompts
    taught."""

    model: str
    tokens_in: int
    tokens_out: int
    batch: bool
    usage: Usage
    stretch: float = 1.0


class Costs:
    """What tries may cost and did cost. It learns from prompts and replies that have more tokens than estimated."""

    def __init__(self, prices: Prices) -> None:
        self.prices = prices
        self.counted: set[str] = set()  # models of which a reply was counted
        self._stretch = 1.0
        self._longest = 0  # tokens that a reply may have, once one was longer than allowed

    def worst(self, request: Request, *, batch: bool = False) -> Worst:
        estimate = prompt_tokens(request, self.prices.of(request.model)).most
        tokens_out = max(request.reply_tokens, self._longest)
        worst = self.worst_of(request.model, math.ceil(estimate * self._stretch), tokens_out, batch=batch)
        return worst._replace(stretch=self._stretch)

    def worst_of(self, model: str, tokens_in: int, tokens_out: int, *, batch: bool) -> Worst:
        """The same, of tokens that were counted before."""
        price = self.prices.of(model)
        pico = price.cost(tokens_in, tokens_out, batch=batch) if price else 0
        return Worst(model, tokens_in, tokens_out, batch, Usage(pico, tokens_in + tokens_out, 1))

    def spent(self, reply: Completion, worst: Worst) -> tuple[Completion, Usage]:
        """The reply with its cost and with tokens that can be believed, and what the try used of the budget."""
        estimate = worst.tokens_in / worst.stretch
        tokens_in, cached, tokens_out = reply.tokens_in, reply.tokens_cached, reply.tokens_out
        if not 0 < tokens_in <= max(BELIEVED_TOKENS, BELIEVED_TIMES * estimate):
            tokens_in, cached = worst.tokens_in, 0
        if not 0 < tokens_out <= max(BELIEVED_TOKENS, worst.tokens_out):
            tokens_out = worst.tokens_out
        if cached > tokens_in:
            cached = 0
        if tokens_in > worst.tokens_in:
            logging.get().warning(
                "a prompt had more tokens than estimated; the rest is counted higher", tokens=tokens_in
            )
            self._stretch = max(self._stretch, tokens_in / estimate)
        if tokens_out > worst.tokens_out:
            logging.get().warning("a reply had more tokens than allowed; the rest is counted higher", tokens=tokens_out)
            # Thinking that is counted outside the limit varies, so others may be longer still.
            self._longest = max(self._longest, min(2 * tokens_out, BELIEVED_TOKENS))
        self.counted.add(worst.model)
        price = self.prices.of(worst.model)
        pico = price.cost(tokens_in, tokens_out, cached, batch=worst.batch) if price else 0
        believed = {"tokens_in": tokens_in, "tokens_cached": cached, "tokens_out": tokens_out}
        counted = reply.model_copy(update={**believed, "cost": pico / PICO if price else None})
        return counted, Usage(pico, tokens_in + tokens_out, 1)


class CostReport:
    """What was asked and paid, by source (dataset of the rows) and purpose of the request; the names of a line are
    those of records.metadata.Line. Money is summed in picodollars and reported in US dollars."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def replied(self, source: str, purpose: str, reply: Completion, *, kept: bool) -> None:
        """A reply was used; `kept`: it was in storage before."""
        cost = None if reply.cost is None else round(reply.cost * PICO)
        line = self._lines[source, purpose]
        tokens = {"tokens_in": reply.tokens_in, "tokens_cached": reply.tokens_cached, "tokens_out": reply.tokens_out}
        line.update(tokens, unpriced=cost is None, usd=cost or 0)
        if kept:
            line.update(kept_replies_used=1)
        else:
            line.update(requests=1, tokens_paid=reply.tokens_in + reply.tokens_out, usd_paid=cost or 0)

    def failed(self, source: str, purpose: str, lost: int) -> None:
        """A try failed; `lost`: picodollars that it may have cost."""
        self._lines[source, purpose].update(tries_again=1, usd_lost=lost)

    def lines(self) -> dict[str, dict[str, dict[str, Any]]]:
        """{source: {purpose: line}}"""
        found: defaultdict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        for (source, purpose), line in sorted(self._lines.items()):
            found[source][purpose] = _in_dollars(line)
        return found

    def totals(self) -> dict[str, Any]:
        return _in_dollars(sum(self._lines.values(), Counter()))


def _in_dollars(line: Counter[str]) -> dict[str, Any]:
    names = Line.model_fields
    return {name: round(line[name] / PICO, 9) if name.startswith("usd") else line[name] for name in names}
