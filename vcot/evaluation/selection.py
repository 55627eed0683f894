"""What several replies to each question are worth: methods of choosing one (vcot.evaluation.voting), by the number of
draws and at equal budgets of tokens, and how far their agreement can be trusted (vcot.evaluation.calibration).

Answers are compared, not boxes: a draw whose answer is accepted is right.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vcot.evaluation.calibration import calibration
from vcot.evaluation.config import Way
from vcot.evaluation.credibility import logprobs_fit
from vcot.evaluation.metrics import METRICS, Figure, measure_by
from vcot.evaluation.rationales import UNSCORED
from vcot.evaluation.voting import SCORED, USUAL, Draw, Measure, Point, Question, Scoring, by_budget, by_samples, select
from vcot.grounding.tags import split_answer
from vcot.records import Sample, Score

if TYPE_CHECKING:
    from vcot.evaluation.runner import Reply

MEASURES: Mapping[Measure, str] = MappingProxyType(
    {
        "greedy": "The one reply at temperature 0.",
        "majority": "The answer that most replies give (self-consistency).",
        "cisc": "The same, each reply weighted by how likely the model found it.",
        "best_of_n": "The reply that the model found most likely, per token.",
        "marginal": "The answer that is most likely over the rationales of all replies; no tokens more are generated.",
        "lacot": "The answer that is likeliest per token together with the rationale, on the mean over all rationales: "
        "the score in LaCoT's code, with the answer drawn first for all that are equal to it.",
        "oracle": "Right if any reply is: no method can do better.",
    }
)
"""In the order in which they are shown, and what they are."""
PUBLISHED = "lacot, as published"
"""Name of the cost of LaCoT's own code, which scores each pair anew."""
NOT_SCORED = "this model does not say how likely it finds a given answer"


def question(sample: Sample, draws: Sequence[Reply], greedy: Reply | None) -> Question:
    """draws: in the order drawn, at least one."""
    table = [reply.answer_logprobs for reply in draws]
    return Question(
        [_draw(reply) for reply in draws], None if greedy is None else _draw(greedy), sample.choices,
        answer_logprobs=table if any(row is not None for row in table) else None,
        answer_tokens=next((reply.answer_tokens for reply in draws if reply.answer_tokens is not None), None),
        prompt_tokens=draws[0].completion.tokens_in,
    )  # fmt: skip


def _draw(reply: Reply) -> Draw:
    answer, said = split_answer(reply.score.text)[1], reply.completion
    logprobs = said.logprobs if logprobs_fit(said) else None
    return Draw(answer, reply.score.answer == "right", said.tokens_out, logprobs, reply.rationale_tokens)


def selection(
    samples: Sequence[Sample], draws: Mapping[Way, Sequence[Sequence[Reply]]],
    greedy: Mapping[Way, Sequence[Reply | None]], *, can_score: bool = True, seed: int = 0,
    measures: Collection[str] = USUAL,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:  # fmt: skip
    """What the report holds of each way that was asked several times: `selection` and `calibration`.

    Args:
        draws, greedy: way → for each sample, in order, what was said. A sample without draws is left out.
        can_score: of the model, to say why there is no marginal.
        measures: which to work out.
    """
    chosen, trusted = [], []
    for way, each in draws.items():
        asked = [
            (sample, question(sample, several, one))
            for sample, several, one in zip(samples, each, greedy[way], strict=True)
            if several
        ]
        if not asked:
            continue
        questions, rows = [one for _, one in asked], [sample for sample, _ in asked]
        why: dict[str, str] = {}
        if way in UNSCORED or not can_score:
            why |= dict.fromkeys(SCORED, UNSCORED.get(way, NOT_SCORED))
        points = by_samples(questions, measures=measures)
        mean = points[-1].tokens / points[-1].draws
        budgets = sorted({math.ceil(point.limit * mean) for point in points})
        chosen.append(
            {
                "way": way,
                "questions": len(questions),
                "draws": points[-1].limit,
                "by_samples": [_point(rows, point, why, seed) for point in points],
                "by_budget": [
                    _point(rows, point, why, seed) for point in by_budget(questions, budgets, measures=measures)
                ],
            }
        )
        trusted.append({"way": way} | _calibration(rows, questions, seed))
    return chosen, trusted


def _point(rows: Sequence[Sample], point: Point, why: Mapping[str, str], seed: int) -> dict[str, Any]:
    """One point of the curves: accuracy and paired difference from greedy of each measure, and what it cost."""
    judged = [*rows] * point.sets
    verdicts: dict[str, list[Score]] = {
        name: [_verdict(sample, right) for sample, right in zip(judged, point.right[name], strict=True)]
        for name in MEASURES
        if name in point.right
    }
    pairs = [(name, "greedy") for name in verdicts if name != "greedy"] if "greedy" in verdicts else []
    of = "answer_accuracy"
    measured = measure_by({of: METRICS[of]}, verdicts, pairs, score_of=lambda score: score, seed=seed)
    count = len(judged)

    def figure(found: Figure) -> dict[str, Any]:  # of questions, however often each was judged
        return replace(found, rows=found.rows // point.sets, count=found.count / point.sets).to_dict()

    return {
        "limit": point.limit,
        "sets": point.sets,
        "draws": round(point.draws / count, 4),
        "tokens": round(point.tokens / count, 2),
        "greedy_tokens": None if point.greedy_tokens is None else round(point.greedy_tokens / count, 2),
        "accuracy": {name: figure(figures[of]) for name, figures in measured.figures.items()},
        "difference": {name: figure(measured.differences[name, "greedy"][of]) for name, _ in pairs},
        "missing": {name: why.get(name, said) for name, said in point.missing.items()},
        "cost": _costs(point, [*verdicts], count),
    }


def _costs(point: Point, measures: Sequence[str], questions: int) -> dict[str, Any]:
    """Measure → of a question: replies and tokens generated, and passes and tokens (of the question, the rationales and
    the answers) to score answers; None where tokens were not counted."""

    def cost(replies: float, generated: int | None, scored: Scoring | None) -> dict[str, Any]:
        return {
            "replies": round(replies / questions, 4),
            "generated": None if generated is None else round(generated / questions, 2),
            "passes": None if scored is None else round(scored.passes / questions, 2),
            "scored": None if scored is None else round(scored.tokens / questions, 2),
        }

    none = Scoring(0, 0)
    found = {
        name: cost(questions, point.greedy_tokens, none)
        if name == "greedy"
        else cost(point.draws, point.tokens, point.scoring if name in SCORED else none)
        for name in measures
    }
    if "lacot" in measures:
        found[PUBLISHED] = cost(point.draws, point.tokens, point.published)
    return found


def _verdict(sample: Sample, right: bool) -> Score:
    """Of the answer alone, so that it is measured, drawn and compared as every other figure is."""
    return Score(
        sample=sample.id, image=None if sample.image is None else sample.image.sha256,
        answer="right" if right else "wrong", true_boxes=None, predicted_boxes=0, matched=0, well_formed=True, text="",
    )  # fmt: skip


def _calibration(rows: Sequence[Sample], questions: Sequence[Question], seed: int) -> dict[str, Any]:
    """Of the majority's answer: the share of all draws that agree on it, beside how often it is right."""
    choices = [select(one) for one in questions]
    found = calibration(
        [choice.agreement for choice in choices],
        [one.draws[choice.chosen["majority"]].right for one, choice in zip(questions, choices, strict=True)],
        [None if sample.image is None else sample.image.sha256 for sample in rows], seed=seed,
    )  # fmt: skip
    said = {"confidence": "agreement", "of": "majority"} | asdict(found)
    return said | {"error": round(found.error, 6), "low": _short(found.low), "high": _short(found.high), "bins": [
        {name: _short(value) for name, value in asdict(each).items()} for each in found.bins
    ]}  # fmt: skip


def _short(value: float | None) -> float | None:
    return round(value, 6) if isinstance(value, float) else value
