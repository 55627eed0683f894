"""What a model's tokens cost, from a table with dates; a model that is not in it has an unknown price.

prices = read_prices(store, settings.prices)
prices.of("gpt-4o")          → Price, or None: unknown
price.cost(tokens_in=1200, tokens_out=90)     → picodollars, a whole number: sums are exact to the last digit
"""

from __future__ import annotations

import datetime
import math
import tomllib
from decimal import Decimal
from importlib.resources import files
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vcot.errors import SettingsError
from vcot.storage import NotFound, Store

PICO = 10**12
"""Picodollars in a dollar. Prices are for a million tokens, to some thousandths of a cent."""

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


UNKNOWN_IMAGE = Patches(kind="patches", size=14)
"""Where no formula is known: a token for each 14 × 14 pixels, the finest that published models look at unmerged."""


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
        for name, price in self.models.items():
            if model == name or model in price.also:
                return price
        return None


def read_prices(store: Store, uri: str | None = None) -> Prices:
    """The package's table, with the models of a file of one's own before it.

    Raises SettingsError: the file is missing, or no such table.
    """
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
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        raise SettingsError(f"{where}, {place}: {fault['msg']}; vcot/distill/prices.toml shows the form") from None


def dollars(pico: int) -> str:
    """ "$0.0042", "$12.50": as many digits as matter."""
    value = pico / PICO
    if value >= 1 or not pico:
        return f"${value:,.2f}"
    return f"${value:.{max(4, 1 - math.floor(math.log10(abs(value))))}f}"
