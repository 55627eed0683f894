"""Which of N sampled replies to one question to give as the answer, and what each way of choosing costs and is worth.

    majority     the answer that most draws give (self-consistency, Wang et al. 2023)
    cisc         the same, each draw weighted by how likely the model found it (Taubenfeld et al. 2025)
    best_of_n    the draw that the model found most likely, per token
    marginal     the answer that is most likely over all rationales: (1/N) Σ_i P(answer | question, rationale i)
    lacot        the answer whose tokens and the rationale's, together, are likeliest per token on the mean over
                 rationales: as LaCoT's code scores (Sun et al. 2025)
    greedy       the reply at temperature 0, which needs no draws
    oracle       right if any draw is: what the best choice could reach

Nothing here knows a model: replies, their log-probabilities and whether each is right are given.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal, TypeGuard, get_args

from vcot import answers
from vcot.grounding import Box, match_at

Method = Literal["majority", "cisc", "best_of_n", "marginal", "lacot"]
METHODS: tuple[Method, ...] = get_args(Method)
Measure = Literal["greedy", "majority", "cisc", "best_of_n", "marginal", "lacot", "oracle"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
"""In the order in which they are shown."""
USUAL: tuple[Measure, ...] = ("greedy", "majority", "cisc", "best_of_n", "marginal", "oracle")
"""What is worked out unless others are named."""
SCORED: tuple[Method, ...] = ("marginal", "lacot")
"""Those that need every answer scored after every rationale."""

BOX_THRESHOLD = 0.5
"""Two sets of boxes are one answer if they pair off completely at this IoU."""

Answer = str | tuple[Box, ...]
"""A text; or boxes, where boxes are what is asked for: () says that nothing is there."""


@dataclass(frozen=True)
class Draw:
    """One sampled reply (or the greedy one).

    answer: None where the reply comes to none. right: whether it is accepted. tokens: generated, what it cost.
    logprobs: of each generated token, natural; None where the subject gives none. rationale_tokens: how many of them,
    from the first, come before the answer; None where that was not counted.
    """

    answer: Answer | None
    right: bool
    tokens: int
    logprobs: Sequence[float] | None = None
    rationale_tokens: int | None = None


@dataclass(frozen=True)
class Question:
    """What was drawn for one question.

    Attributes:
        draws: in the order in which they were drawn, one or more.
        greedy: the reply at temperature 0.
        choices: of a multiple-choice question; answers are compared as options then.
        answer_logprobs: [draws][clusters]: the log-probability of the answer of each cluster (of its first draw; order
            of `clusters`; answer tokens alone) after the rationale of each draw. None instead of a row: not scored.
        answer_tokens: [clusters]: how many tokens each of these answers has.
        prompt_tokens: of the question with its images.
    """

    draws: Sequence[Draw]
    greedy: Draw | None = None
    choices: Sequence[str] | None = None
    answer_logprobs: Sequence[Sequence[float] | None] | None = None
    answer_tokens: Sequence[int] | None = None
    prompt_tokens: int = 0

    def __post_init__(self) -> None:
        if self.answer_logprobs is not None and len(self.answer_logprobs) != len(self.draws):
            raise ValueError(f"answer_logprobs has {len(self.answer_logprobs)} rows for {len(self.draws)} draws")
        if not self.draws:
            raise ValueError("a question without draws has nothing to choose from")

    @cached_property
    def clusters(self) -> list[list[int]]:
        """Of all draws; worked out once, as a question is judged by many sets of them."""
        return clusters(self.draws, self.choices)

    def numbers(self, n: int | None = None, first: int = 0) -> range:
        """Of n draws from number `first`, or of as many as there are."""
        return range(len(self.draws))[first:][:n]


@dataclass(frozen=True)
class Selection:
    """What each method chooses.

    chosen: method → number of a draw: the first drawn of the cluster that wins; for best_of_n the draw itself. Where
        no draw has an answer, the first.
    missing: method → why it cannot be applied, in words.
    agreement: share of all draws that are in the largest cluster; 0 where none has an answer.
    """

    chosen: Mapping[Method, int]
    missing: Mapping[Method, str]
    agreement: float


def clusters(draws: Sequence[Draw], choices: Sequence[str] | None = None) -> list[list[int]]:
    """The draws by answer: those that say the same, by number; clusters and their draws in the order drawn.

    Draws without an answer are in none, and with `choices` neither are those that name no option or several. Others
    are in one if one accepts the other's answer (`answers.same`, which is not symmetric: 3.14 accepts 3.1416), or if a
    chain of such pairs joins them, so that the order in which they were drawn does not matter.
    """
    distinct = dict.fromkeys(draw.answer for draw in draws if _votes(draw.answer, choices))
    groups = list[list[Answer]]()
    for answer in distinct:
        joined = [group for group in groups if any(_same(answer, other, choices) for other in group)]
        groups = [group for group in groups if group not in joined]
        groups.append([other for group in joined for other in group] + [answer])
    return sorted([i for i, draw in enumerate(draws) if draw.answer in group] for group in groups)


def _votes(answer: Answer | None, choices: Sequence[str] | None) -> TypeGuard[Answer]:
    if answer is None:
        return False
    return not choices or not isinstance(answer, str) or answers.letter(answer, choices) is not None


def _same(one: Answer, other: Answer, choices: Sequence[str] | None) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        if not choices and (polarity := answers.yes_or_no(one)) is not None:
            return polarity == answers.yes_or_no(other)
        return answers.same(one, [other], choices) or answers.same(other, [one], choices)
    if isinstance(one, str) or isinstance(other, str) or len(one) != len(other):
        return False
    return len(match_at(one, other, BOX_THRESHOLD).pairs) == len(one)


def select(
    question: Question, n: int | None = None, *, first: int = 0, temperature: float = 1.0,
    measures: Collection[str] = USUAL,
) -> Selection:  # fmt: skip
    """The choice of each method among n draws from number `first` (None: all). Of equals, the one that was drawn first
    wins.

    measures: which methods to work out; the majority always is.
    temperature: of the softmax over mean log-probabilities by which `cisc` weighs; low trusts the likeliest draws
        alone, high weighs all alike. (The paper puts the probabilities themselves into the softmax.)
    """
    if temperature <= 0 or n == 0:
        raise ValueError(f"a temperature above 0 and a draw to choose are needed; got {temperature} and n={n}")
    taken, every = question.numbers(n, first), len(question.clusters)
    seen = _answers(question, taken)
    if not seen:
        return Selection({method: first for method in METHODS if method in measures or method == "majority"}, {}, 0.0)
    draws, groups = question.draws, list(seen.values())
    counts = [float(len(group)) for group in groups]
    chosen: dict[Method, int] = {"majority": groups[_first_best(counts)][0]}
    missing: dict[Method, str] = {}
    means = {i: math.fsum(given) / len(given) for group in groups for i in group if (given := draws[i].logprobs)}
    unknown = sum(map(len, groups)) - len(means)
    without = f"{unknown} of {unknown + len(means)} replies came without log-probabilities"
    if unknown:
        missing |= {"cisc": without, "best_of_n": without}
    else:
        weights = {i: math.exp((mean - max(means.values())) / temperature) for i, mean in means.items()}
        chosen["cisc"] = groups[_first_best([math.fsum(weights[i] for i in group) for group in groups])][0]
        chosen["best_of_n"] = min(means, key=lambda i: (-means[i], i))

    scored = _scored(question, taken)
    if any(len(row) != every for row in scored.values()):
        raise ValueError(f"answer_logprobs has one column for each cluster, which are {every}")
    table = [[row[column] for column in seen] for row in scored.values()]
    if not scored:
        missing |= dict.fromkeys(SCORED, "no answer was scored after the rationale of another reply")
    else:
        chosen["marginal"] = groups[_first_best(marginal(table))][0]
        if unknown:
            missing["lacot"] = without
        elif (counts_of := _token_counts(question, scored)) is None:
            missing["lacot"] = "the tokens of rationales and answers were not counted"
        else:
            own = [(draws[i].logprobs or ())[:length] for i, length in zip(scored, counts_of[0], strict=True)]
            rationales = [(math.fsum(each), len(each)) for each in own]
            likely = lacot(rationales, table, [counts_of[1][column] for column in seen])
            chosen["lacot"] = groups[_first_best(likely)][0]
    return Selection(
        {method: draw for method, draw in chosen.items() if method in measures or method == "majority"},
        {method: why for method, why in missing.items() if method in measures},
        max(counts) / len(taken),
    )


def _answers(question: Question, taken: range) -> dict[int, list[int]]:
    """Number of a cluster → which of these draws are in it, if any is; in the order in which they first occur."""
    drawn = [(column, [i for i in group if i in taken]) for column, group in enumerate(question.clusters)]
    return dict(sorted((one for one in drawn if one[1]), key=lambda one: one[1]))


def _scored(question: Question, taken: range) -> dict[int, Sequence[float]]:
    """Of those of these draws after whose rationale answers were scored, their row of `answer_logprobs`."""
    table = question.answer_logprobs or [None] * len(question.draws)
    return {i: row for i in taken if (row := table[i]) is not None}


def _token_counts(question: Question, rows: Collection[int]) -> tuple[list[int], Sequence[int]] | None:
    """Of the rationales of these draws, and of the answer of each cluster; None where any was not counted."""
    lengths = [length for i in rows if (length := question.draws[i].rationale_tokens) is not None]
    return None if question.answer_tokens is None or len(lengths) < len(rows) else (lengths, question.answer_tokens)


def marginal(scores: Sequence[Sequence[float]]) -> list[float]:
    """log P(answer | question) of each answer, over rationales: logmeanexp_i s(i, c).

    Args:
        scores: [rationales][answers], log P(answer c | question, rationale i), of the answer's tokens alone: with the
            rationale's, which are many more, its own likelihood would decide.
    """
    return [_logsumexp(column) - math.log(len(scores)) for column in zip(*scores, strict=True)]


def lacot(
    rationales: Sequence[tuple[float, int]], scores: Sequence[Sequence[float]], answer_tokens: Sequence[int]
) -> list[float]:
    """Of each answer j the mean over rationales i of S[j][i]: the mean log-probability of all tokens of rationale i and
    answer j, given the question. So it is a geometric mean over rationales, and a rationale counts for most of it, as
    it has many more tokens than an answer.

    LaCoT's code (Sun et al. 2025, arXiv 2510.23925) has a row for each draw's answer, equal ones side by side; here
    the one drawn first stands for all that are equal to it. Its paper averages probabilities, not their logarithms.

    Args:
        rationales: of each, the sum of its tokens' log-probabilities, and their number.
        scores: [rationales][answers], log P(answer j | question, rationale i), of the answer's tokens alone.
        answer_tokens: [answers], their number.
    """
    return [
        math.fsum(
            (likely + row[j]) / (length + tokens) for (likely, length), row in zip(rationales, scores, strict=True)
        )
        / len(rationales)
        for j, tokens in enumerate(answer_tokens)
    ]


def _logsumexp(values: Sequence[float]) -> float:
    top = max(values)
    # fsum: the same whatever the order, so that only true ties are ties.
    return top if math.isinf(top) else top + math.log(math.fsum(math.exp(value - top) for value in values))


def _first_best(values: Sequence[float]) -> int:
    return values.index(max(values))


# --- what it is worth --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scoring:
    """What it takes to score answers after rationales: sequences that go through the model, and tokens that it computes
    for them, the question's and its images' among them."""

    passes: int
    tokens: int

    def __add__(self, other: Scoring) -> Scoring:
        return Scoring(self.passes + other.passes, self.tokens + other.tokens)


def scoring(question: Question, n: int, *, first: int = 0) -> tuple[Scoring, Scoring] | None:
    """To score the answers of n draws from number `first` as it is done here, and as LaCoT's code does it; None where
    their tokens were not counted.

    Here the question is computed once, then each rationale once, then each distinct answer after each of them. LaCoT
    computes the question, a rationale and an answer anew for each of the N x N pairs. Replies without an answer are in
    neither.
    """
    taken = question.numbers(n, first)
    rows = [*_scored(question, taken)]
    if not rows or (counts := _token_counts(question, rows)) is None:
        return None
    (rationales, answers), pairs = counts, len(rows) ** 2
    drawn = {column: len(several) for column, several in _answers(question, taken).items()}
    shared = question.prompt_tokens + sum(rationales) + len(rows) * sum(answers[column] for column in drawn)
    anew = pairs * question.prompt_tokens + len(rows) * (
        sum(rationales) + sum(many * answers[column] for column, many in drawn.items())
    )
    return Scoring(len(rows) * (1 + len(drawn)), shared), Scoring(pairs, anew)


@dataclass(frozen=True)
class Point:
    """One point of the curves of accuracy against cost.

    Attributes:
        limit: draws per question, or the budget of tokens per question.
        sets: how many times each question was judged, by other draws each time.
        draws: taken, of all sets of all questions, as in what follows.
        tokens: generated for them; `greedy` has its own, in `greedy_tokens`. That answers are scored, for the marginal,
            generates nothing and is not in it.
        right: measure → whether it is right, of each question by the first set, then by the second, …, so that
            intervals can be made and pairs compared.
        missing: measure → why it is not in `right`; what is missing for one question is left out for all.
        scoring, published: what `scoring` says; None where no answer was scored or tokens were not counted.
    """

    limit: int
    sets: int
    draws: int
    tokens: int
    greedy_tokens: int | None
    right: Mapping[Measure, tuple[bool, ...]]
    missing: Mapping[Measure, str]
    scoring: Scoring | None = None
    published: Scoring | None = None


def sizes_up_to(most: int) -> list[int]:
    """1, 2, 4, … and `most` itself; none of none."""
    return sorted({1 << k for k in range(most.bit_length())} | ({most} if most else set()))


def by_samples(
    questions: Sequence[Question], sizes: Sequence[int] | None = None, *, temperature: float = 1.0,
    measures: Collection[str] = USUAL,
) -> list[Point]:  # fmt: skip
    """At N draws per question, for each N of `sizes`: 1, 2, 4, … and all, unless they are given.

    Of more draws than N no set of N is better than another, so a question is judged by each of as many sets as there
    are without one draw in two of them: what N are worth is known better so than by the first N alone.
    """
    most = max((len(question.draws) for question in questions), default=0)
    fewest = min((len(question.draws) for question in questions), default=0)
    points = []
    for n in sizes_up_to(most) if sizes is None else sizes:
        if n > 0:
            sets = max(1, fewest // n)
            taken = [(question, question.numbers(n, k * n)) for k in range(sets) for question in questions]
            points.append(_point(taken, sets, n, None, temperature, measures))
    return points


def by_budget(
    questions: Sequence[Question], budgets: Sequence[int], *, temperature: float = 1.0,
    measures: Collection[str] = USUAL,
) -> list[Point]:  # fmt: skip
    """At equal budgets of generated tokens per question: draws are taken in order while they fit.

    A question whose first draw (for greedy: its reply) is longer than the budget counts as wrong.
    """
    spent = [(question, list(accumulate(draw.tokens for draw in question.draws))) for question in questions]
    return [
        _point([(q, range(bisect_right(each, budget))) for q, each in spent], 1, budget, budget, temperature, measures)
        for budget in budgets
    ]


def _point(
    taken: Sequence[tuple[Question, range]], sets: int, limit: int, budget: int | None, temperature: float,
    measures: Collection[str],
) -> Point:  # fmt: skip
    """taken: of each question, as often as there are sets, the numbers of the draws that it is judged by."""
    right: dict[Measure, tuple[bool, ...]] = {}
    missing: dict[Measure, str] = {}
    questions = [question for question, _ in taken]
    chosen = [
        select(q, len(which), first=which.start, temperature=temperature, measures=measures) if which else None
        for q, which in taken
    ]
    drawn = [[q.draws[i] for i in which] for q, which in taken]
    for method in (method for method in METHODS if method in measures):
        if without := [each.missing[method] for each in chosen if each and method in each.missing]:
            of = "questions" if sets == 1 else "sets of draws"
            missing[method] = f"{len(without)} of {len(questions)} {of}: {without[0]}"
        else:
            right[method] = tuple(
                each is not None and q.draws[each.chosen[method]].right
                for q, each in zip(questions, chosen, strict=True)
            )
    if "oracle" in measures:
        right["oracle"] = tuple(any(draw.right for draw in each) for each in drawn)
    greedy = [question.greedy for question in questions if question.greedy is not None]
    if len(greedy) < len(questions):
        missing["greedy"] = f"{len(questions) - len(greedy)} of {len(questions)} questions have no greedy reply"
    elif "greedy" in measures:
        right["greedy"] = tuple(one.right and (budget is None or one.tokens <= budget) for one in greedy)
    spent = sum(draw.tokens for each in drawn for draw in each)
    its_own = None if len(greedy) < len(questions) else sum(one.tokens for one in greedy)
    costs = [
        scoring(q, len(which), first=which.start)
        for (q, which), each in zip(taken, drawn, strict=True)
        if any(draw.answer is not None for draw in each)
    ]
    known = [cost for cost in costs if cost is not None]
    shared = published = None
    if known and len(known) == len(costs):
        shared, published = (sum(each, Scoring(0, 0)) for each in zip(*known, strict=True))
    return Point(limit, sets, sum(map(len, drawn)), spent, its_own, right, missing, shared, published)
