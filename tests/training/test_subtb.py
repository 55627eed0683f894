"""What a GFlowNet learns by, where everything can be enumerated: is what it samples what was wanted?

A vanishing loss proves nothing: with an end that is counted twice, or a reward by the token, it vanishes too. So what
is held against a bound is the distance from the posterior.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcot.training.subtb import balance_across, balance_loss, falling, interpolated, residuals, stops

SYMBOLS, LONGEST = 3, 4
STRINGS = [string for length in range(LONGEST + 1) for string in product(range(SYMBOLS), repeat=length)]
STEPS = 400
PLACE = {string: number for number, string in enumerate(STRINGS)}


class World:
    """121 strings of three symbols, each with a reward drawn at random, and a sampler with a table of its own."""

    def __init__(self, seed: int, temperature: float = 1.0) -> None:
        chance = torch.Generator().manual_seed(seed)
        self.log_reward = 2 * torch.randn(len(STRINGS), generator=chance, dtype=torch.float64) / temperature
        self.table = torch.zeros(len(STRINGS), SYMBOLS + 1, dtype=torch.float64, requires_grad=True)  # the last: end
        self.lengths = torch.tensor([len(string) for string in STRINGS])
        prefixes = [[PLACE[string[:t]] for t in range(len(string) + 1)] for string in STRINGS]
        self.prefixes = torch.tensor([each + [0] * (LONGEST + 1 - len(each)) for each in prefixes])
        self.following = torch.tensor([list(string) + [0] * (LONGEST - len(string)) for string in STRINGS])

    def log_q(self) -> tuple[torch.Tensor, torch.Tensor]:
        """log q(token | prefix) and log q(end | prefix), along each string: [121, 4], [121, 5]."""
        likely = self.table.log_softmax(-1)[self.prefixes]
        tokens = likely[:, :-1].gather(2, self.following[:, :, None])[:, :, 0]
        ends = likely[:, :, SYMBOLS]
        return tokens, torch.where(self.lengths[self.prefixes] == LONGEST, 0.0, ends)  # there it can only end

    def sampled(self) -> torch.Tensor:
        """P(string) of the sampler."""
        tokens, ends = self.log_q()
        said = residuals(torch.zeros(()), tokens, ends)
        return (-said.gather(1, self.lengths[:, None])[:, 0]).exp().detach()

    def distance(self) -> float:
        """Total variation between what is sampled and what is wanted."""
        return float((self.sampled() - self.log_reward.softmax(0)).abs().sum() / 2)

    def learn(self, steps: int, decay: float = 1.0, defect: Any = None, keep: Any = None, across: float = 0.0) -> float:
        """By all strings at each step; the last loss. defect: changes (log rewards along strings [121, 5], ends,
        lengths)."""
        optimiser = torch.optim.Adam([self.table], lr=0.2, betas=(0.9, 0.99))
        for _ in range(steps):
            tokens, ends = self.log_q()
            along, lengths = self.log_reward[self.prefixes], self.lengths
            if defect is not None:
                along, ends, lengths = defect(self, along, ends, lengths)
            found = residuals(along, tokens, ends)
            each = balance_loss(found, lengths, decay)
            if across:
                whole, one = found.gather(1, lengths[:, None])[:, 0], torch.zeros_like(lengths)
                each = each + across * balance_across(whole, one, torch.ones_like(whole))
            if keep is not None:
                each = each[keep(self)]
            loss = each.mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return float(loss.detach())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_sampler_becomes_the_posterior(seed: int) -> None:
    world = World(seed)
    assert world.distance() > 0.3
    world.learn(STEPS)
    assert world.distance() < 0.01


def test_with_another_temperature_of_the_reward_it_follows() -> None:
    cold, warm = World(1, temperature=0.5), World(1, temperature=2.0)
    for world in (cold, warm):
        world.learn(STEPS)
        assert world.distance() < 0.01
    assert float((cold.sampled() - warm.sampled()).abs().sum() / 2) > 0.3


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_neighbours_alone_and_all_pairs_have_one_optimum(decay: float) -> None:
    world, other = World(2), World(2)
    world.learn(STEPS)
    other.learn(STEPS, decay)
    assert other.distance() < 0.01
    assert float((world.sampled() - other.sampled()).abs().sum() / 2) < 0.01


def test_whole_rationales_held_against_each_other_have_the_same_optimum_and_come_there_sooner() -> None:
    world, other = World(2), World(2)
    world.learn(60)
    other.learn(60, across=1.0)
    assert other.distance() < 0.7 * world.distance()
    other.learn(STEPS, across=1.0)
    assert other.distance() < 0.01


DEFECTS = {
    "the end is counted twice": lambda world, along, ends, n: (_last(world, along, -1.0), ends, n),
    "a reward by the token": lambda world, along, ends, n: (along / (1 + torch.arange(LONGEST + 1)), ends, n),
    "the end is never learned": lambda world, along, ends, n: (along, ends.detach(), n),
    "padding counts": lambda world, along, ends, n: (along, ends, torch.full_like(n, LONGEST)),
}


def _last(world: World, along: torch.Tensor, more: float) -> torch.Tensor:
    """Something added to the reward of whole strings alone, not to those of their prefixes."""
    whole = torch.arange(LONGEST + 1) == world.lengths[:, None]
    return along + more * whole


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_shows_in_the_distance_even_where_the_loss_vanishes(defect: str) -> None:
    world = World(1)
    loss = world.learn(STEPS, defect=DEFECTS[defect])
    assert world.distance() > 0.05, loss


def test_rationales_that_are_never_learned_from_keep_too_much() -> None:
    """Why --tolerance is off by default: a filter by reward leaves what it drops as likely as it was."""
    likely = World(3)
    kept = likely.log_reward >= likely.log_reward.quantile(0.9)
    assert likely.learn(STEPS, keep=lambda world: kept) < 1e-9
    assert likely.distance() > 0.1


# --- the loss itself -----------------------------------------------------------------------------------------


def by_pairs(along: torch.Tensor, length: int, decay: float) -> torch.Tensor:
    """The double loop."""
    total, weight = torch.zeros((), dtype=along.dtype), 0.0
    for i in range(length + 1):
        for j in range(i + 1, length + 1):
            own = float(decay) ** (j - i - 1)
            total, weight = total + own * (along[j] - along[i]) ** 2, weight + own
    return total / weight if weight else total


def test_distances_from_a_questions_mean_have_the_gradient_of_its_variance() -> None:
    chance = torch.Generator().manual_seed(3)
    whole = torch.randn(7, generator=chance, dtype=torch.float64)
    asked, weights = torch.tensor([4, 9, 4, 4, 9, 2, 4]), torch.tensor([1.0, 2, 0, 3, 1, 1, 1], dtype=torch.float64)
    ours, plain = whole.clone().requires_grad_(), whole.clone().requires_grad_()
    (balance_across(ours, asked, weights) * weights).sum().backward()
    total = torch.zeros((), dtype=torch.float64)
    for question in (2, 4, 9):
        own, weight = plain[asked == question], weights[asked == question]
        total = total + (weight * (own - (weight * own).sum() / weight.sum()) ** 2).sum()
    total.backward()
    assert torch.allclose(ours.grad, plain.grad)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.sampled_from([0.0, 0.3, 0.9, 1.0]), st.integers(0, 99))
def test_one_pass_is_the_double_loop_and_so_are_its_gradients(lengths: list[int], decay: float, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    table = 3 * torch.randn(len(lengths), max(lengths) + 1, generator=chance, dtype=torch.float64)
    ours, plain = table.clone().requires_grad_(), table.clone().requires_grad_()
    found = balance_loss(ours, torch.tensor(lengths), decay)
    expected = torch.stack([by_pairs(row, length, decay) for row, length in zip(plain, lengths, strict=True)])
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12)
    found.sum().backward()
    (expected.sum() + 0 * plain.sum()).backward()
    assert ours.grad is not None
    assert plain.grad is not None
    assert torch.allclose(ours.grad, plain.grad, atol=1e-9)


def test_what_stands_behind_a_rationale_counts_nothing() -> None:
    along = torch.tensor([[1.0, 2.0, 4.0, 0.0, 0.0], [1.0, 2.0, 4.0, float("nan"), float("inf")]])
    first, second = balance_loss(along, torch.tensor([2, 2]))
    assert first == second


def test_rewards_between_stops_lie_on_a_line() -> None:
    assert stops(10, 4) == [0, 4, 8, 10]
    assert stops(8, 4) == [0, 4, 8]
    assert stops(0, 4) == [0]
    assert stops(3, 1) == [0, 1, 2, 3]
    assert interpolated([0.0, 4.0, 8.0, 6.0], [0, 4, 8, 10]) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 7, 6]
    curved = [(t / 10) ** 2 for t in range(41)]  # second differences of 0.02
    at = stops(40, 8)
    off = [abs(a - b) for a, b in zip(interpolated([curved[t] for t in at], at), curved, strict=True)]
    assert max(off) == pytest.approx(0.02 * 8**2 / 8)


def test_values_fall_in_equal_steps() -> None:
    assert [falling(1.0, 0.5, step, 5) for step in (0, 2, 5, 9)] == pytest.approx([1.0, 0.8, 0.5, 0.5])
    assert falling(1.0, 0.5, 0, 0) == 0.5
