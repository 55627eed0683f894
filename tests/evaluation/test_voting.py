"""Selection among draws: cases worked out by hand, the marginal against an enumerated posterior, and what must hold of
any draws."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcot.evaluation.voting import (
    MEASURES,
    METHODS,
    USUAL,
    Draw,
    Question,
    Scoring,
    by_budget,
    by_samples,
    clusters,
    lacot,
    marginal,
    scoring,
    select,
)
from vcot.grounding import Box


def draw(answer: Any, mean: float | None = -1.0, tokens: int = 10, right: bool = False) -> Draw:
    return Draw(answer, right, tokens, None if mean is None else [mean] * tokens)


def said(*answers: Any, choices: list[str] | None = None) -> list[list[int]]:
    return clusters([draw(answer) for answer in answers], choices)


def test_answers_that_say_the_same_are_one_cluster() -> None:
    assert said("The red gear.", "blue", "red gear", None, "Blue!") == [[0, 2], [1, 4]]
    assert said("3.1416", "4", "3.14", "four", "3.2") == [[0, 2], [1, 3], [4]]
    assert said("B", "up", "(a)", "down", "The answer is B", choices=["down", "up"]) == [[0, 1, 4], [2, 3]]
    assert said("B", "up") == [[0], [1]]
    assert said(None, None) == []


def test_answers_that_name_no_single_option_have_no_vote() -> None:
    choices = ["down", "up"]
    assert said("A or B", "(A) (B)", "A or B", "B", "sideways", choices=choices) == [[3]]
    assert select(Question([draw("A or B"), draw("A or B"), draw("B")], choices=choices)).chosen["majority"] == 2
    assert said("Yes, it is.", "Yes, there is.", "no", "yes or no", "No, none.") == [[0, 1], [2, 4], [3]]
    assert said("3.1", "3.14", "A", choices=["3.1", "3.14"]) == [[0, 2], [1]]


def test_box_sets_that_pair_off_are_one_cluster() -> None:
    a, near, far = Box(0, 0, 100, 100), Box(10, 0, 110, 100), Box(200, 200, 300, 300)
    assert said((a,), (far,), (near,), (a, far), (far, near), (), ()) == [[0, 2], [1], [3, 4], [5, 6]]
    assert said((a, near), (a, far)) == [[0], [1]]  # each box finds one partner
    assert said("5", (a,), "5") == [[0, 2], [1]]


def test_each_method_by_hand() -> None:
    """cat twice at -2, dog once at -0.5, cow once at -1; the marginal prefers cow."""
    draws = [draw("cat", -2.0), draw("dog", -0.5), draw("cat", -2.0), draw("cow", -1.0)]
    table = [[-3.0, -9.0, -2.0], [-3.0, -0.1, -0.2], [-0.7, -9.0, -1.0], [-3.0, -2.0, -0.3]]
    found = select(Question(draws, answer_logprobs=table))
    assert found.chosen == {"majority": 0, "cisc": 1, "best_of_n": 1, "marginal": 3}
    assert (found.missing, found.agreement) == ({}, 0.5)
    # e^(-2/T) + e^(-2/T) > e^(-0.5/T) where T > 1.5 / ln 2
    edge = 1.5 / math.log(2)
    assert select(Question(draws), temperature=edge * 1.01).chosen["cisc"] == 0
    assert select(Question(draws), temperature=edge * 0.99).chosen["cisc"] == 1


def test_of_equals_the_first_drawn_wins() -> None:
    found = select(Question([draw("b"), draw("a"), draw("a"), draw("b")], answer_logprobs=[[-1.0, -1.0]] * 4))
    assert set(found.chosen.values()) == {0}


def test_no_answer_never_wins_unless_there_is_no_other() -> None:
    draws = [draw(None, -0.1), draw(None, -0.1), draw(None, -0.1), draw("a", -5.0)]
    found = select(Question(draws, answer_logprobs=[None, [-2.0], [-1.0], [-3.0]]))
    assert set(found.chosen.values()) == {3}
    assert found.agreement == 0.25
    nothing = select(Question(draws[:3]), measures=MEASURES)
    assert (nothing.chosen, nothing.agreement) == (dict.fromkeys(METHODS, 0), 0.0)


def test_what_needs_log_probabilities_says_why_it_is_missing() -> None:
    found = select(Question([draw("a", None), draw("b"), draw("a", None)]))
    assert found.chosen == {"majority": 0}
    assert found.missing == {
        "cisc": "2 of 3 replies came without log-probabilities",
        "best_of_n": "2 of 3 replies came without log-probabilities",
        "marginal": "no answer was scored after the rationale of another reply",
    }
    one, other = Question([draw("a", None)]), Question([draw("a")], greedy=draw("a"))
    (point,) = by_samples([other, one])
    assert point.right.keys() == {"majority", "oracle"}
    assert point.missing["cisc"] == "1 of 2 questions: 1 of 1 replies came without log-probabilities"
    assert point.missing["greedy"] == "1 of 2 questions have no greedy reply"
    assert point.greedy_tokens is None


def test_the_marginal_is_the_enumerated_posterior() -> None:
    """Rationales of up to three symbols, each with its own distribution over answers."""
    dice = random.Random(0)
    rationales = [z for length in (1, 2, 3) for z in itertools.product("xyz", repeat=length)]
    raw = [dice.randint(1, 5) for _ in rationales]
    prior = [value / sum(raw) for value in raw]
    given_z = []
    for _ in rationales:
        row = [dice.random() ** 3 for _ in "abcd"]
        given_z.append([value / sum(row) for value in row])
    posterior = [sum(p * row[c] for p, row in zip(prior, given_z, strict=True)) for c in range(4)]
    logs = [[math.log(value) for value in row] for row in given_z]

    def close(found: list[float]) -> bool:
        return [math.exp(value) for value in found] == pytest.approx(posterior, rel=1e-12)

    # Each rationale drawn as often as it is likely.
    assert close(marginal([row for row, times in zip(logs, raw, strict=True) for _ in range(times)]))
    # A mean of logarithms in its place, as often seen, is another answer.
    geometric = [sum(p * row[c] for p, row in zip(prior, logs, strict=True)) for c in range(4)]
    assert not close(geometric)


def test_the_marginal_counts_probabilities_and_not_their_logarithms() -> None:
    """a is all but certain after one rationale and impossible after the other; b is unlikely after both."""
    assert marginal([[math.log(0.9), math.log(0.2)], [-50.0, math.log(0.2)]]) == pytest.approx(
        [math.log(0.45), math.log(0.2)]
    )
    assert marginal([[-math.inf, -1.0], [-math.inf, -1.0]]) == [-math.inf, -1.0]


def lacot_by_two_loops(question: Question, n: int) -> int:
    """As LaCoT's code does: a row for each draw's answer, equal ones side by side, a column for each rationale."""
    draws, groups = question.draws[:n], clusters(question.draws, question.choices)
    assert question.answer_logprobs is not None
    assert question.answer_tokens is not None
    means = []
    for draw in draws:
        row = []
        for other, likely in zip(draws, question.answer_logprobs, strict=False):
            column = next(c for c, group in enumerate(groups) if question.draws[group[0]].answer == draw.answer)
            assert likely is not None
            tokens = [*(other.logprobs or ())[: other.rationale_tokens], likely[column]]
            row.append(math.fsum(tokens) / (len(tokens) - 1 + question.answer_tokens[column]))
        means.append(sum(row) / len(row))
    return means.index(max(means))


def test_lacot_is_the_plain_double_loop() -> None:
    dice = random.Random(1)
    apart = 0
    for _ in range(200):
        answers = [dice.choice("abc") for _ in range(5)]
        draws = [
            Draw(answer, False, 9, [-dice.random() for _ in range(9)], rationale_tokens=dice.randint(1, 7))
            for answer in answers
        ]
        found = list(dict.fromkeys(answers))
        table = [[-9 * dice.random() for _ in found] for _ in draws]
        question = Question(draws, answer_logprobs=table, answer_tokens=[dice.randint(1, 4) for _ in found])
        for n in (1, 3, 5):
            chosen = select(question, n, measures=("lacot", "marginal")).chosen
            assert chosen["lacot"] == answers.index(answers[lacot_by_two_loops(question, n)])
            apart += chosen["lacot"] != chosen["marginal"]
    assert apart > 50


def test_lacot_by_hand() -> None:
    """Two rationales of 3 and 1 tokens, answers of 1 and 2 tokens."""
    assert lacot([(-3.0, 3), (-1.0, 1)], [[-1.0, -2.0], [-3.0, -8.0]], [1, 2]) == pytest.approx(
        [(-4 / 4 + -4 / 2) / 2, (-5 / 5 + -9 / 3) / 2]
    )


def test_lacot_without_counts_says_so_and_is_not_worked_out_unless_asked_for() -> None:
    question = Question([draw("a"), draw("b")], answer_logprobs=[[-1.0, -2.0]] * 2)
    assert select(question).chosen.keys() == {"majority", "cisc", "best_of_n", "marginal"}
    found = select(question, measures=MEASURES)
    assert found.missing == {"lacot": "the tokens of rationales and answers were not counted"}
    (_, point) = by_samples([question], measures=MEASURES)
    assert point.missing["lacot"].startswith("1 of 1 questions: the tokens of rationales")
    assert point.scoring is None


def test_only_the_measures_that_are_named_are_worked_out() -> None:
    question = Question([draw("a"), draw("b")], greedy=draw("a"), answer_logprobs=[[-1.0, -2.0]] * 2)
    assert by_samples([question])[0].right.keys() == {*USUAL}
    (point, _) = by_samples([question], measures=("cisc", "oracle"))
    assert point.right.keys() == {"cisc", "oracle"}


def test_scoring_shares_what_lacot_computes_anew() -> None:
    """Rationales of 10 and 20 tokens, answers a, b of 2 and 3, a question of 100, and a reply without an answer."""
    draws = [
        Draw("a", True, 12, [-1.0] * 12, 10), Draw(None, False, 5, [-1.0] * 5), Draw("b", False, 23, [-1.0] * 23, 20)
    ]  # fmt: skip
    question = Question(
        draws, answer_logprobs=[[-1.0, -2.0], None, [-1.0, -2.0]], answer_tokens=[2, 3], prompt_tokens=100
    )
    assert scoring(question, 1) == (Scoring(2, 112), Scoring(1, 112))
    assert scoring(question, 3) == (Scoring(6, 100 + 30 + 2 * 5), Scoring(4, 4 * 100 + 2 * 30 + 2 * 5))
    points = by_samples([question, question], [1, 3])
    assert [point.scoring for point in points] == [Scoring(8, 2 * (112 + 123)), Scoring(12, 280)]
    assert scoring(question, 1, first=2) == (Scoring(2, 123), Scoring(1, 123))


def test_accuracy_at_equal_cost_by_hand() -> None:
    first = Question(
        [draw("a", tokens=10), draw("b", tokens=20, right=True), draw("b", tokens=30, right=True)],
        greedy=draw("a", tokens=15),
    )
    second = Question(
        [draw("c", tokens=40, right=True), draw("d", tokens=5), draw("d", tokens=5)],
        greedy=draw("c", tokens=45, right=True),
    )
    points = by_samples([first, second])
    assert [(p.limit, p.sets, p.draws, p.tokens, p.greedy_tokens) for p in points] == [
        (1, 3, 6, 110, 180), (2, 1, 4, 75, 60), (3, 1, 6, 110, 60)
    ]  # fmt: skip
    one_by_one = (False, True, True, False, True, False)
    assert [p.right["majority"] for p in points] == [one_by_one, (False, True), (True, False)]
    assert [p.right["oracle"] for p in points] == [one_by_one, (True, True), (True, True)]
    assert [p.right["greedy"] for p in points] == [(False, True) * 3, *[(False, True)] * 2]
    points = by_budget([first, second], [5, 30, 59, 60])
    assert [(p.draws, p.tokens) for p in points] == [(0, 0), (2, 30), (5, 80), (6, 110)]
    assert [p.right["majority"] for p in points] == [(False, False), (False, False), (False, False), (True, False)]
    assert [p.right["oracle"] for p in points] == [(False, False), (True, False), (True, True), (True, True)]
    assert [p.right["greedy"] for p in points] == [(False, False), (False, False), (False, True), (False, True)]


def test_the_first_n_draws_are_judged_by_themselves() -> None:
    draws = [draw("a", -1.0), draw("b", -3.0), draw("c", -0.2), draw("b", -3.0), draw("c", -0.2)]
    table = [[-1.0, -0.6, -0.1], [-1.0, -2.0, -0.1], [-9.0, -0.1, -0.1], [-9.0, -0.1, -0.1], [-9.0, -0.1, -0.1]]
    found = [select(Question(draws, answer_logprobs=table), n).chosen for n in (1, 2, 3, 4, 5)]
    assert [each["majority"] for each in found] == [0, 0, 0, 1, 1]
    assert [each["best_of_n"] for each in found] == [0, 0, 2, 2, 2]
    assert [each["marginal"] for each in found] == [0, 0, 2, 2, 2]
    assert select(Question(draws), 9).chosen == select(Question(draws)).chosen


@given(
    st.lists(st.sampled_from(["a", "b", "c", None]), min_size=2, max_size=12),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_a_set_of_draws_is_judged_as_if_there_were_no_others(said: list[Any], n: int, dice: Any) -> None:
    draws = [Draw(answer, answer == "a", 10, [-dice.random()] * 10, 7) for answer in said]
    groups = clusters(draws)
    table = [None if d.answer is None else [-9 * dice.random() for _ in groups] for d in draws]
    first = dice.randrange(len(draws))
    taken = range(len(draws))[first:][:n]
    columns = dict.fromkeys(c for i in taken for c, group in enumerate(groups) if i in group)
    rows = [None if (row := table[i]) is None else [row[c] for c in columns] for i in taken]
    alone = Question([draws[i] for i in taken], answer_logprobs=rows, answer_tokens=[2] * len(columns))
    question = Question(draws, answer_logprobs=table, answer_tokens=[2] * len(groups))
    among, by_itself = select(question, n, first=first, measures=MEASURES), select(alone, measures=MEASURES)
    assert among.agreement == by_itself.agreement
    assert {name: number - first for name, number in among.chosen.items()} == by_itself.chosen
    assert scoring(question, n, first=first) == scoring(alone, n)


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="answer_logprobs has 1 rows for 2 draws"):
        Question([draw("a"), draw("b")], answer_logprobs=[[-1.0]])
    with pytest.raises(ValueError, match="without draws"):
        Question([])
    with pytest.raises(ValueError, match=r"got 0.0 and n=None"):
        select(Question([draw("a")]), temperature=0.0)
    with pytest.raises(ValueError, match=r"got 1.0 and n=0"):
        select(Question([draw("a")]), 0)
    with pytest.raises(ValueError, match="one column for each cluster, which are 1"):
        select(Question([draw("a"), draw("a")], answer_logprobs=[[-1.0, -2.0]] * 2))


some_draws = st.lists(
    st.tuples(
        st.sampled_from(["a", "the a", "b", "B.", "3.14", "3.1416", "3.1", "7", None]),
        st.floats(-5, 0),
        st.lists(st.floats(-5, 0), min_size=9, max_size=9),
    ),
    min_size=1,
    max_size=9,
)


@given(some_draws, st.randoms(use_true_random=False))
def test_the_order_of_draws_decides_nothing_but_ties(made: list[Any], dice: Any) -> None:
    draws = [draw(answer, mean) for answer, mean, _ in made]
    groups = clusters(draws)
    rows = [list(scores[: len(groups)]) for _, _, scores in made]
    order = list(range(len(draws)))
    dice.shuffle(order)
    shuffled = [draws[i] for i in order]
    moved = clusters(shuffled)
    assert {frozenset(order[i] for i in group) for group in moved} == {frozenset(group) for group in groups}
    if not groups:
        return
    columns = [next(c for c, group in enumerate(groups) if order[new[0]] in group) for new in moved]
    before = select(Question(draws, answer_logprobs=rows))
    after = select(Question(shuffled, answer_logprobs=[[rows[i][c] for c in columns] for i in order]))
    assert before.agreement == after.agreement

    def cluster_of(number: int) -> int:
        return next(c for c, group in enumerate(groups) if number in group)

    weights = [math.fsum(math.exp(made[i][1]) for i in group) for group in groups]
    values = {
        "majority": [float(len(group)) for group in groups],
        "cisc": weights,
        "best_of_n": [max(made[i][1] for i in group) for group in groups],
        "marginal": marginal(rows),
    }
    for method, found in values.items():
        best = max(found)
        assert draws[before.chosen[method]].answer is not None  # type: ignore[index]
        if sum(value >= best - 1e-9 for value in found) == 1:
            winner = cluster_of(before.chosen[method])  # type: ignore[index]
            assert winner == found.index(best)
            assert cluster_of(order[after.chosen[method]]) == winner  # type: ignore[index]


@given(some_draws)
def test_a_copy_of_every_draw_changes_no_choice_and_the_oracle_is_never_beaten(made: list[Any]) -> None:
    draws = [Draw(answer, answer == "a", 10, [mean]) for answer, mean, _ in made]
    doubled = [each for each in draws for _ in range(2)]
    for method in ("majority", "best_of_n"):
        assert select(Question(doubled)).chosen[method] // 2 == select(Question(draws)).chosen[method]  # type: ignore[index]
    for point in by_samples([Question(draws)]):
        assert all(sum(right) <= sum(point.right["oracle"]) for right in point.right.values())
