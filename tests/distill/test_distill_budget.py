"""A budget is never passed: by no number of requests at once, of processes, of kills."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.s3 import *  # noqa: F403
from vcot.distill.budget import Lease, Ledger
from vcot.distill.costs import NOTHING, UNLIMITED, Usage, total
from vcot.errors import BudgetSpent, InputError
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


def test_lease_is_no_more_than_a_share_of_what_is_left(tmp_path: Path) -> None:
    mine = ledger(tmp_path, 64_000, requests=100)
    assert mine.take(Usage(10, 1, 1), Usage(40, 4, 4)) == Usage(40, 4, 1)
    assert mine.take(Usage(10, 1, 1), Usage(4000, 4, 4)) == Usage(63_960 // 64, 4, 1)


def test_more_spent_than_taken_is_written_down_too(tmp_path: Path) -> None:
    mine = ledger(tmp_path, 100, 100, 100)
    mine.take(Usage(10, 10, 10), Usage(10, 10, 10))
    mine.give_back(Usage(-5, 3, 0))
    assert taken(tmp_path) == Usage(15, 7, 10)


def test_entry_that_is_none_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "_budget").mkdir()
    (tmp_path / "_budget" / "0000000001.json").write_text("{}")
    with pytest.raises(InputError, match=r"0000000001\.json is not an entry of a budget"):
        taken(tmp_path)


def test_without_a_limit_nothing_is_written(tmp_path: Path) -> None:
    async def spend() -> None:
        lease = Lease(ledger(tmp_path), 4)
        await lease.reserve(Usage(10, 1, 1))
        lease.settle(Usage(10, 1, 1), Usage(10, 1, 1))
        await lease.close()

    asyncio.run(spend())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("processes", [1, 3])
def test_what_is_spent_and_reserved_never_passes_the_budget(tmp_path: Path, processes: int) -> None:
    """Tries of any size, and each process has work for all of it: all is used in the end but less than a try each."""
    budget, tries, rng = Usage(10_000, UNLIMITED, 600), 400, random.Random(7)
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

    async def all_of_them() -> list[int]:
        return await asyncio.gather(*[process() for _ in range(processes)])

    refused = sum(asyncio.run(all_of_them()))
    assert refused + len(spent) == tries * processes
    assert refused > 0
    assert taken(tmp_path) == total(spent)  # what was not spent went back
    assert total(spent).pico > 10_000 - 90 * processes


def spend_all(mine: Ledger, worst: Usage, requests: int = 1) -> int:
    """How many requests one process may send, one after another."""

    async def spend() -> int:
        lease, sent = Lease(mine, requests), 0
        try:
            while True:
                await lease.reserve(worst)
                lease.settle(worst, worst)
                sent += 1
        except BudgetSpent:
            return sent

    return asyncio.run(spend())


def test_what_a_killed_process_took_counts_as_spent(tmp_path: Path) -> None:
    budget = 64 * 30
    asyncio.run(Lease(ledger(tmp_path, budget), 3).reserve(Usage(10, 1, 1)))
    assert taken(tmp_path).pico == 30  # its lease
    assert spend_all(ledger(tmp_path, budget), Usage(10, 1, 1)) == (budget - 30) // 10


def test_lease_holds_no_more_than_its_requests_need(tmp_path: Path) -> None:
    """Where requests cost less than they might, what comes back is used before more is taken."""

    async def spend() -> None:
        lease, worst = Lease(ledger(tmp_path, 10**6), 4), Usage(100, 10, 1)
        for _ in range(50):
            await lease.reserve(worst)
            lease.settle(worst, Usage(1, 1, 1))

    asyncio.run(spend())
    assert taken(tmp_path).pico <= 50 + 4 * 100


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
