"""A budget is never passed: by no number of requests at once, of processes, of kills."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vcot.teacher.account import Account
from vcot.teacher.amount import ENDLESS, NOTHING, UNLIMITED, Amount, shared_out, total

from tests.s3 import *  # noqa: F403
from vcot.errors import BudgetSpent, InputError
from vcot.storage import Store
from vcot.teacher.budget import Purse


def account(folder: Path | str, part: Amount, holder: str = "a") -> Account:
    return Account(Store(), str(folder), part, holder)


def purse(*accounts: Account, chunk: int = 3) -> Purse:
    return Purse(lambda: accounts, chunk, lambda missing: f"{missing} is missing")


amounts = st.builds(Amount, *[st.integers(0, 10**15) | st.just(UNLIMITED)] * 3)


@given(amounts, st.lists(st.integers(0, 10**6), min_size=1, max_size=40))
def test_parts_are_together_the_whole(ceiling: Amount, weights: list[int]) -> None:
    parts = shared_out(ceiling, dict(enumerate(weights)))
    assert list(parts) == list(range(len(weights)))
    for kind, limit in enumerate(ceiling):
        if limit == UNLIMITED:
            assert {part[kind] for part in parts.values()} == {UNLIMITED}
        else:
            assert sum(part[kind] for part in parts.values()) == limit
            assert all(part[kind] >= 0 for part in parts.values())


def test_two_holders_never_take_more_than_there_is_and_what_comes_back_can_be_taken_again(any_place: str) -> None:
    part = Amount(100, UNLIMITED, 10)
    one, other = account(any_place, part), account(any_place, part, "b")
    assert one.take(Amount(10, 5, 1), Amount(60, 30, 6)) == Amount(60, 30, 6)
    assert other.take(Amount(10, 5, 1), Amount(60, 30, 6)) == Amount(40, 30, 4)  # what is left
    assert one.take(Amount(1, 0, 0), Amount(1, 0, 0)) is None
    other.give_back(Amount(25, 10, 2))
    assert one.take(Amount(20, 5, 1), Amount(60, 30, 6)) == Amount(25, 30, 2)
    assert account(any_place, part).taken() == Amount(100, 80, 10)


def test_more_spent_than_taken_stands_there_too(tmp_path: Path) -> None:
    mine = account(tmp_path, Amount(100, 100, 100))
    mine.take(NOTHING, Amount(10, 10, 10))
    mine.give_back(Amount(-5, 3, 0))
    assert mine.taken() == Amount(15, 7, 10)


def test_an_entry_that_is_none_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "0000000001.json").write_text("{}")
    with pytest.raises(InputError, match=r"0000000001\.json is not an entry of a budget"):
        account(tmp_path, ENDLESS).taken()


@pytest.mark.parametrize("processes", [1, 3])
def test_what_is_spent_and_reserved_never_passes_the_ceiling(tmp_path: Path, processes: int) -> None:
    """Tries of any size, and each process has work for all of it: all is used in the end but less than a try each."""
    ceiling, tries, rng = Amount(10_000, UNLIMITED, 600), 400, random.Random(7)
    spent: list[Amount] = []
    reserved = [NOTHING]

    async def ask(mine: Purse) -> None:
        worst = Amount(rng.randrange(20, 90), 10, 1)
        await mine.reserve(worst)
        reserved[0] = reserved[0].plus(worst)
        assert reserved[0].plus(total(spent)).within(ceiling)
        await asyncio.sleep(rng.random() / 200)
        real = Amount(rng.randrange(worst.pico + 1), 5, 1)
        reserved[0] = reserved[0].minus(worst)
        spent.append(real)
        mine.settle(worst, real)

    async def process(name: str) -> int:
        mine = purse(account(tmp_path, ceiling, name))
        done = await asyncio.gather(*[ask(mine) for _ in range(tries)], return_exceptions=True)
        await mine.close()
        return sum(isinstance(end, BudgetSpent) for end in done)

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*[process(f"p{n}") for n in range(processes)])

    refused = sum(asyncio.run(all_of_them()))
    assert refused + len(spent) == tries * processes
    assert refused > 0
    assert account(tmp_path, ceiling).taken() == total(spent)  # what was not spent went back
    assert total(spent).pico > 10_000 - 90 * processes


def test_what_a_killed_process_took_counts_as_spent(tmp_path: Path) -> None:
    ceiling = Amount(100, UNLIMITED, UNLIMITED)

    async def killed() -> None:
        await purse(account(tmp_path, ceiling, "killed")).reserve(Amount(10, 1, 1))

    async def next_one() -> int:
        mine = purse(account(tmp_path, ceiling, "next"), chunk=1)
        sent = 0
        try:
            while True:
                await mine.reserve(Amount(10, 1, 1))
                mine.settle(Amount(10, 1, 1), Amount(10, 1, 1))
                sent += 1
        except BudgetSpent:
            return sent

    asyncio.run(killed())
    assert account(tmp_path, ceiling).taken().pico == 30  # its chunk
    assert asyncio.run(next_one()) == 7


def test_a_request_that_is_called_off_while_it_takes_loses_nothing(tmp_path: Path) -> None:
    async def called_off() -> None:
        mine = purse(account(tmp_path, Amount(100, 100, 100)))
        task = asyncio.create_task(mine.reserve(Amount(10, 1, 1)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await mine.close()

    asyncio.run(called_off())
    assert account(tmp_path, ENDLESS).taken() == NOTHING


def test_an_empty_part_goes_on_with_what_finished_shards_left(tmp_path: Path) -> None:
    own = account(tmp_path / "0", Amount(25, UNLIMITED, UNLIMITED))
    left = account(tmp_path / "1", Amount(20, UNLIMITED, UNLIMITED))

    async def spend() -> int:
        mine = purse(own, left, chunk=1)
        for sent in range(100):
            try:
                await mine.reserve(Amount(10, 1, 1))
            except BudgetSpent:
                return sent
            mine.settle(Amount(10, 1, 1), Amount(10, 1, 1))
        raise AssertionError

    assert asyncio.run(spend()) == 4
    assert (own.taken().pico, left.taken().pico) == (20, 20)


def test_what_comes_home_while_storage_is_asked_counts(tmp_path: Path) -> None:
    """Dollars are limited and requests are not, so the latter are taken only as far as the former go."""
    only = account(tmp_path, Amount(100, UNLIMITED, UNLIMITED))

    def slow() -> list[Account]:
        time.sleep(0.02)
        return [only]

    async def spend() -> int:
        mine, sent = Purse(slow, 2, lambda missing: f"{missing} is missing"), 0

        async def one() -> None:
            nonlocal sent
            await mine.reserve(Amount(40, 1, 1))
            await asyncio.sleep(0.03)
            mine.settle(Amount(40, 1, 1), Amount(5, 1, 1))
            sent += 1

        await asyncio.gather(*(one() for _ in range(40)), return_exceptions=True)
        return sent

    assert asyncio.run(spend()) == 13  # (100 - 40) / 5, and the one that took the last 40
