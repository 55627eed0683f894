"""What a try can cost and what its reply did cost, whatever an endpoint counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcot.records import Completion
from vcot.storage import Store
from vcot.teacher.costs import BELIEVED_TOKENS, Costs, Usage
from vcot.teacher.prices import PICO, read_prices
from vcot.teacher.request import Prompt, Request

PRICES = read_prices(Store())
REQUEST = Request("reason", Prompt("p", 1, "Rules."), ("Where is it?",), "gpt-4o", reply_tokens=256)

counts = st.integers(0, 10**4) | st.integers(0, 10**7) | st.sampled_from([10**12, 10**400])


def said(tokens_in: int = 0, tokens_out: int = 0, tokens_cached: int = 0) -> Completion:
    return Completion(
        text="yes", model="m", finish_reason="stop", tokens_in=tokens_in, tokens_out=tokens_out,
        tokens_cached=tokens_cached,
    )  # fmt: skip


@given(counts, counts, counts, st.booleans())
def test_no_counts_take_more_than_can_be_believed_and_none_take_nothing(
    tokens_in: int, tokens_out: int, cached: int, batch: bool
) -> None:
    costs = Costs(PRICES)
    worst = costs.worst(REQUEST, batch=batch)
    reply, spent = costs.spent(said(tokens_in, tokens_out, cached), worst)
    assert 0 < reply.tokens_in <= BELIEVED_TOKENS
    assert 0 < reply.tokens_out <= BELIEVED_TOKENS
    assert 0 <= reply.tokens_cached <= reply.tokens_in
    assert spent == Usage(round((reply.cost or 0) * PICO), reply.tokens_in + reply.tokens_out, 1)
    assert spent.within(worst.usage) or reply.tokens_in > worst.tokens_in or reply.tokens_out > worst.tokens_out
    assert costs.worst(REQUEST).tokens_in <= max(worst.tokens_in, reply.tokens_in + 1)
    assert costs.worst(REQUEST).tokens_out == max(worst.tokens_out, reply.tokens_out)


@pytest.mark.parametrize("batch", [False, True])
def test_a_reply_longer_than_allowed_is_paid_for_in_full_and_the_next_is_reserved_as_long(batch: bool) -> None:
    costs = Costs(PRICES)
    reply, spent = costs.spent(said(100, 9000), costs.worst(REQUEST, batch=batch))
    assert (reply.tokens_out, spent.tokens) == (9000, 9100)
    assert costs.worst(REQUEST, batch=batch).tokens_out == 9000
    _, spent = costs.spent(said(100, 9000), worst := costs.worst(REQUEST, batch=batch))
    assert spent.within(worst.usage)


@pytest.mark.parametrize("absurd", [BELIEVED_TOKENS + 1, 10**12])
def test_an_absurd_length_of_a_reply_is_taken_at_its_worst_and_teaches_nothing(absurd: int) -> None:
    costs = Costs(PRICES)
    worst = costs.worst(REQUEST)
    reply, _ = costs.spent(said(50, absurd), worst)
    assert reply.tokens_out == 256
    assert costs.worst(REQUEST) == worst


def test_a_batch_reply_without_counts_takes_half_of_what_a_single_one_does() -> None:
    costs = Costs(PRICES)
    (_, single), (_, batched) = (costs.spent(said(), costs.worst(REQUEST, batch=batch)) for batch in (False, True))
    assert (single.pico, single.tokens) == (2 * batched.pico, batched.tokens)
    assert batched == costs.worst(REQUEST, batch=True).usage


def test_a_model_without_a_price_still_takes_tokens_and_requests() -> None:
    costs = Costs(PRICES)
    reply, spent = costs.spent(said(), costs.worst_of("my-model", 500, 256, batch=False))
    assert (reply.cost, spent) == (None, Usage(0, 756, 1))
