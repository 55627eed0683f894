"""Prices and tokens before anything is sent: by the published formulas, exact to the last digit."""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from tests.teacher.made import sample
from vcot.errors import SettingsError
from vcot.storage import Store
from vcot.teacher.costs import prompt_tokens
from vcot.teacher.prices import PICO, Price, dollars, read_prices
from vcot.teacher.request import Picture, Prompt, Request

OURS = read_prices(Store())


def price(model: str) -> Price:
    found = OURS.of(model)
    assert found is not None, model
    return found


def test_every_price_says_when_and_where_it_was_read() -> None:
    assert len(OURS.models) >= 8
    for one in OURS.models.values():
        assert datetime.date(2025, 1, 1) <= one.as_of <= datetime.date.today()
        assert one.source
        assert one.cached is not None
        assert one.cached < one.input < one.output
    names = [name for model, one in OURS.models.items() for name in (model, *one.also)]
    assert len(names) == len(set(names))


def test_a_snapshot_costs_what_the_table_says_and_an_unknown_one_is_not_guessed() -> None:
    assert price("gpt-4o-2024-11-20") == price("gpt-4o")
    assert OURS.of("gpt-4o-2024-05-13") is None
    assert OURS.of("my-model") is None


def test_a_million_tokens_cost_the_price_of_a_million() -> None:
    gpt = price("gpt-4o")
    assert gpt.cost(10**6, 0) == 2.5 * PICO
    assert gpt.cost(0, 10**6) == 10 * PICO
    assert gpt.cost(10**6, 0, 400_000) == 0.6 * 2.5 * PICO + 0.4 * 1.25 * PICO
    assert gpt.cost(10**6, 10**6, batch=True) == 6.25 * PICO
    assert gpt.cost(1, 0) == 2_500_000
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
def test_pictures_have_the_tokens_of_the_published_formula(model: str, width: int, height: int, tokens: int) -> None:
    formula = price(model).image
    assert formula is not None
    assert formula.tokens(width, height) == tokens == formula.tokens(height, width)


def test_the_ceiling_of_a_prompt_is_its_bytes_and_its_pictures_by_formula() -> None:
    image = sample(width=1024, height=1024).image
    words = Request("reason", Prompt("p", 1, "Rules. " * 100), ("Frage: größer? " * 50,), "gpt-4o")
    shown = Request("reason", words.prompt, (Picture(image, 512), *words.parts), "gpt-4o")
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
        ("version = 1\n[models.m]\ninput = -1", r"models\.m\.input"),
        ("version = 2\n[models]", "version"),
        ("{}", "not TOML"),
        (OWN.replace("input = 0", "inputs = 0"), "models.mine"),
        (None, "no such file"),
    ],
)
def test_a_file_that_is_no_table_is_told(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "own.toml").write_text(text)
    with pytest.raises(SettingsError, match=rf"--prices .*own\.toml.*{says}"):
        read_prices(Store(), str(tmp_path / "own.toml"))


def test_money_is_told_with_the_digits_that_matter() -> None:
    assert [dollars(n) for n in (0, 12 * PICO, 1234567 * 10**9, 42 * 10**8, 37 * 10**5)] == [
        "$0.00", "$12.00", "$1,234.57", "$0.0042", "$0.0000037",
    ]  # fmt: skip
