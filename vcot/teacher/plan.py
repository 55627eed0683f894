"""What all shards of distill must know: the ceiling, each shard's part of it, and what its rows were foreseen to cost.

    <stage>/_budget/plan/0000000001.json    made in prepare; the newest counts, so that a ceiling can be raised

                    00003/…                 what was taken of the part of a shard (see account.py)
                    batches/…               what was taken by batches, before the shards

A part is in proportion to what the rows of the shard are foreseen to cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Literal

from pydantic import Field, ValidationError

from vcot.errors import InputError, SettingsError
from vcot.records.base import Record
from vcot.storage import Store, join
from vcot.storage.numbered import append, numbered
from vcot.teacher.account import Account
from vcot.teacher.amount import ENDLESS, UNLIMITED, Amount, shared_out
from vcot.teacher.forecast import Foreseen
from vcot.teacher.prices import PICO, Prices, dollars

FLAGS = ("--budget-usd", "--budget-tokens", "--budget-requests")


class Share(Record):
    foreseen: Foreseen
    part: tuple[int, int, int] = Field(description="picodollars, tokens, requests")


class Plan(Record):
    version: Literal[1] = 1
    ceiling: tuple[int, int, int] = Field(description="picodollars, tokens, requests; 10^30 where nothing is limited")
    shards: tuple[Share, ...]

    @property
    def foreseen(self) -> Foreseen:
        total = Foreseen()
        for share in self.shards:
            total = total.plus(share.foreseen)
        return total


def newest(store: Store, uri: str) -> Plan | None:
    """Raises InputError: what is there is no plan."""
    found = list(numbered(store, uri).values())
    if not found:
        return None
    try:
        return Plan.model_validate_json(store.read(found[-1]))
    except ValidationError as error:
        raise InputError(f"{found[-1]} is not a plan ({error.errors()[0]['msg']}); use another run name") from None


def make_plan(store: Store, stage_uri: str, ceiling: Amount, foreseen: Callable[[], Sequence[Foreseen]]) -> Plan:
    """The newest plan if it is still right, else a new one: shards share what batches have not spent.

    Args:
        foreseen: of each shard; asked only where there is no plan yet.
    """
    uri = plan_uri(stage_uri)
    there = newest(store, uri)
    shards = [share.foreseen for share in there.shards] if there is not None else list(foreseen())
    weights = {index: one.pico or one.tokens_in + one.tokens_out for index, one in enumerate(shards)}
    parts = shared_out(ceiling.minus(batches_account(store, stage_uri, ceiling, "").taken()), weights)
    plan = Plan(ceiling=ceiling, shards=tuple(Share(foreseen=one, part=parts[n]) for n, one in enumerate(shards)))
    if plan != there and append(store, uri, plan.line(), len(numbered(store, uri))) is None:
        raise InputError(f"{uri}: two processes prepare this run at once; let one of them")
    return plan


def known_plan(store: Store, stage_uri: str, ceiling: Amount) -> Plan | None:
    """The plan, for a process that did not make it; None where there is none and nothing is limited.

    Raises SettingsError: it has another ceiling; InputError: there is none, and there is a ceiling to keep.
    """
    uri = plan_uri(stage_uri)
    plan = newest(store, uri)
    if plan is None and ceiling != ENDLESS:
        raise InputError(f"{uri} holds no plan, so nobody knows this shard's part of the budget; run --part prepare")
    if plan is not None and Amount(*plan.ceiling) != ceiling:
        raise SettingsError(
            f"the budget is {told(ceiling)} here, and was {told(Amount(*plan.ceiling))} in --part prepare; run that "
            "part again with the same budget"
        )
    return plan


def check_prices(prices: Prices, models: Iterable[str], ceiling: Amount) -> None:
    """Raises SettingsError: dollars are limited, and nobody knows what a model costs."""
    unknown = [model for model in models if prices.of(model) is None]
    if unknown and ceiling.pico != UNLIMITED:
        raise SettingsError(
            f"{FLAGS[0]} {dollars(ceiling.pico)}: unknown price of {', '.join(unknown)}, so nobody can keep to it. "
            "Give the price with --prices FILE (vcot/teacher/prices.toml shows the form), or limit --budget-tokens"
        )


def plan_uri(stage_uri: str) -> str:
    return join(stage_uri, "_budget", "plan")


def shard_account(store: Store, stage_uri: str, index: int, part: Amount, holder: str) -> Account:
    return Account(store, join(stage_uri, "_budget", f"{index:05d}"), part, holder)


def batches_account(store: Store, stage_uri: str, part: Amount, holder: str) -> Account:
    return Account(store, join(stage_uri, "_budget", "batches"), part, holder)


def told(ceiling: Amount) -> str:
    """ "--budget-usd $5.00", or "unlimited"."""
    said = [
        f"{flag} {value}" for flag, value, n in zip(FLAGS, written(ceiling), ceiling, strict=True) if n != UNLIMITED
    ]
    return ", ".join(said) or "unlimited"


def written(amount: Amount) -> tuple[str, str, str]:
    """In the order of FLAGS."""
    return dollars(amount.pico), f"{amount.tokens:,}", f"{amount.requests:,}"


def ceiling_of(usd: Decimal | None, tokens: int | None, requests: int | None) -> Amount:
    return Amount(UNLIMITED if usd is None else int(usd * PICO), tokens or UNLIMITED, requests or UNLIMITED)
