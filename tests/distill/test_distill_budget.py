"""Prices and tokens before anything is sent, and the budget, which no number of requests or processes passes."""

from __future__ import annotations

import asyncio
import datetime
import random
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.distill.made import sample
from tests.s3 import *  # noqa: F403
from vcot.distill.budget import Lease, Ledger
from vcot.distill.costs import (
    BELIEVED_TOKENS,
    NOTHING,
    PICO,
    UNLIMITED,
    Costs,
    Price,
    Usage,
    prompt_tokens,
    read_prices,
    total,
)  # fmt: skip
from vcot.distill.request import Prompt, Request, ShownImage
from vcot.errors import BudgetSpent, InputError, SettingsError
from vcot.records import Completion
from vcot.storage import Store


def ledger(folder: Path | str, pico: int = UNLIMITED, tokens: int = UNLIMITED, requests: int = UNLIMITED) -> Ledger:
    return Ledger(Store(), str(folder), Usage(pico, tokens, requests))


def taken(folder: Path | str) -> Usage:
    return ledger(folder).taken()


def test_two_processes_never_take_more_than_there_is_and_what_comes_back_can_be_taken_again(any_place: str) -> None:
    one, other = (ledger(any_place, 100, requests=10) for _ in range(2))
    assert one.take(Usage(60, 30, 6), Usage(60, 30, 6)) == Usage(60, 30, 6)
    assert other.take(Usage(50, 5, 1), Usage(50, 5, 1)) is None
    assert other.take(Usage(40, 5, 1), Usage(40, 30, 4)) == Usage(40, 30, 1)
    assert one.take(Usage(1, 0, 0), Usage(1, 0, 0)) is None
    other.give_back(Usage(25, 10, 0))
    assert one.take(Usage(20, 5, 1), Usage(25, 5, 1)) == Usage(20, 5, 1)
    assert taken(any_place) == Usage(95, 55, 8)
    one.give_back(Usage(-2, -3, 0))  # more was spent than was taken
    assert taken(any_place) == Usage(97, 58, 8)


def test_entry_that_is_none_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "_budget").mkdir()
    (tmp_path / "_budget" / "0000000001.json").write_text("{}")
    with pytest.raises(InputError, match=r"0000000001\.json is damaged"):
        taken(tmp_path)


@pytest.mark.parametrize("processes", [1, 3])
def test_what_is_spent_and_reserved_never_passes_the_budget(tmp_path: Path, processes: int) -> None:
    """Tries of any size, and each process has work for all of it: all is used in the end but less than a try each."""
    budget, tries, rng = Usage(4_000, UNLIMITED, 240), 220, random.Random(7)
    spent: list[Usage] = []
    reserved = [NOTHING]

    async def ask(lease: Lease) -> None:
        worst = Usage(rng.randrange(20, 90), 10, 1)
        await lease.reserve(worst)
        reserved[0] = reserved[0].plus(worst)
        assert reserved[0].plus(total(spent)).within(budget)
        await asyncio.sleep(rng.random() / 200)
        real = Usage(rng.randrange(worst.pico + 1), 5, 1)
        reserved[0] = reserved[0].minus(worst)
        spent.append(real)
        lease.settle(worst, real)

    async def process() -> int:
        lease = Lease(ledger(tmp_path, *budget), 3)
        done = await asyncio.gather(*[ask(lease) for _ in range(tries)], return_exceptions=True)
        await lease.close()
        return sum(isinstance(end, BudgetSpent) for end in done)

    async def all_of_them() -> int:
        return sum(await asyncio.gather(*[process() for _ in range(processes)]))

    refused = asyncio.run(all_of_them())
    assert refused + len(spent) == tries * processes
    assert refused > 0
    assert taken(tmp_path) == total(spent)  # what was not spent went back
    assert total(spent).pico > 4_000 - 90 * processes


def test_killed_process_has_spent_its_lease_which_is_a_share_of_what_is_left(tmp_path: Path) -> None:
    worst = Usage(10, 1, 1)
    asyncio.run(Lease(ledger(tmp_path, 64 * 30), 3).reserve(worst))
    assert taken(tmp_path).pico == 30
    assert ledger(tmp_path, 64 * 30).take(worst, Usage(4000, 4, 4)) == Usage((64 * 30 - 30) // 64, 4, 4)


def test_request_that_is_called_off_while_it_takes_loses_nothing(tmp_path: Path) -> None:
    async def called_off() -> None:
        lease = Lease(ledger(tmp_path, 100, 100, 100), 3)
        task = asyncio.create_task(lease.reserve(Usage(10, 1, 1)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await lease.close()

    asyncio.run(called_off())
    assert taken(tmp_path) == NOTHING


def test_what_comes_home_while_storage_is_asked_counts(tmp_path: Path) -> None:
    """The next request must not be refused because what it needs came back while the ledger said no."""
    home, asked = threading.Event(), threading.Event()

    class Slow(Ledger):
        def take(self, *amounts: Any) -> Usage | None:
            granted = super().take(*amounts)
            if granted is None:
                asked.set()
                home.wait(60)
            return granted

    async def spend() -> None:
        lease, worst = Lease(Slow(Store(), str(tmp_path), Usage(40, UNLIMITED, UNLIMITED)), 2), Usage(40, 1, 1)
        await lease.reserve(worst)
        second = asyncio.create_task(lease.reserve(worst))
        await asyncio.to_thread(asked.wait, 60)
        lease.settle(worst, NOTHING)
        home.set()
        await second

    asyncio.run(spend())


# --- what it costs

PRICES = read_prices(Store())
REQUEST = Request("reason", Prompt("p", 1, "Rules."), ("Where is it?",), "gpt-4o", reply_tokens=256)

counts = st.integers(0, 10**4) | st.integers(0, 10**7) | st.sampled_from([10**12, 10**400])


@given(counts, counts, counts, st.booleans())
def test_no_counts_take_more_than_can_be_believed_and_none_take_nothing(
    tokens_in: int, tokens_out: int, cached: int, batch: bool
) -> None:
    costs = Costs(PRICES)
    worst = costs.worst(REQUEST, batch=batch)
    said = {"tokens_in": tokens_in, "tokens_out": tokens_out, "tokens_cached": cached}
    reply, spent = costs.spent(Completion(text="yes", model="m", finish_reason="stop", **said), worst)
    assert 0 < reply.tokens_in <= BELIEVED_TOKENS
    assert 0 < reply.tokens_out <= BELIEVED_TOKENS
    assert 0 <= reply.tokens_cached <= reply.tokens_in
    assert spent == Usage(round((reply.cost or 0) * PICO), reply.tokens_in + reply.tokens_out, 1)
    assert spent.within(worst.usage) or reply.tokens_in > worst.tokens_in or reply.tokens_out > worst.tokens_out
    assert costs.worst(REQUEST).tokens_in <= max(worst.tokens_in, reply.tokens_in + 1)
    longer = reply.tokens_out > worst.tokens_out  # then the next may be twice as long
    assert costs.worst(REQUEST).tokens_out == (min(2 * reply.tokens_out, BELIEVED_TOKENS) if longer else 256)


def price(model: str) -> Price:
    found = PRICES.of(model)
    assert found is not None, model
    return found


def test_every_price_says_when_and_where_it_was_read() -> None:
    assert len(PRICES.models) >= 8
    for one in PRICES.models.values():
        assert datetime.date(2025, 1, 1) <= one.as_of <= datetime.date.today()
        assert one.source
        assert one.cached is not None
        assert one.cached < one.input < one.output
    names = [name for model, one in PRICES.models.items() for name in (model, *one.also)]
    assert len(names) == len(set(names))


def test_a_million_tokens_cost_the_price_of_a_million() -> None:
    gpt = price("gpt-4o")
    assert gpt.cost(10**6, 0) == 2.5 * PICO
    assert gpt.cost(0, 10**6) == 10 * PICO
    assert gpt.cost(10**6, 0, 400_000) == 0.6 * 2.5 * PICO + 0.4 * 1.25 * PICO
    assert gpt.cost(10**6, 10**6, batch=True) == 6.25 * PICO
    assert gpt.cost(1, 0) == 2_500_000
    assert price("gpt-4o-2024-11-20") == gpt
    assert PRICES.of("gpt-4o-2024-05-13") is None  # nothing is guessed
    assert sum(gpt.cost(1, 1) for _ in range(10**4)) == gpt.cost(10**4, 10**4)


@pytest.mark.parametrize(
    ("model", "width", "height", "tokens"),
    [
        ("gpt-4o", 512, 512, 255), ("gpt-4o", 1024, 1024, 765), ("gpt-4o", 2048, 4096, 1105),  # the guide's examples
        ("gpt-4o", 1, 1, 255), ("gpt-4o", 768, 768, 765), ("gpt-4o", 513, 512, 425), ("gpt-4o-mini", 512, 512, 8500),
        ("gpt-4.1-mini", 1024, 1024, 1659),  # 32 × 32 patches × 1.62
        ("gpt-4.1-mini", 4000, 4000, 2489),  # no more than 1,536 of them
    ],
)  # fmt: skip
def test_images_have_the_tokens_of_the_published_formula(model: str, width: int, height: int, tokens: int) -> None:
    formula = price(model).image
    assert formula is not None
    assert formula.tokens(width, height) == tokens == formula.tokens(height, width)


def test_the_ceiling_of_a_prompt_is_its_bytes_and_its_images_by_formula() -> None:
    image = sample(width=1024, height=1024).image
    words = Request("reason", Prompt("p", 1, "Rules. " * 100), ("Frage: größer? " * 50,), "gpt-4o")
    shown = Request("reason", words.prompt, (ShownImage(image, 512), *words.parts), "gpt-4o")
    text = len(("Rules. " * 100 + "Frage: größer? " * 50).encode())
    estimate = prompt_tokens(words, price("gpt-4o"))
    assert text / 5 < estimate.likely < text < estimate.most
    assert prompt_tokens(shown, price("gpt-4o")).most - estimate.most == 255
    assert prompt_tokens(shown, None).most - estimate.most == (-(-512 // 14)) ** 2
    schema = Request("reason", words.prompt, words.parts, "gpt-4o", schema={"type": "object", "title": "x" * 500})
    assert prompt_tokens(schema, None).most > estimate.most + 500


OWN = """
version = 1
[models.mine]
input = 0
output = 0
as_of = 2026-01-01
source = "our own card"
[models."gpt-4o"]
input = 1.0
output = 2.0
as_of = 2026-01-01
source = "our contract"
"""


def test_a_file_of_ones_own_adds_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(OWN)
    prices = read_prices(Store(), str(tmp_path / "own.toml"))
    mine, contract = prices.of("mine"), prices.of("gpt-4o")
    assert mine is not None
    assert mine.cost(10**6, 10**6) == 0
    assert contract is not None
    assert (contract.input, contract.cost(10**6, 0, 10**6)) == (Decimal("1.0"), PICO)  # no cheaper where none is said
    assert prices.of("o3") == price("o3")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version = 1\n[models.m]\ninput = -1", r"models\.m\.input"), ("version = 2\n[models]", "version"),
        ("{}", "not TOML"), (OWN.replace("input = 0", "inputs = 0"), "models.mine"), (None, "no such file"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_table_is_told(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "own.toml").write_text(text)
    with pytest.raises(SettingsError, match=rf"--prices .*own\.toml.*{says}"):
        read_prices(Store(), str(tmp_path / "own.toml"))
